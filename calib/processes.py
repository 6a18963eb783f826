"""The processes that share a calibration or a tuning, such as trainer.world.World; this room does not start them."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Processes(Protocol):
    """The processes that share the work, such as trainer.world.World."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def sum_(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to replace `tensor` by its sum over all processes; return a function that waits for the sum."""


class Alone:
    """A single process."""

    rank, size = 0, 1

    def sum_(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Return a function that returns the tensor as it is."""
        return lambda: tensor
