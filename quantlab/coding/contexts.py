"""Context classes of the entropy coder: what row and column say about the size of a weight before it is decoded.

Classes are quarter octaves of the weights' root mean square in grid steps: four classes on, weights are twice as large. The
class of weight (i, j) is rows_O[i] + columns_I[j], clipped to 0..MAX_CLASS.

Narrow classes, below SCALAR_CLASSES, are off the path of a trellis (trellis.py). Wide classes, from TABLE_CLASSES on, send the
`shift` lowest bits of a symbol raw, one bit more every octave: these are nearly uniform, and the rest spreads as the symbols of
a class 4·shift lower, whose table it shares.

O: rows, I: columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.coding.tables import TABLE_CLASSES
from quantlab.errors import FormatError
from quantlab.format_rules import STATES

MAX_CLASS = 83
"""Classes beyond it count as this one."""
SCALAR_CLASSES = 9
"""Classes below it are off the path of a trellis."""
MAX_SHARE = 1000
"""Largest magnitude of a row's or a column's share."""
_OCTAVE = 4  # classes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TensorContext:
    """What a decoder must know of one matrix before it reads the codes."""

    shape: tuple[int, int]
    """Rows O and columns I; 0 is allowed."""
    states: int
    """States of its trellis, 1 for plain codes."""
    rows_O: NDArray[np.int16]
    """Share of each row in the class, int16 [O], within ±MAX_SHARE."""
    columns_I: NDArray[np.int16]
    """Share of each column in the class, int16 [I], within ±MAX_SHARE."""
    tables: int
    """Which table set it uses."""


def check_context(context: TensorContext) -> None:
    """Raise FormatError where a context contradicts itself."""
    rows_O, columns_I = context.rows_O, context.columns_I
    if rows_O.dtype != np.int16 or columns_I.dtype != np.int16:
        raise FormatError(f"classes of rows are {rows_O.dtype}, of columns {columns_I.dtype}, int16 expected")
    if (rows_O.shape, columns_I.shape) != ((context.shape[0],), (context.shape[1],)):
        raise FormatError(f"classes of {rows_O.shape} rows and {columns_I.shape} columns, shape {context.shape}")
    if context.states not in STATES:
        raise FormatError(f"trellis of {context.states} states, allowed are {STATES}")
    for name, shares in (("rows", rows_O), ("columns", columns_I)):
        low, high = int(shares.min(initial=0)), int(shares.max(initial=0))
        if low < -MAX_SHARE or high > MAX_SHARE:
            raise FormatError(f"classes of {name} reach {low} to {high}, allowed are ±{MAX_SHARE}")


def classes_of(context: TensorContext) -> NDArray[np.uint8]:
    """The class of each weight, uint8 [O, I]."""
    return _classes(context.rows_O, context.columns_I)


def _classes(rows: NDArray[np.int16], columns: NDArray[np.int16]) -> NDArray[np.uint8]:
    return np.add.outer(rows, columns).clip(0, MAX_CLASS).astype(np.uint8)


def shifts_of(class_OI: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How many low bits of each symbol are sent raw, uint8 [O, I], at most 14."""
    last_octave = np.uint8(TABLE_CLASSES - _OCTAVE)
    return (np.maximum(class_OI, last_octave) - last_octave) // np.uint8(_OCTAVE)


def tables_of(class_OI: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which table of the set codes each symbol, uint8 [O, I], below TABLE_CLASSES."""
    return class_OI - np.uint8(_OCTAVE) * shifts_of(class_OI)


def raw_bits(context: TensorContext) -> int:
    """Low bits that the wide classes of a context send raw, all together."""
    rows, row_counts = np.unique(context.rows_O, return_counts=True)
    columns, column_counts = np.unique(context.columns_I, return_counts=True)
    return int(row_counts @ (shifts_of(_classes(rows, columns)) @ column_counts))
