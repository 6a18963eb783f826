"""The teacher of a distillation: any model that quantlab loads, as a function from ids to logits on the student's device."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from quantlab.errors import ConfigError
from quantlab.models.loading import LoadedModel, load
from quantlab.models.provenance import Provenance
from quantlab.text.document_sample import DocumentSample
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training_loop import Teacher


def load_teacher(config: TrainConfig, tokenizer_sha256: str) -> LoadedModel | None:
    """Return the model that a training learns from; None where it has none.

    Raises:
        ConfigError: it has another vocabulary or tokenizer than the student, or reads fewer tokens at once.
        CheckpointError, FormatError: it cannot be read.
    """
    if not config.teacher:
        return None
    loaded = load(Path(config.teacher))
    if loaded.vocab_size != config.model.vocab_size:
        raise ConfigError(f"teacher {config.teacher} has {loaded.vocab_size} ids, the student {config.model.vocab_size}")
    if loaded.tokenizer_sha256 and not tokenizer_sha256.startswith(loaded.tokenizer_sha256):
        raise ConfigError(f"teacher {config.teacher} was made with another tokenizer than the training text")
    if loaded.context_length is not None and loaded.context_length < config.seq_len:
        raise ConfigError(f"teacher {config.teacher} reads {loaded.context_length} tokens, a sequence has {config.seq_len}")
    return loaded


def as_teacher(loaded: LoadedModel, device: torch.device) -> Teacher:
    """Return the function that `quantlab.trainer.training.train` takes: ids int64 [B, T] to float32 logits [B, T, V]."""
    model = loaded.model.to(device).eval()

    @torch.no_grad()
    def logits(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found: Tensor = model(ids)
        return found.float()

    return logits


def with_past_of(past: Provenance, teacher: LoadedModel | None) -> Provenance:
    """Return the past of a student: it has learned from the documents that its teacher was trained on, too."""
    if teacher is None or not teacher.provenance.training:
        return past
    theirs = DocumentSample.from_text(teacher.provenance.training, teacher.name)
    mine = DocumentSample.from_text(past.training, "training")
    return replace(past, training=mine.union(theirs).to_text())
