"""One packed model as it stands in a comparison: its file, its report, its evaluation, whichever of them are there."""

from dataclasses import dataclass, field
from typing import Any

from quantlab.report.evaluation import Against, EvaluationRecord
from quantlab.report.packing import PackReport


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
    distortion: float | None = None
    """Predicted cost, nats per token."""
    code_bytes: int = 0
    """Of `bytes` the coded stream; 0 where nothing tells."""
    points: tuple[tuple[int, float], ...] = ()
    """(bytes, distortion) of other roundings that the search measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """What the artifact itself tells."""

    sha256: str
    bytes: int
    bytes_by_kind: dict[str, int]
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
    def bytes_by_kind(self) -> dict[str, int]:
        """codes, scales and so on; they add up to artifact_bytes."""
        return self.file.bytes_by_kind if self.file else self.report.bytes_by_kind if self.report else {}

    @property
    def n_params(self) -> int:
        """Parameters of the model."""
        return self.file.n_params if self.file else self.report.n_params if self.report else 0

    @property
    def tensors(self) -> tuple[TensorFacts, ...]:
        """The quantized matrices: from the report, which knows most, else from the file."""
        if self.report is None:
            return self.file.tensors if self.file else ()
        keys = ("name", "shape", "width_bits", "bytes", "bpw", "distortion", "code_bytes", "points")
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
