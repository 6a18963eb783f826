"""Which tensors of two models differ, and how far their predictions are apart."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlab.errors import ConfigError
from quantlab.evaluation.evaluation_record import Against
from quantlab.jobs.evaluate import evaluate
from quantlab.models.loading import load
from quantlab.progress import Progress, silent

EQUAL, CHANGED, OTHER_SHAPE, ONLY_LEFT, ONLY_RIGHT = (
    "equal",
    "changed",
    "other shape",
    "only in the first",
    "only in the second",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorDifference:
    """One tensor of either model."""

    name: str
    state: str
    """equal, changed, other shape, only in the first, only in the second."""
    shape: tuple[int, ...] = ()
    relative: float = 0.0
    """Norm of the difference over the norm of the first one's tensor; infinite where that is 0."""
    largest: float = 0.0
    """Largest absolute difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDifference:
    """Two models."""

    left: str
    right: str
    tensors: tuple[TensorDifference, ...]
    """The one that differs most comes first; equal ones last."""
    against: Against | None = None
    """Predictions of the second against the first; None without a text."""

    def count(self, state: str) -> int:
        """Return how many tensors are in a state."""
        return sum(tensor.state == state for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def diff(
    left: str | Path,
    right: str | Path,
    *,
    text: str | Path | None = None,
    tokens: str | None = None,
    tokenizer: str | Path | None = None,
    model: str | None = None,
    progress: Progress = silent,
) -> ModelDifference:
    """Return the difference of two models: of their tensors, and of their predictions where a text or tokens are given.

    Args:
        left: the reference, a checkpoint or an artifact.
        right: the other one.
        text: see `quantlab.evaluate`, as for tokens, tokenizer and model.
    Raises:
        ConfigError: both text and tokens are given, or a tokenizer without either.
        CheckpointError, FormatError: a file cannot be read.
    """
    if tokenizer is not None and text is None and tokens is None:
        raise ConfigError(f"tokenizer {tokenizer} is given without a text", hint="name one with --text or --tokens")
    states = [load(path, model=model).state for path in (left, right)]
    names = dict.fromkeys([*states[0], *states[1]])
    found = [_difference(name, states[0].get(name), states[1].get(name)) for name in names]
    order = (ONLY_LEFT, ONLY_RIGHT, OTHER_SHAPE, CHANGED, EQUAL)
    found.sort(key=lambda one: (order.index(one.state), -one.relative, one.name))
    against = None
    if text is not None or tokens is not None:
        record = evaluate(
            right, against=left, text=text, tokens=tokens, tokenizer=tokenizer, model=model, mode="chunked", progress=progress
        )
        against = record.against
    return ModelDifference(left=str(left), right=str(right), tensors=tuple(found), against=against)


def _difference(name: str, left: Tensor | None, right: Tensor | None) -> TensorDifference:
    if left is None or right is None:
        tensor = left if left is not None else right
        shape = tuple(tensor.shape) if tensor is not None else ()
        return TensorDifference(name=name, state=ONLY_LEFT if right is None else ONLY_RIGHT, shape=shape)
    shape = tuple(left.shape)
    if left.shape != right.shape:
        return TensorDifference(name=name, state=OTHER_SHAPE, shape=shape)
    if torch.equal(left, right):
        return TensorDifference(name=name, state=EQUAL, shape=shape)
    change, norm = left.double() - right.double(), float(left.double().norm())
    relative = float(change.norm()) / norm if norm else float("inf")
    return TensorDifference(name=name, state=CHANGED, shape=shape, relative=relative, largest=float(change.abs().max()))
