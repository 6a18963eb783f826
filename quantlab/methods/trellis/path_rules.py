"""What the search for a path through a trellis needs to know: allowed moves, codes, and what symbols cost, as plain arrays.

The trellis itself is a rule of the format (quantlab.format_rules). feedback.py, whose compiled functions read these arrays, has
the legend.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.format_rules import COLUMNS, MAX_CLASS, OFFSET, SCALAR_CLASSES, code_range, next_states, shifts_of, tables_of


class PathTrellis(NamedTuple):
    """The codes that a path may take."""

    before_S2: NDArray[np.int64]
    """The two states that lead to each state."""
    subset_S2: NDArray[np.int64]
    """Subset, code mod 4, with which each of them does."""
    low_4: NDArray[np.float32]
    """Least code of each subset."""
    high_4: NDArray[np.float32]
    """Largest code of each subset."""
    spacing: float
    """Distance of the codes that bypass the trellis: 2, or 1 without one."""
    least: float
    """Least code that bypasses the trellis, in units of `spacing`."""
    most: float
    """Largest code that bypasses the trellis, in units of `spacing`."""
    scalar_classes: int
    """Scale classes below it bypass the trellis."""


class Prices(NamedTuple):
    """Prices of symbols in the cost of a path, in squared steps. Raw bits cost all codes of a weight the same, so nothing."""

    of_symbol: NDArray[np.float32]
    """Price of each symbol in each table, one table after the other."""
    zero_C: NDArray[np.int32]
    """Place of symbol 0 in `of_symbol` for each scale class."""
    share_C: NDArray[np.float32]
    """2**-raw bits of each scale class: a symbol times it, rounded down, is what the tables code."""


class PathRules(NamedTuple):
    """What a path may be, and what it costs."""

    trellis: PathTrellis
    prices: Prices


def path_rules(states: int, bits: int, lengths: NDArray[np.float32], slope: float) -> PathRules:
    """Return the rules of a trellis.

    Args:
        states: number of states, 1 for plain rounding.
        bits: width of the codes.
        lengths: bits of each symbol in each table, float32 [28, 256].
        slope: squared steps that a bit may cost.
    """
    return PathRules(_trellis(states, bits), _prices(lengths, slope))


def _trellis(states: int, bits: int) -> PathTrellis:
    low, high = code_range(bits, states)
    before_S2, subset_S2 = _moves_into(states)
    subset = np.arange(4)
    low_4, high_4 = low + (subset - low) % 4, high - (high - subset) % 4
    spacing = 1 if states == 1 else 2
    least, most, scalar = -(-low // spacing), high // spacing, MAX_CLASS + 1 if states == 1 else SCALAR_CLASSES
    return PathTrellis(
        before_S2, subset_S2, _float32(low_4), _float32(high_4), float(spacing), float(least), float(most), scalar
    )


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _moves_into(states: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the two states before each state, and the subsets of the codes between, in rising order of these; int64 [S, 2]."""
    moves = sorted((int(next_states(states)[q, z]), 2 * z + q % 2, q) for q in range(states) for z in (0, 1))
    table = np.array(moves, np.int64).reshape(states, 2, 3)
    return np.ascontiguousarray(table[:, :, 2]), np.ascontiguousarray(table[:, :, 1])


def _prices(bits: NDArray[np.float32], slope: float) -> Prices:
    classes_C = np.arange(MAX_CLASS + 1)
    zero_C = (COLUMNS * tables_of(classes_C) + OFFSET).astype(np.int32)
    return Prices((bits * np.float32(slope)).ravel(), zero_C, _float32(2.0 ** -shifts_of(classes_C)))
