"""One packed model of a comparison: its file, its report and its evaluation, as far as they are there.

Two things are derived from them: the slope of a tensor's measured rate-distortion curve, and a tensor's place in its model.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from quantlab.evaluation.evaluation_record import Against, EvaluationRecord
from quantlab.report.pack_report import PackReport

LEAST_APART = 0.03
"""Smallest distance of a point from the chosen one, as a share of its bytes: two roundings of one grid differ by 1 to 2 %."""
SUFFIX = ".weight"
_LAYERED = re.compile(r"(?P<stack>(?:[^.]+\.)*?)(?P<layer>\d{1,6})\.(?P<role>.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFacts:
    """One quantized matrix. Only a report knows the bytes of a trellis-coded tensor: in the file all share one stream."""

    name: str
    shape: tuple[int, ...]
    width_bits: int
    """Width of the codes' container."""
    bytes: int | None = None
    bpw: float | None = None
    """8 · bytes / weights."""
    predicted_kl: float | None = None
    """Nats per token."""
    code_bytes: int = 0
    """The coded stream, which is part of `bytes`; 0 where it is not known."""
    points: tuple[tuple[int, float], ...] = ()
    """(bytes, predicted_kl) of other roundings that the search measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """Facts that are read from the artifact itself."""

    sha256: str
    bytes: int
    size_breakdown: dict[str, int]
    n_params: int
    tensors: tuple[TensorFacts, ...]
    method: str = ""
    checkpoint: str = ""
    """Fingerprint of the model that was packed."""
    about: dict[str, Any] = field(default_factory=dict)
    """Model, tokenizer, origin and producer, from the manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One packed model. At least one of `file` and `report` is there, and the parts that are there belong to the same file."""

    path: str
    file: FileFacts | None = None
    report: PackReport | None = None
    evaluation: EvaluationRecord | None = None

    def __post_init__(self) -> None:
        assert self.file or self.report

    @property
    def method(self) -> str:
        """Name of the method; empty where it is not known."""
        return self.report.method if self.report else self.file.method if self.file else ""

    @property
    def artifact_bytes(self) -> int:
        """Bytes of the file; as reported where only the report is there."""
        return self.file.bytes if self.file else self.report.artifact_bytes if self.report else 0

    @property
    def total_bytes(self) -> int:
        """Bytes of artifact and counted code."""
        return self.artifact_bytes + (self.report.code_bytes if self.report else 0)

    @property
    def size_breakdown(self) -> dict[str, int]:
        """Bytes of codes, scales and the other parts; their sum is artifact_bytes."""
        return self.file.size_breakdown if self.file else self.report.size_breakdown if self.report else {}

    @property
    def n_params(self) -> int:
        """Number of parameters of the model."""
        return self.file.n_params if self.file else self.report.n_params if self.report else 0

    @property
    def tensors(self) -> tuple[TensorFacts, ...]:
        """Quantized matrices, from the report where there is one, else from the file."""
        if self.report is None:
            return self.file.tensors if self.file else ()
        keys = ("name", "shape", "width_bits", "bytes", "bpw", "predicted_kl", "code_bytes", "points")
        return tuple(TensorFacts(**{key: getattr(t, key) for key in keys}) for t in self.report.tensors)

    @property
    def against(self) -> Against | None:
        """The comparison with a reference model, if the evaluation has one."""
        return self.evaluation.against if self.evaluation else None

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons why the result is not valid; empty if its size and its score both stand."""
        found = []
        if self.report is None:
            found.append("no report")
        elif self.total_bytes > self.report.budget_bytes:
            found.append(f"{self.total_bytes - self.report.budget_bytes:,} bytes over the budget")
        if self.file is None:
            found.append("the artifact is not here")
        elif self.report and not self.report.artifact_sha256:
            found.append("the report does not identify the file that was decoded")
        if self.evaluation is None:
            found.append("not evaluated")
        return (*found, *(self.evaluation.problems if self.evaluation else ()))


def slope_of(tensor: TensorFacts) -> float | None:
    """Return the nats per token that one more byte would save at the chosen point of a tensor's rate-distortion curve.

    A budget is spent best where all slopes are equal: then no byte would save more in another tensor. Between the nearest
    measured points log(predicted_kl) is taken as linear in bytes. None where the search measured nothing far enough from the
    chosen point, or where a larger rounding has a higher predicted KL.
    """
    if not tensor.bytes or not tensor.predicted_kl or tensor.predicted_kl <= 0:
        return None
    size, kl = tensor.bytes, tensor.predicted_kl
    below = max((p for p in tensor.points if p[0] <= (1 - LEAST_APART) * size and p[1] > 0), default=(size, kl))
    above = min((p for p in tensor.points if p[0] >= (1 + LEAST_APART) * size and p[1] > 0), default=(size, kl))
    if below[0] >= above[0] or below[1] <= above[1]:
        return None
    return kl * math.log(below[1] / above[1]) / (above[0] - below[0])


def chosen_slope(tensors: Sequence[TensorFacts]) -> float | None:
    """Return the median of the tensors' slopes, about the one slope that the search ended at; None where none is known."""
    slopes = [slope for t in tensors if (slope := slope_of(t)) is not None]
    return median(slopes) if slopes else None


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a tensor in its model: `blocks.3.mlp.fc.weight` is layer 3 of the stack `blocks`, with the role `mlp.fc`."""

    stack: str
    """Name before the layer's number; empty where there is none."""
    layer: int | None
    role: str


def place_of(name: str) -> Place:
    """Return stack, layer and role of a tensor, from its name.

    >>> place_of("blocks.3.mlp.fc.weight"), place_of("tok_emb.weight")
    (Place(stack='blocks', layer=3, role='mlp.fc'), Place(stack='', layer=None, role='tok_emb'))
    """
    match = _LAYERED.fullmatch(name)
    if match is None:
        return Place("", None, name.removesuffix(SUFFIX))
    return Place(match["stack"].rstrip("."), int(match["layer"]), match["role"].removesuffix(SUFFIX))
