"""What is calibrated, packed and scored against: the model that was trained, or a checkpoint that was there."""

from pathlib import Path
from typing import Any

from quantlab.pipeline.models import Loaded, load_checkpoint, load_tokenizer
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.options import PackOptions
from quantlab.pipeline.stages.stage import Stage
from quantlab.pipeline.stages.train import TrainStage
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.run import MODEL_NAME


class Subject:
    """The float model."""

    def __init__(self, options: PackOptions, trained: TrainStage | None, hashes: FileHashes) -> None:
        self.trained = trained
        self.after: tuple[Stage, ...] = (trained.stage,) if trained else ()
        self.spec = options.model or None
        self.inputs: dict[str, Any] = {}
        self._checkpoint, self._tokenizer = Path(options.checkpoint), options.tokenizer
        if trained is None:
            self.inputs["checkpoint"] = hashes.of_checkpoint(self._checkpoint, "pack.checkpoint")
        if options.tokenizer:
            self.inputs["tokenizer"] = hashes.of(Path(options.tokenizer), "pack.tokenizer")
        if options.model:
            file, _, factory = options.model.rpartition(":")
            self.inputs["model"] = [hashes.of(Path(file), "pack.model"), factory]

    def checkpoint(self, root: Path) -> Path:
        """Its file or folder."""
        return self.trained.stage.folder(root) / MODEL_NAME if self.trained else self._checkpoint

    def tokenizer(self, root: Path) -> Path | None:
        """Its tokenizer's file, if there is one."""
        if self.trained:
            return self.trained.data.tokenizer(root)
        return Path(self._tokenizer) if self._tokenizer else None

    def load(self, root: Path) -> tuple[Loaded, Tokenizer | None]:
        """The model and its tokenizer."""
        loaded, path = load_checkpoint(self.checkpoint(root), self.spec), self.tokenizer(root)
        return loaded, load_tokenizer(path, loaded) if path else None
