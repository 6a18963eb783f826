"""One packed model as it stands in a comparison: its file, its report, its evaluation, whichever of them are there.

What one more byte would save: the slope of a tensor's measured rate-distortion curve at the point that was chosen.

A budget is spent best where all slopes are equal: then no byte would save more in another tensor.


Where a tensor sits in its model, read off its name."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from quantlab.evaluation.evaluation_record import Against, EvaluationRecord
from quantlab.report.pack_report import PackReport


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFacts:
    """One quantized matrix. Where there is no report, a trellis-coded tensor has no bytes of its own: all share a stream."""

    name: str
    shape: tuple[int, ...]
    width_bits: int
    """Width of the codes' container."""
    bytes: int | None = None
    bpw: float | None = None
    """8 · bytes / weights."""
    predicted_kl: float | None = None
    """Predicted cost, nats per token."""
    code_bytes: int = 0
    """Of `bytes` the coded stream; 0 where nothing tells."""
    points: tuple[tuple[int, float], ...] = ()
    """(bytes, predicted_kl) of other roundings that the search measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """What the artifact itself tells."""

    sha256: str
    bytes: int
    size_breakdown: dict[str, int]
    n_params: int
    tensors: tuple[TensorFacts, ...]
    method: str = ""
    checkpoint: str = ""
    """Fingerprint of the model that was packed."""
    about: dict[str, Any] = field(default_factory=dict)
    """Model, tokenizer, origin and producer as the manifest has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file of a comparison; at least one of `file` and `report` is there, and all that are belong together."""

    path: str
    file: FileFacts | None = None
    report: PackReport | None = None
    evaluation: EvaluationRecord | None = None

    def __post_init__(self) -> None:
        assert self.file or self.report

    @property
    def method(self) -> str:
        """trellis, gptq or rtn; empty where nothing tells."""
        return self.report.method if self.report else self.file.method if self.file else ""

    @property
    def artifact_bytes(self) -> int:
        """Of the file on disk; as reported where only the report is here."""
        return self.file.bytes if self.file else self.report.artifact_bytes if self.report else 0

    @property
    def total_bytes(self) -> int:
        """Artifact and counted code."""
        return self.artifact_bytes + (self.report.code_bytes if self.report else 0)

    @property
    def size_breakdown(self) -> dict[str, int]:
        """codes, scales and so on; they add up to artifact_bytes."""
        return self.file.size_breakdown if self.file else self.report.size_breakdown if self.report else {}

    @property
    def n_params(self) -> int:
        """Parameters of the model."""
        return self.file.n_params if self.file else self.report.n_params if self.report else 0

    @property
    def tensors(self) -> tuple[TensorFacts, ...]:
        """The quantized matrices: from the report, which knows most, else from the file."""
        if self.report is None:
            return self.file.tensors if self.file else ()
        keys = ("name", "shape", "width_bits", "bytes", "bpw", "predicted_kl", "code_bytes", "points")
        return tuple(TensorFacts(**{key: getattr(t, key) for key in keys}) for t in self.report.tensors)

    @property
    def against(self) -> Against | None:
        """What the evaluation says beside a reference."""
        return self.evaluation.against if self.evaluation else None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the result does not stand; empty where score and size both survive."""
        found = []
        if self.report is None:
            found.append("no report")
        elif self.total_bytes > self.report.budget_bytes:
            found.append(f"{self.total_bytes - self.report.budget_bytes:,} bytes over the budget")
        if self.file is None:
            found.append("the artifact is not here")
        elif self.report and not self.report.artifact_sha256:
            found.append("the report does not say which file was decoded again")
        if self.evaluation is None:
            found.append("not evaluated")
        return tuple(found)


LEAST_APART = 0.03
"""Points closer to the chosen one, as a share of its bytes, are passed over: two roundings of one grid differ by 1 to 2 %."""


def slope_of(tensor: TensorFacts) -> float | None:
    """Nats per token that one more byte would save: log(predicted_kl) is linear in bytes between the nearest measured points.

    None where the search measured nothing far enough from the chosen point, or a larger rounding cost more.
    """
    if not tensor.bytes or not tensor.predicted_kl or tensor.predicted_kl <= 0:
        return None
    size, cost = tensor.bytes, tensor.predicted_kl
    below = max((p for p in tensor.points if p[0] <= (1 - LEAST_APART) * size and p[1] > 0), default=(size, cost))
    above = min((p for p in tensor.points if p[0] >= (1 + LEAST_APART) * size and p[1] > 0), default=(size, cost))
    if below[0] >= above[0] or below[1] <= above[1]:
        return None
    return cost * math.log(below[1] / above[1]) / (above[0] - below[0])


def chosen_slope(tensors: Sequence[TensorFacts]) -> float | None:
    """The median of the tensors' slopes: about the one slope that the search ended at; None where none is known."""
    slopes = [slope for t in tensors if (slope := slope_of(t)) is not None]
    return median(slopes) if slopes else None


_LAYERED = re.compile(r"(?P<stack>(?:[^.]+\.)*?)(?P<layer>\d{1,6})\.(?P<role>.+)", re.DOTALL)
SUFFIX = ".weight"


@dataclass(frozen=True, slots=True)
class Place:
    """`blocks.3.mlp.fc.weight` is layer 3 of `blocks`, role `mlp.fc`."""

    stack: str
    """What comes before the layer's number; empty where there is none."""
    layer: int | None
    role: str


def place_of(name: str) -> Place:
    """Stack, layer and role of a tensor.

    >>> place_of("blocks.3.mlp.fc.weight"), place_of("tok_emb.weight")
    (Place(stack='blocks', layer=3, role='mlp.fc'), Place(stack='', layer=None, role='tok_emb'))
    """
    match = _LAYERED.fullmatch(name)
    if match is None:
        return Place("", None, name.removesuffix(SUFFIX))
    return Place(match["stack"].rstrip("."), int(match["layer"]), match["role"].removesuffix(SUFFIX))
