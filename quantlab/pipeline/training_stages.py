"""The stages data and train: text becomes token shards with their tokenizer, and a model is trained on them."""

import gc
import glob
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from quantlab.child_process import run_child
from quantlab.files import write_whole
from quantlab.jobs.tokenizers import TOKENIZER_NAME
from quantlab.jobs.train import PREPARING, PREPARING_STEPS, load_data, train_to_folder
from quantlab.jobs.train_file import DataConfig
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.pipeline_config import DataOptions, TrainOptions
from quantlab.pipeline.stage import Stage, StageJob, StageOutcome
from quantlab.text.prepare import prepare
from quantlab.text.shards import write_shard
from quantlab.text.tokenizer import Tokenizer
from quantlab.toml_file import to_toml
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training_log import LOG_NAME, METRICS_NAME
from quantlab.trainer.training_loop import MODEL_NAME

SHARD_TOKENS = 10**8
SHARDS = "shards"
"""Folder of the shards that are made from `sources`."""
COUNTS_NAME = "data.json"
CONFIG_NAME = "train.toml"


class DataStage:
    """Makes token shards and a tokenizer once for any number of trainings; existing shards are used where they are."""

    def __init__(self, options: DataOptions, train: TrainConfig, hashes: FileHashes) -> None:
        self.options, self.train = options, train
        is_stdlib = options.config().train == "stdlib" and not options.sources
        inputs: dict[str, Any] = {
            "train": hashes.of_source(options.train, "data.train") or "stdlib",
            "val": hashes.of_source(options.val, "data.val"),
            "tokenizer": hashes.of(Path(options.tokenizer), "data.tokenizer") if options.tokenizer else "",
        }
        if is_stdlib:  # the text is that of this Python, the tokenizer has as many pieces as the model wants
            inputs |= {"python": platform.python_version(), "vocab_size": train.model.vocab_size, "seed": train.seed}
        if options.sources:
            inputs["train"] = hashes.of_files(map(Path, options.sources), "data.sources")
            inputs |= {"val_docs": options.val_docs}
        self.stage = Stage(name="data", inputs=inputs, after=(), work=self._work)

    def tokenizer(self, root: Path) -> Path:
        """Return the tokenizer's file."""
        return self.stage.folder(root) / TOKENIZER_NAME

    def training(self, root: Path) -> str:
        """Return the training split as `tokens:GLOB`."""
        return self._source(self.options.train, "train", self.stage.folder(root))

    def validation(self, root: Path) -> str:
        """Return the validation split as `tokens:GLOB`; an empty string if there is none."""
        return self._source(self.options.val, "val", self.stage.folder(root)) if self.options.has_validation else ""

    def _source(self, given: str, split: str, folder: Path) -> str:
        if given.startswith("tokens:"):
            return given
        inside = f"{SHARDS}/text_{split}_*.bin" if self.options.sources else f"{split}_*.bin"
        return f"tokens:{glob.escape(str(folder))}/{inside}"

    def _work(self, job: StageJob) -> StageOutcome:
        return self._prepare(job) if self.options.sources else self._tokenize(job)

    def _prepare(self, job: StageJob) -> StageOutcome:
        """Cut the sources into splits, as `quantlab data prepare` does."""
        tokenizer = Tokenizer.load(self.options.tokenizer)
        write_whole(job.folder / TOKENIZER_NAME, tokenizer.standalone_file())
        out = job.folder / SHARDS
        sources = [Path(source) for source in self.options.sources]
        prepare(sources, tokenizer, out, self.options.preparation(), force=True, progress=job.progress)
        return StageOutcome(outputs=[TOKENIZER_NAME, *sorted(f"{SHARDS}/{path.name}" for path in out.iterdir())])

    def _tokenize(self, job: StageJob) -> StageOutcome:
        """Read the text as `quantlab train` does, and write each split that is not in shards yet."""
        options = self.options
        job.progress(PREPARING, 0, PREPARING_STEPS, "documents")
        data = load_data(options.config(), self.train.model.vocab_size, self.train.seed, job.progress)
        write_whole(job.folder / TOKENIZER_NAME, data.tokenizer.standalone_file())
        names = []
        if not options.train.startswith("tokens:"):
            names += list(_write_shards(job.folder, "train", data.train[:]))
        if data.val is not None and not options.val.startswith("tokens:"):
            names += list(_write_shards(job.folder, "val", data.val))
        counts = {"train_tokens": len(data.train), "val_tokens": 0 if data.val is None else len(data.val)}
        write_whole(job.folder / COUNTS_NAME, (json.dumps(counts) + "\n").encode())
        job.progress(PREPARING, PREPARING_STEPS, PREPARING_STEPS)
        return StageOutcome(outputs=[TOKENIZER_NAME, COUNTS_NAME, *names])


def _write_shards(folder: Path, split: str, tokens: NDArray[Any]) -> Iterator[str]:
    """Write a split as shards; yield the name of each."""
    for number, start in enumerate(range(0, len(tokens), SHARD_TOKENS)):
        name = f"{split}_{number:06d}.bin"
        write_shard(folder / name, tokens[start : start + SHARD_TOKENS])
        yield name


class TrainStage:
    """Trains the model, in this process or in several; after a kill training goes on from its last checkpoint."""

    def __init__(self, options: TrainOptions, data: DataStage, hashes: FileHashes) -> None:
        self.options, self.data = options, data
        inputs = {**options.config.to_dict(), "processes": options.processes}
        if options.config.teacher:
            inputs["teacher"] = hashes.of_checkpoint(Path(options.config.teacher), "train.teacher")
        self.stage = Stage(name="train", inputs=inputs, after=(data.stage,), work=self._work)

    def _work(self, job: StageJob) -> StageOutcome:
        data = DataConfig(
            train=self.data.training(job.root),
            val=self.data.validation(job.root),
            tokenizer=str(self.data.tokenizer(job.root)),
        )
        file = job.folder / CONFIG_NAME
        write_whole(file, to_toml({**self.options.config.to_dict(), "data": asdict(data)}).encode())
        seconds = self._train_in_children(file, job) if self.options.processes > 1 else self._train_here(data, job)
        logs = [CONFIG_NAME, LOG_NAME, METRICS_NAME]
        return StageOutcome(outputs=[MODEL_NAME, TOKENIZER_NAME], logs=logs, inside_seconds=seconds)

    def _train_here(self, data: DataConfig, job: StageJob) -> float:
        """Train in this process; return the trainer's seconds over all attempts."""
        seconds = train_to_folder(self.options.config, data, job.folder, resume=True, progress=job.progress).elapsed_seconds
        if torch.cuda.is_available():  # later stages need the memory
            gc.collect()
            torch.cuda.empty_cache()
        return seconds

    def _train_in_children(self, file: Path, job: StageJob) -> float:
        """Train in processes of their own, from the training file; return the trainer's seconds over all attempts."""
        request = {"config": str(file), "out": str(job.folder), "resume": True}
        answer = run_child(
            "quantlab.jobs.train", request, processes=self.options.processes, progress=job.progress, lock=job.lock
        )
        return float(answer["seconds"])
