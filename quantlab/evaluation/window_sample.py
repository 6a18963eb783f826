"""Windows of an evaluation that are kept with their losses while it scores, so that the model is probed on them afterwards.

Letters: B windows, T tokens of the longest, n scored tokens.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.evaluation.windows import Windows, read_windows

MOST_SHARE = 0.03
"""Largest share of an evaluation's forward passes that its probes may take, but for the smallest sample."""
FORWARDS = 6
"""Forward passes over the sample that the probes take (sampled_probes)."""
MOST_PAIRS = 4
"""Pairs of neighbouring windows in the largest sample; the smallest has one."""


class WindowSample:
    """Pairs of neighbouring windows, spread over a process' share of an evaluation, and the losses that were scored on them.

    Neighbours hold each other's future in mode sliding. In each part of the share one of the longer windows is drawn, by a seed
    that should depend on the model and the tokens: a model that behaves in known places is probed in others.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.ids_BT = torch.zeros(0, 0, dtype=torch.int64)
        """Tokens as the model reads them, with zeros after short windows."""
        self.length_B = torch.zeros(0, dtype=torch.int64)
        """Number of tokens of each window."""
        self.rows = torch.zeros(0, dtype=torch.int64)
        """Flat places among the B * T predictions that were scored, [n]."""
        self.targets = torch.zeros(0, dtype=torch.int64)
        """Tokens that they predict, [n]."""
        self._positions: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._nats: NDArray[np.float64] = np.zeros(0)

    def choose(self, stream: NDArray[np.integer], windows: Windows, share: slice) -> None:
        """Choose the windows of a share, before it is scored."""
        chosen = _spread(windows.length[share], np.random.default_rng(self.seed)) + share.start
        few = Windows(windows.start[chosen], windows.length[chosen], windows.first[chosen])
        ids_BT, self._positions, rows = read_windows(stream, few)
        self.ids_BT, self.rows = torch.from_numpy(ids_BT), torch.from_numpy(rows)
        self.length_B = torch.from_numpy(few.length)
        self.targets = torch.from_numpy(stream[self._positions].astype(np.int64))
        self._nats = np.full(len(self._positions), np.nan)

    def enter(self, positions: NDArray[np.int64], nats: NDArray[np.floating]) -> None:
        """Keep the losses at the sample's positions among those of a scored batch, which ascend."""
        low, high = np.searchsorted(self._positions, (positions[0], positions[-1] + 1))
        self._nats[low:high] = nats[np.searchsorted(positions, self._positions[low:high])]

    @property
    def nats(self) -> Tensor:
        """Losses as they were scored, float64 [n]; NaN where another process scored them."""
        return torch.from_numpy(self._nats)

    def __len__(self) -> int:
        return len(self.length_B)


def _spread(length_W: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the windows of the sample, ascending, each once: one of each part with half its longest length or more."""
    count = len(length_W)
    pairs = int(np.clip(MOST_SHARE * count / (2 * FORWARDS), 1, MOST_PAIRS))
    edges = np.arange(pairs + 1) * count // pairs
    chosen: set[int] = set()
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        long = low + np.flatnonzero(2 * length_W[low:high] >= length_W[low:high].max())
        one = int(generator.choice(long))
        chosen |= {one, one + 1 if one + 1 < count else max(0, one - 1)}
    return np.array(sorted(chosen))
