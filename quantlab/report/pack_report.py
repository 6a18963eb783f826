"""The report of one packing: what went in, where every byte went, what it is predicted to cost."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantlab.fields import read_fields, read_json


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorReport:
    """One quantized matrix."""

    name: str
    shape: tuple[int, ...]
    width_bits: int
    """Width of the codes' container; the coder decides the bytes on disk."""
    grid_size: float
    """Row grids: the clip, the grid's end in root mean squares of a row. Shaped grids: c, in square roots of nats."""
    codec: str
    bytes: int
    """Coded stream, its line in the section table, and its scales or shapes before their codec."""
    bpw: float
    """8 · bytes / weights."""
    predicted_kl: float
    """Predicted cost, nats per token."""
    code_bytes: int = 0
    """The coded stream alone; of all tensors they add up to the codes of size_breakdown, but for the coder's own state."""
    points: tuple[tuple[int, float], ...] = ()
    """(bytes, predicted_kl) of other roundings that the search measured, none worse than another in both, fewest bytes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """One packing; written as JSON beside the artifact."""

    checkpoint: str
    artifact: str
    method: str
    effort: dict[str, int]
    """Of the trellis method: states, and batches of tuning (tune_steps)."""
    tuned: dict[str, Any]
    """KL on held-out calibration sequences, nats per token, before and after tuning, and whether the tuned values were kept."""
    seed: int
    widths: tuple[int, ...]
    budget_bytes: int
    artifact_bytes: int
    code_bytes: int
    total_bytes: int
    slack_bytes: int
    n_params: int
    bpw: float
    """8 · artifact_bytes / n_params: everything counted, also header, scales and kept tensors."""
    predicted_kl: float
    """Sum of the tensors' predicted costs, nats per token."""
    size_breakdown: dict[str, int]
    """codes, scales, kept, manifest, framing; they add up to artifact_bytes."""
    code_files: dict[str, int]
    calibration: dict[str, Any]
    tensors_sha256: str
    """Digest of the measured tensors; a fresh process decoded the file to the same, or there would be no report."""
    timings_s: dict[str, float]
    tensors: tuple[TensorReport, ...] = field(default=())
    kept: tuple[dict[str, Any], ...] = field(default=())
    """Tensors that were not quantized: name, shape, stored dtype."""
    producer: str = ""
    artifact_sha256: str = ""
    """Of the file that a fresh process decoded; empty in reports of quantlab 0.1.0 before it had `compare`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def to_json(self) -> bytes:
        """The report file."""
        return (json.dumps(self.to_dict(), indent=2) + "\n").encode()


def report_path(artifact: Path) -> Path:
    """Where the report of an artifact lies unless `pack --report` said otherwise."""
    return artifact.with_name(f"{artifact.stem}.report.json")


def read_report(path: Path) -> PackReport:
    """The report at `path`. ReportError if it is missing or damaged."""
    return read_fields(PackReport, read_json(path), str(path))
