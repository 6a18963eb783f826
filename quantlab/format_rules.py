"""The trellises of entropy-coded trellis quantization: which codebook half each weight of a path may use.

A path visits weights one after another; a state remembers the last few decisions. The grid (t - ½)·step, t a whole number, is
split by t mod 4 into four subsets; in state s only codes t = 2k + (s & 1) are allowed, and the parity of k chooses the next
state. So the coder sees a grid of twice the step, while the decisions of neighbours keep the used points far apart (union
codebooks of Marcellin and Fischer 1990; entropy-coded by Fischer and Wang 1992; codes of Ungerboeck 1982, one-dimensional).

Paths run along anti-diagonals: the state of weight (i, j) follows from that of (i-1, j+1); row 0 and the last column start in
state 0. One state is the plain scalar grid t·step.

Weights of narrow classes (classes.py) stay off the path: their codes are even, t = 2k, whatever the state, which they pass on
unchanged along the anti-diagonal. Such a weight is t·step, all others on a trellis are (t - ½)·step, because a grid without
zero costs bits where weights are smaller than steps.
"""

import numpy as np
from numpy.typing import NDArray

PARITY_CHECKS = {4: (0o5, 0o2), 8: (0o13, 0o04), 16: (0o23, 0o04), 32: (0o45, 0o10)}
"""(h0, h1) by number of states."""
STATES = (1, *PARITY_CHECKS)
"""Numbers of states that a tensor's trellis may have."""


def next_states(states: int) -> NDArray[np.uint8]:
    """State after each (state, parity of k), uint8 [states, 2]: a feedback shift register of log2(states) bits."""
    if states == 1:
        return np.zeros((1, 2), np.uint8)
    h0, h1 = PARITY_CHECKS[states]
    table = np.zeros((states, 2), np.uint8)
    for state in range(states):
        for z1 in (0, 1):
            table[state, z1] = (state ^ ((state & 1) * h0) ^ (z1 * h1)) >> 1
    return table
