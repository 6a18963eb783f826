"""Constants and rules of the artifact format that the coder, the kernels, the quantizers and the decoder share.

Each fact stands here once. `docs/format.md` says the same in words. `artifact/standalone.py`, which imports nothing of
quantlab, repeats the numbers, and a test compares what both decode. Numba caches a compiled function under the date of its own
file: where such a function reads a constant of this file, it keeps the old value after a change. So constants are arguments of
compiled functions, or a note beside the function names those that are not.

O: rows, I: columns.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Integers = TypeVar("Integers", bound=Any)
"""A numpy array or a torch tensor of integers."""

# Codes

WIDTHS = tuple(range(2, 9))
"""Code widths in bits that any coded tensor may have."""
WIDE = 16
"""Code width of trellis tensors whose codes do not fit 8 bits: rows that matter most have many steps."""


def code_limit(bits: int) -> int:
    """Return the largest code of `bits` bits, 2**(bits-1) - 1: codes are symmetric around 0."""
    return int(2 ** (bits - 1) - 1)


def code_range(bits: int, states: int) -> tuple[int, int]:
    """Return the lowest and the highest code of `bits` bits on a trellis of `states` states.

    On a trellis codes come in pairs 2k and 2k + 1, so the lowest is even.
    """
    limit = code_limit(bits)
    return (-limit if states == 1 else 1 - limit), limit


# Steps of a grid with row and column scales: 2**(log-step index / LOG_STEPS + (row unit + column unit) / SCALE_UNITS)

LOG_STEPS = 64
"""Log-steps in a power of two: the step of one index is 1.1 % larger than that of the index before."""
SCALE_UNITS = 4
"""Units of row and column scales in a power of two: 1.5 dB each."""

# Scale classes: the base-2 logarithm of a weight's root mean square in grid steps, in quarters

CLASSES_PER_POWER = 4
"""Scale classes in a power of two: weights of a class are twice as large as those four classes lower."""
MAX_CLASS = 83
"""Highest scale class: higher sums count as this one."""
SCALAR_CLASSES = 9
"""Number of the lowest scale classes, 0 to 8, whose weights bypass a trellis."""
TABLE_CLASSES = 28
"""Number of frequency tables in a set: one for each scale class 0 to 27. Higher classes share those of 24 to 27."""
_LAST_POWER = TABLE_CLASSES - CLASSES_PER_POWER  # first class of the last power of two that has tables of its own


def sum_classes(rows_O: Integers, columns_I: Integers) -> Integers:
    """Return the scale class of each weight, [O, I] in the shares' dtype: row share + column share, clipped to 0..MAX_CLASS."""
    classes_OI: Integers = (rows_O[:, None] + columns_I[None]).clip(0, MAX_CLASS)
    return classes_OI


def shifts_of(classes: Integers) -> Integers:
    """Return how many of the lowest bits of a symbol are sent raw, at most 14, for each scale class 0 to MAX_CLASS."""
    shifts: Integers = (classes.clip(_LAST_POWER, MAX_CLASS) - _LAST_POWER) // CLASSES_PER_POWER
    return shifts


def tables_of(classes: Integers) -> Integers:
    """Return which table of a set codes a symbol without its raw bits, below TABLE_CLASSES, for each scale class."""
    tables: Integers = classes - CLASSES_PER_POWER * shifts_of(classes)
    return tables


# Frequency tables

PROBABILITY_BITS = 12
TOTAL = 1 << PROBABILITY_BITS
"""Number of slots in a table, the sum of its frequencies."""
COLUMNS = 256
"""Number of columns of a table in counts, frequencies and lengths: the escape's, then those of the symbols -127 to 127."""
OFFSET = COLUMNS // 2
"""Column of symbol 0 in counts, frequencies and lengths."""
ESCAPE = -OFFSET
"""Symbol that stands for the escape: no support holds it."""

# Interleaved range coding

LANE_GROUP = 32
"""Number of neighbouring lanes that share words: the threads of a warp. There may be fewer where all lanes are one group."""
WORD_BITS = 16
LOWEST = 1 << WORD_BITS
"""Lowest state of a lane between two symbols, and its state where writing begins and reading ends."""


def lane_groups_of(lanes: int) -> int:
    """Return the number of lane groups that hold `lanes` lanes."""
    return -(-lanes // LANE_GROUP)


# Trellises of entropy-coded trellis quantization: which half of the codebook each weight of a path may use.
#
# A path visits weights one after another; a state remembers the last few decisions. The grid (t - ½)·step, t a whole number, is
# split by t mod 4 into four subsets; in state s only codes t = 2k + (s & 1) are allowed, and the parity of k chooses the next
# state. So the coder sees a grid of twice the step, while the decisions of neighbours keep the used points far apart (union
# codebooks of Marcellin and Fischer 1990; entropy-coded by Fischer and Wang 1992; codes of Ungerboeck 1982, one-dimensional).
#
# Each path starts in state 0. There are two orders of weights, PATHS. "columns": a path is a column, from its first row on.
# "blocks": the matrix is cut into blocks of PATH_BLOCK x PATH_BLOCK weights; a path visits the blocks of one anti-diagonal of
# blocks, from the uppermost on, and in each of them the weights of the same anti-diagonal, from its first row on. So row after
# row the state of path (block row + block column, row in block + column in block) moves on.
#
# Weights of the scale classes below SCALAR_CLASSES bypass the trellis: their codes are even, t = 2k, whatever the state, which
# passes on unchanged along the path. Such a weight is t·step, all others on a trellis are (t - ½)·step: a grid that
# does not contain zero costs bits where weights are smaller than about one step.

PARITY_CHECKS = {4: (0o5, 0o2), 8: (0o13, 0o04), 16: (0o23, 0o04), 32: (0o45, 0o10), 64: (0o103, 0o024), 256: (0o515, 0o362)}
"""Parity checks (h0, h1) by number of states."""
STATES = (1, *PARITY_CHECKS)
"""Numbers of states that a tensor's trellis may have."""
PATHS = ("blocks", "columns")
"""Orders of weights on the paths of a trellis."""
PATH_BLOCK = 32
"""Rows and columns of a block."""


def next_states(states: int) -> NDArray[np.uint8]:
    """Return the state after each (state, parity of k), uint8 [states, 2]: a feedback shift register of log2(states) bits."""
    if states == 1:
        return np.zeros((1, 2), np.uint8)
    h0, h1 = PARITY_CHECKS[states]
    table = np.zeros((states, 2), np.uint8)
    for state in range(states):
        for z1 in (0, 1):
            table[state, z1] = (state ^ ((state & 1) * h0) ^ (z1 * h1)) >> 1
    return table
