"""What files of several sizes would lose: the result of quantlab estimate and of quantlab sensitivity."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import ReportError
from quantlab.fields import read_fields, read_json


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEstimate:
    """One tensor of a file that was estimated."""

    name: str
    shape: tuple[int, int]
    bytes: int
    """Coded stream."""
    predicted_kl: float
    """Nats per token."""
    kl_per_kilobyte: float | None
    """Nats per token that 1,000 more bytes here would save, from the sizes beside this one; None where it is the only one."""

    @property
    def bpw(self) -> float:
        """Bits a weight."""
        return 8 * self.bytes / math.prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeEstimate:
    """What a file of one size would lose."""

    total_bytes: int
    bpw: float
    """8 · total_bytes / parameters."""
    predicted_kl: float
    """Nats per token, by statistics: below the measured one at low rates, where errors are too large for the second order."""
    kl: float
    """Nats per token that a packing should measure: of the very rounding, on held-out text, less what tuning buys."""
    low: float
    high: float
    """Band in which that should be."""
    tensors: tuple[TensorEstimate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimates:
    """What files of several sizes would lose, in ascending order of size."""

    checkpoint: str
    method: str
    smallest_bytes: int
    """Length of the smallest file that the method can make."""
    n_params: int
    points: tuple[SizeEstimate, ...]
    pack_seconds: float = 0.0
    """Forecast of a packing on this machine, whatever its size."""
    peak_memory_bytes: int = 0
    """Forecast of the largest memory of a packing."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a packing would give and take, before it is done."""

    outputs: tuple[str, ...]
    """Files that it would write."""
    method: str
    budget_bytes: int
    code_bytes: int
    """Counted code."""
    smallest_bytes: int
    """Length of the smallest artifact that the method can make."""
    point: SizeEstimate
    """The artifact: the budget without the counted code."""
    calibration_tokens: int
    """Tokens that the forecast was measured on."""
    packing_tokens: int
    """Tokens that the packing will be measured on."""
    stages_s: dict[str, float]
    """Seconds of each stage."""
    total_s: float
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def read_estimates(path: Path) -> Estimates:
    """Return what `quantlab estimate --json` printed. ReportError if it is missing, damaged or contradicts itself."""
    found = read_fields(Estimates, read_json(path), str(path))
    sizes = [point.total_bytes for point in found.points]
    names = {tuple(tensor.name for tensor in point.tensors) for point in found.points}
    numbers = [n for point in found.points for n in (point.predicted_kl, point.kl, point.low, point.high)]
    if sizes != sorted(set(sizes)) or (sizes and sizes[0] < 1):
        raise ReportError(f"{path}: sizes must be positive and ascend, got {sizes}")
    if len(names) > 1:
        raise ReportError(f"{path}: the sizes have different tensors")
    if any(len(t.shape) != 2 or min(t.shape) < 1 or t.bytes < 0 for point in found.points for t in point.tensors):
        raise ReportError(f"{path}: a tensor must have two positive dimensions, and no fewer than 0 bytes")
    if found.n_params < 1 or any(not (math.isfinite(n) and n >= 0) for n in numbers):
        raise ReportError(f"{path}: parameters and KL must be positive and finite")
    return found
