"""The fast twin of rans.py in numba: the same streams and the same codes; counts and lengths of codes."""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quantlab.coding import rans
from quantlab.coding.classes import Plane, check_plane, classes_of, raw_bits, shifts_of, tables_of
from quantlab.coding.lanes import LOWEST, WORD_BITS, Written
from quantlab.coding.symbols import to_symbols
from quantlab.coding.tables import (
    ESCAPE,
    FREQUENCY_SHIFT,
    OFFSET,
    PLACE_MASK,
    PROBABILITY_BITS,
    SYMBOL_SHIFT,
    TABLE_CLASSES,
    TableSet,
)

# a compiled function is cached under its own file's date: numbers of other files that may change are arguments
_compiled = numba.njit(cache=True, nogil=True)


def histogram(code_OI: NDArray[np.int16], plane: Plane) -> NDArray[np.int64]:
    """How often each table meets each symbol, int64 [TABLE_CLASSES, 256]: the counts of `fit_tables`.

    The low bits of wide classes are off; symbols beyond ±127, which always escape, are in column 0.

    Raises:
        ValueError: the codes do not fit the plane.
        FormatError: the plane contradicts itself.
    """
    check_plane(plane)
    rans.check_codes(code_OI, plane)
    class_OI = classes_of(plane)
    symbol_OI = to_symbols(code_OI, plane.states, class_OI)
    counts = np.zeros((TABLE_CLASSES, 256), np.int64)
    _count_(counts, symbol_OI >> shifts_of(class_OI), tables_of(class_OI))
    return counts


def code_bits(code_OI: NDArray[np.int16], plane: Plane, tables: TableSet) -> float:
    """Bits of the codes under the integer tables, with escapes and raw bits; a stream adds only what its lanes waste."""
    return float((histogram(code_OI, plane) * tables.lengths).sum()) + raw_bits(plane)


def encode(codes: Sequence[NDArray[np.int16]], planes: Sequence[Plane], sets: Sequence[TableSet], lanes: int) -> bytes:
    """What `rans.encode` returns, and the errors it raises."""
    return rans.encode(codes, planes, sets, lanes, write=_write_symbols)


def decode(stream: bytes, planes: Sequence[Plane], sets: Sequence[TableSet], lanes: int) -> list[NDArray[np.int16]]:
    """What `rans.decode` returns, and the errors it raises."""
    return rans.decode(stream, planes, sets, lanes, read=_read_symbols)


def _write_symbols(
    symbol_OI: NDArray[np.int16], table_OI: NDArray[np.uint8], tables: TableSet, states: NDArray[np.uint32]
) -> Written:
    words, escapes = np.empty(symbol_OI.size, np.uint16), np.empty(symbol_OI.size, np.int16)  # a symbol takes at most one each
    frequencies, starts = tables.frequencies.astype(np.uint32), tables.starts.astype(np.uint32)
    word_at, escape_at = _write_(symbol_OI, table_OI, frequencies, starts, PROBABILITY_BITS, states, words, escapes)
    return words[word_at:].copy(), escapes[escape_at:].copy()


def _read_symbols(
    table_OI: NDArray[np.uint8], entries: NDArray[np.int64], words: NDArray[np.uint16], used: int, states: NDArray[np.int64]
) -> tuple[NDArray[np.int8], int]:
    symbol_OI = np.empty(table_OI.shape, np.int8)
    return symbol_OI, int(_read_(symbol_OI, table_OI, entries, PROBABILITY_BITS, words, used, states))


@_compiled
def _column(symbol: int) -> int:
    """Where counts and frequencies have a symbol; 0 is the escape's."""
    return symbol + OFFSET if ESCAPE < symbol < OFFSET else 0


@_compiled
def _count_(counts: Any, symbol_OI: Any, table_OI: Any) -> None:
    for i in range(symbol_OI.shape[0]):
        for j in range(symbol_OI.shape[1]):
            counts[table_OI[i, j], _column(int(symbol_OI[i, j]))] += 1


@_compiled
def _write_(
    symbol_OI: Any, table_OI: Any, frequencies: Any, starts: Any, bits: int, states: Any, words: Any, escapes: Any
) -> tuple[int, int]:
    """Push one matrix, last symbol first, into the ends of `words` and `escapes`; returns where they begin."""
    word_at, escape_at = len(words), len(escapes)
    for i in range(symbol_OI.shape[0] - 1, -1, -1):
        for j in range(symbol_OI.shape[1] - 1, -1, -1):
            lane = j % len(states)
            row, column = table_OI[i, j], _column(int(symbol_OI[i, j]))
            if column == 0 or frequencies[row, column] == 0:
                escape_at -= 1
                escapes[escape_at] = symbol_OI[i, j]
                column = 0
            frequency = frequencies[row, column]
            state = states[lane]
            if state >> (2 * WORD_BITS - bits) >= frequency:
                word_at -= 1
                words[word_at] = state & (LOWEST - 1)
                state >>= np.uint32(WORD_BITS)
            quotient = state // frequency
            states[lane] = (quotient << bits) + (state - quotient * frequency) + starts[row, column]
    return word_at, escape_at


@_compiled
def _read_(symbol_OI: Any, table_OI: Any, entries: Any, bits: int, words: Any, used: int, states: Any) -> int:
    """Pop one matrix; the same steps as lanes.read_symbols, a lane at a time."""
    O, I = symbol_OI.shape
    for i in range(O):
        if used > len(words) - I:
            break
        for j in range(I):
            lane = j % len(states)
            state = states[lane]
            entry = entries[(int(table_OI[i, j]) << bits) + (state & ((1 << bits) - 1))]
            state = (entry >> FREQUENCY_SHIFT) * (state >> bits) + (entry & PLACE_MASK)
            if state < LOWEST:
                state = (state << WORD_BITS) | words[used]
                used += 1
            states[lane] = state
            symbol_OI[i, j] = np.int8((entry >> SYMBOL_SHIFT) & 255)
    return used
