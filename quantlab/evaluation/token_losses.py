"""The loss of each token of a stream, kept while it is scored.

Letters: N tokens in the stream, n scored tokens of a batch.
"""

import numpy as np
from numpy.typing import NDArray


class TokenLosses:
    """Losses by position, for comparisons that are paired by token."""

    def __init__(self, count: int) -> None:
        """Make room for a stream of `count` tokens."""
        self.nats_N = np.full(count, np.nan, dtype=np.float32)
        """Loss of the token at each position, [N]; NaN where none is scored."""

    def enter(self, positions: NDArray[np.int64], nats: NDArray[np.floating]) -> None:
        """Keep the losses at these positions, [n]."""
        self.nats_N[positions] = nats
