"""Whether calibration text has collapsed: text of few ids, or in loops, says little of what the model does on any other text.

Letters: N sequences, T tokens in each.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST_PERIOD = 32
"""Most tokens of a loop."""
LEAST_RUN = 16
"""Fewest tokens that repeat what came a period before and count as a loop; two more rounds of a longer one."""
MOST_LOOPED = 0.25
"""Share of tokens in loops beyond which text has collapsed."""
FEWEST_IDS = 10
"""Effective number of ids below which it has: English by single bytes has about 20. Small vocabularies have an eighth of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collapse:
    """How little text says by its ids alone."""

    distinct_ids: int
    """Number of ids that occur."""
    effective_ids: float
    """Exponential of the entropy of the ids' frequencies: as many equally frequent ids have the same entropy."""
    looped: float
    """Share of tokens that continue a loop."""
    is_collapsed: bool
    """Whether there are too few ids or too many loops."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    def line(self) -> str:
        """Return the figures as one line."""
        return (
            f"{self.distinct_ids:,} distinct ids, as much as {self.effective_ids:,.1f} equally frequent ones; "
            f"{100 * self.looped:.1f} % of the tokens continue a loop"
        )


def measure_collapse(ids_NT: NDArray[np.integer], vocab_size: int) -> Collapse:
    """Return how far sequences, integers [N, T], have collapsed; a vocab_size of 0 stands for one that is not known."""
    counts = np.unique(ids_NT, return_counts=True)[1]
    p = counts / counts.sum()
    effective, looped = float(np.exp(-(p * np.log(p)).sum())), float(_in_loops(ids_NT).mean())
    return Collapse(
        distinct_ids=len(counts),
        effective_ids=effective,
        looped=looped,
        is_collapsed=effective < min(FEWEST_IDS, vocab_size / 8 or FEWEST_IDS) or looped > MOST_LOOPED,
    )


def _in_loops(ids_NT: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which tokens are in a run of tokens that each equal the one a period before, bool [N, T]."""
    N, T = ids_NT.shape
    found_NT = np.zeros((N, T), np.bool_)
    for period in range(1, min(LONGEST_PERIOD, T - 1) + 1):
        # a column of False before and after bounds every run within its sequence
        equal = np.zeros((N, T + 2), np.bool_)
        equal[:, period + 1 : -1] = ids_NT[:, period:] == ids_NT[:, :-period]
        changes = np.flatnonzero(np.diff(equal.ravel().astype(np.int8)))
        start, stop = changes[::2] + 1, changes[1::2] + 1  # in the raveled array
        is_loop = stop - start >= max(LEAST_RUN, 2 * period)
        marks = np.zeros(equal.size + 1, np.int32)
        marks[start[is_loop]], marks[stop[is_loop]] = 1, -1
        found_NT |= np.cumsum(marks[:-1]).reshape(N, T + 2)[:, 1:-1].astype(np.bool_)
    return found_NT
