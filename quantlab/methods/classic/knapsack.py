"""The best choice of one measured point per tensor under any number of bytes: a multiple-choice knapsack.

Merging the tensors one by one and keeping only states that no other state beats in both bytes and predicted KL gives the exact
trade-off curve of the whole model: every Lagrangian solution lies on it, and so do the swaps that fill the gaps between them
(dynamic programming on the Pareto set; Dyer, Kayal and Walker 1984). Above MAX_STATES states the curve is thinned to one state
per bucket of bytes; a state keeps its true bytes, so a choice never exceeds its budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import BudgetError
from quantlab.methods.method import Point

MAX_STATES = 1 << 14


@dataclass(frozen=True, slots=True)
class _Merge:
    """The origin of each state of the curve when one tensor was merged."""

    parent: NDArray[np.int32]
    """Index of the state before."""
    point: NDArray[np.int32]
    """Index of the tensor's point."""


@dataclass(frozen=True, slots=True)
class TradeOff:
    """The trade-off curve of a whole model: from state to state bytes rise and predicted KL falls."""

    bytes: NDArray[np.int64]
    """Bytes of each state."""
    predicted_kl: NDArray[np.float64]
    """Nats per token of each state."""
    _merges: tuple[_Merge, ...]

    @property
    def smallest_bytes(self) -> int:
        """Fewest bytes that any choice needs."""
        return int(self.bytes[0])

    def best(self, budget_bytes: int) -> list[int]:
        """Return the index of the chosen point of each tensor: the least predicted KL within the budget.

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
    """Return the trade-off curve over all choices of one point per tensor; every tensor needs at least one point."""
    size, loss = np.zeros(1, np.int64), np.zeros(1)
    merges = []
    for points in tensors:
        all_size = (size[:, None] + np.array([p.bytes for p in points])).ravel()
        all_loss = (loss[:, None] + np.array([p.predicted_kl for p in points])).ravel()
        best = _thin(all_size, _undominated(all_size, all_loss))
        merges.append(_Merge((best // len(points)).astype(np.int32), (best % len(points)).astype(np.int32)))
        size, loss = all_size[best], all_loss[best]
    return TradeOff(size, loss, tuple(merges))


def _undominated(size: NDArray[np.int64], loss: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices, by rising size, of the entries with less loss than every smaller one."""
    order = np.lexsort((loss, size))
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], loss[order][:-1])))
    return order[loss[order] < best_before]


def _thin(size: NDArray[np.int64], states: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most MAX_STATES + 1 of the sorted indices: the first, and the last (of least loss) in each bucket of bytes."""
    if len(states) <= MAX_STATES:
        return states
    span = int(size[states[-1]] - size[states[0]]) + 1
    bucket = (size[states] - size[states[0]]) * MAX_STATES // span
    last = np.append(np.flatnonzero(np.diff(bucket)), len(states) - 1)
    thinned: NDArray[np.int64] = states[np.union1d([0], last)]
    return thinned
