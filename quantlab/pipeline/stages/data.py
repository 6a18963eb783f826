"""The stage data: text to token shards and their tokenizer, made once for any number of trainings."""

import glob
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.files import write_whole
from quantlab.pipeline.data import load_data
from quantlab.pipeline.prepare import prepare
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.options import DataOptions
from quantlab.pipeline.stages.stage import Done, Job, Stage
from quantlab.pipeline.train import TOKENIZER_NAME
from quantlab.text.shards import write_shard
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.config import TrainConfig

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
