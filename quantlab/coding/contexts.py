"""Contexts of the entropy coder: the size of each weight in steps, as its row and its column predict it.

The scale class of a weight is the base-2 logarithm of its root mean square in grid steps, in quarters: four classes higher,
weights are twice as large. The class of weight (i, j) is rows_O[i] + columns_I[j], clipped to 0..MAX_CLASS.

Weights of the lowest SCALAR_CLASSES classes bypass a trellis. From class TABLE_CLASSES on, the lowest bits of a symbol are sent
raw, one bit more for each power of two: they are nearly uniform, and what is left of the symbol spreads as the symbols of a
lower class do, whose table it shares (format_rules.shifts_of and tables_of).

O: rows, I: columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import FormatError
from quantlab.format_rules import PATHS, STATES, shifts_of, sum_classes

MAX_SHARE = 1000
"""Largest magnitude of a row's or a column's share of the scale class."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TensorContext:
    """Everything that a decoder must know of one matrix before it reads the codes."""

    shape: tuple[int, int]
    """Rows O and columns I; 0 is allowed."""
    states: int
    """Number of states of the trellis, 1 for plain codes."""
    paths: str
    """Order of weights on the paths of the trellis, one of format_rules.PATHS."""
    rows_O: NDArray[np.int16]
    """Share of each row in the scale class, int16 [O], within ±MAX_SHARE."""
    columns_I: NDArray[np.int16]
    """Share of each column in the scale class, int16 [I], within ±MAX_SHARE."""
    tables: int
    """Number of the matrix' table set."""


def check_context(context: TensorContext) -> None:
    """Raise FormatError where a context contradicts itself."""
    rows_O, columns_I = context.rows_O, context.columns_I
    if rows_O.dtype != np.int16 or columns_I.dtype != np.int16:
        raise FormatError(f"scale classes of rows are {rows_O.dtype}, of columns {columns_I.dtype}, both must be int16")
    if (rows_O.shape, columns_I.shape) != ((context.shape[0],), (context.shape[1],)):
        raise FormatError(f"scale classes of {rows_O.shape} rows and {columns_I.shape} columns, the shape is {context.shape}")
    if context.states not in STATES:
        raise FormatError(f"a trellis has {context.states} states, allowed are {STATES}")
    if context.paths not in PATHS:
        raise FormatError(f"paths of a trellis are {context.paths!r}, allowed are {', '.join(PATHS)}")
    for name, shares in (("rows", rows_O), ("columns", columns_I)):
        low, high = int(shares.min(initial=0)), int(shares.max(initial=0))
        if low < -MAX_SHARE or high > MAX_SHARE:
            raise FormatError(f"scale classes of {name} reach from {low} to {high}, allowed are ±{MAX_SHARE}")


def classes_of(context: TensorContext) -> NDArray[np.uint8]:
    """Return the scale class of each weight, uint8 [O, I]."""
    return sum_classes(context.rows_O, context.columns_I).astype(np.uint8)


def raw_bits(context: TensorContext) -> int:
    """Return the number of bits that the high scale classes of a context send raw."""
    rows, row_counts = np.unique(context.rows_O, return_counts=True)
    columns, column_counts = np.unique(context.columns_I, return_counts=True)
    return int(row_counts @ (shifts_of(sum_classes(rows, columns)) @ column_counts))
