"""The best choice of one measured point per tensor under any number of bytes.

Merging the tensors one by one and keeping only states that no other state beats in both bytes and predicted_kl gives the exact
trade-off curve of the whole model: every Lagrangian solution lies on it, and so do the swaps that fill the gaps between them
(multiple-choice knapsack by dynamic programming on the Pareto set; Dyer, Kayal and Walker 1984). Above MAX_STATES states the
curve is thinned to one state per bucket of bytes; a state keeps its true bytes, so a choice is never over its budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import BudgetError

MAX_STATES = 1 << 14


@dataclass(frozen=True, slots=True)
class Point:
    """One way to store one tensor: what it costs and what it loses."""

    bits: int
    size: float
    """Of the grid, in the unit of its family: see search.families."""
    bytes: int
    predicted_kl: float


@dataclass(frozen=True, slots=True)
class _Merge:
    """For each state: the state before this tensor was merged, and the tensor's point."""

    parent: NDArray[np.int32]
    point: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TradeOff:
    """The trade-off curve of a whole model: bytes rising, predicted_kl falling."""

    bytes: NDArray[np.int64]
    predicted_kl: NDArray[np.float64]
    _merges: tuple[_Merge, ...]

    @property
    def smallest_bytes(self) -> int:
        """Fewest bytes that any choice needs."""
        return int(self.bytes[0])

    def best(self, budget_bytes: int) -> list[int]:
        """Index of the chosen point of each tensor: the least predicted_kl within the budget.

        Raises:
            BudgetError: no choice fits; carries the smallest size.
        """
        state = int(np.searchsorted(self.bytes, budget_bytes, side="right")) - 1
        if state < 0:
            raise BudgetError(
                f"{budget_bytes} bytes are fewer than the smallest choice, {self.smallest_bytes}",
                smallest_bytes=self.smallest_bytes,
            )
        choice = []
        for merge in reversed(self._merges):
            choice.append(int(merge.point[state]))
            state = int(merge.parent[state])
        return choice[::-1]


def trade_off(tensors: Sequence[Sequence[Point]]) -> TradeOff:
    """Trade-off curve over all choices of one point per tensor; every tensor needs at least one point."""
    size, loss = np.zeros(1, np.int64), np.zeros(1)
    merges = []
    for points in tensors:
        all_size = (size[:, None] + np.array([p.bytes for p in points])).ravel()
        all_loss = (loss[:, None] + np.array([p.predicted_kl for p in points])).ravel()
        kept = _thin(all_size, all_loss, _undominated(all_size, all_loss))
        merges.append(_Merge((kept // len(points)).astype(np.int32), (kept % len(points)).astype(np.int32)))
        size, loss = all_size[kept], all_loss[kept]
    return TradeOff(size, loss, tuple(merges))


def _undominated(size: NDArray[np.int64], loss: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices, by rising size, of entries with less loss than every smaller one."""
    order = np.lexsort((loss, size))
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], loss[order][:-1])))
    return order[loss[order] < best_before]


def _thin(size: NDArray[np.int64], loss: NDArray[np.float64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most MAX_STATES + 1 of the sorted indices: the smallest, and the last (of least loss) in each bucket of bytes."""
    if len(kept) <= MAX_STATES:
        return kept
    span = int(size[kept[-1]] - size[kept[0]]) + 1
    bucket = (size[kept] - size[kept[0]]) * MAX_STATES // span
    last = np.append(np.flatnonzero(np.diff(bucket)), len(kept) - 1)
    thinned: NDArray[np.int64] = kept[np.union1d([0], last)]
    return thinned
