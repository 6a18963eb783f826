"""What files of several sizes would lose: the result of quantlab estimate and of quantlab sensitivity."""

import math
from dataclasses import asdict, dataclass
from typing import Any


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
    """Nats per token."""
    low: float
    high: float
    """Band in which the measured KL should be: wider at low rates, where errors are too large for the second order."""
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)
