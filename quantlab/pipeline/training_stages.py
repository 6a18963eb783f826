"""The stage data: text to token shards and their tokenizer, made once for any number of trainings.

The stage train: here, or in several processes that are started as torchrun starts them."""

import gc
import glob
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantlab.child_process import run_quantlab
from quantlab.files import write_whole
from quantlab.jobs.train import TOKENIZER_NAME, DataConfig, load_data, train_to_folder
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.pipeline_config import DataOptions, TrainOptions
from quantlab.pipeline.stage import Done, Job, Stage
from quantlab.text.prepare import prepare
from quantlab.text.shards import write_shard
from quantlab.text.tokenizer import Tokenizer
from quantlab.toml_file import to_toml
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training_log import LOG_NAME, METRICS_NAME
from quantlab.trainer.training_loop import MODEL_NAME

SHARD_TOKENS = 10**8
SHARDS = "shards"
"""Folder of what `sources` became."""
ABOUT_NAME = "data.json"


class DataStage:
    """What the stage does, and how later ones name what it gives: shards that were there before stay where they are."""

    def __init__(self, options: DataOptions, train: TrainConfig, hashes: FileHashes) -> None:
        self.options, self.train = options, train
        is_stdlib = options.config().train == "stdlib" and not options.sources
        inputs: dict[str, Any] = {
            "train": hashes.of_source(options.train, "data.train") or "stdlib",
            "val": hashes.of_source(options.val, "data.val"),
            "tokenizer": hashes.of(Path(options.tokenizer), "data.tokenizer") if options.tokenizer else "",
        }
        if is_stdlib:  # its text is that of this Python; the tokenizer has as many pieces as the model wants
            inputs |= {"python": platform.python_version(), "vocab_size": train.model.vocab_size, "seed": train.seed}
        if options.sources:
            inputs["train"] = hashes.of_files(map(Path, options.sources), "data.sources")
            inputs |= {"val_docs": options.val_docs}
        self.stage = Stage(name="data", inputs=inputs, after=(), work=self._work)

    def tokenizer(self, root: Path) -> Path:
        """The tokenizer's file."""
        return self.stage.folder(root) / TOKENIZER_NAME

    def training(self, root: Path) -> str:
        """`tokens:GLOB` of the training split."""
        return self._source(self.options.train, "train", self.stage.folder(root))

    def validation(self, root: Path) -> str:
        """`tokens:GLOB` of the validation split; empty if there is none."""
        return self._source(self.options.val, "val", self.stage.folder(root)) if self.has_validation else ""

    @property
    def has_validation(self) -> bool:
        """Whether there is text that was not trained on."""
        options = self.options
        return options.val_docs > 0 if options.sources else bool(options.val) or options.config().train == "stdlib"

    def _source(self, given: str, split: str, folder: Path) -> str:
        if given.startswith("tokens:"):
            return given
        inside = f"{SHARDS}/text_{split}_*.bin" if self.options.sources else f"{split}_*.bin"
        return f"tokens:{glob.escape(str(folder))}/{inside}"

    def _work(self, job: Job) -> Done:
        return self._prepare(job) if self.options.sources else self._read(job)

    def _prepare(self, job: Job) -> Done:
        tokenizer = Tokenizer.load(self.options.tokenizer)
        write_whole(job.folder / TOKENIZER_NAME, tokenizer.model_bytes)
        out = job.folder / SHARDS
        sources = [Path(source) for source in self.options.sources]
        prepare(sources, tokenizer, out, self.options.preparation(), force=True, progress=job.progress)
        return Done(outputs=[TOKENIZER_NAME, *sorted(f"{SHARDS}/{path.name}" for path in out.iterdir())])

    def _read(self, job: Job) -> Done:
        options = self.options
        job.progress("prepare text", 0, 1)
        data = load_data(options.config(), self.train.model.vocab_size, self.train.seed)
        write_whole(job.folder / TOKENIZER_NAME, data.tokenizer.model_bytes)
        names = []
        if not options.train.startswith("tokens:"):
            names += list(_write_shards(job.folder, "train", data.train[:]))
        if data.val is not None and not options.val.startswith("tokens:"):
            names += list(_write_shards(job.folder, "val", data.val))
        counts = {"train_tokens": len(data.train), "val_tokens": 0 if data.val is None else len(data.val)}
        write_whole(job.folder / ABOUT_NAME, (json.dumps(counts) + "\n").encode())
        job.progress("prepare text", 1, 1)
        return Done(outputs=[TOKENIZER_NAME, ABOUT_NAME, *names])


def _write_shards(folder: Path, split: str, tokens: NDArray[np.uint16]) -> Iterator[str]:
    for number, start in enumerate(range(0, len(tokens), SHARD_TOKENS)):
        name = f"{split}_{number:06d}.bin"
        write_shard(folder / name, tokens[start : start + SHARD_TOKENS])
        yield name


FILE_NAME = "train.toml"


class TrainStage:
    """A killed attempt goes on from its last checkpoint."""

    def __init__(self, options: TrainOptions, data: DataStage) -> None:
        self.options, self.data = options, data
        inputs = {**options.config.to_dict(), "processes": options.processes}
        self.stage = Stage(name="train", inputs=inputs, after=(data.stage,), work=self._work)

    def _work(self, job: Job) -> Done:
        data = DataConfig(
            train=self.data.training(job.root),
            val=self.data.validation(job.root),
            tokenizer=str(self.data.tokenizer(job.root)),
        )
        file = job.folder / FILE_NAME
        write_whole(file, to_toml({**self.options.config.to_dict(), "data": asdict(data)}).encode())
        if self.options.processes > 1:
            arguments = ["train", str(file), "--out", str(job.folder), "--resume", "--no-run", "--json"]
            seconds = _started(arguments, self.options.processes, job)
        else:
            result = train_to_folder(self.options.config, data, job.folder, resume=True, progress=job.progress)
            seconds = result.elapsed_seconds
            del result
            _free_memory()
        return Done(outputs=[MODEL_NAME, TOKENIZER_NAME], logs=[FILE_NAME, LOG_NAME, METRICS_NAME], inside_seconds=seconds)


def _started(arguments: list[str], processes: int, job: Job) -> float:
    summary = json.loads(run_quantlab(arguments, processes=processes, progress=job.progress, lock=job.lock))
    return float(summary["seconds"])


def _free_memory() -> None:
    """Of the GPU, which the stages to come need."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
