"""Interleaved range coding (rANS) of one matrix of symbols: the writer and the reader that define it, in Python and numpy.

Asymmetric numeral systems of Duda (arXiv:1311.2540), interleaved and vectorised as by Giesen (arXiv:1402.3392). All is integer
arithmetic. Each row goes in pieces of at most as many columns as there are lanes; column p of a piece belongs to lane p. After
each piece the lanes whose state fell below 2**16 take a word each, in lane order. rans_numba.py has the fast twins of both.

O: rows, I: columns.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantlab.coding.tables import (
    ESCAPE,
    FREQUENCY_SHIFT,
    OFFSET,
    PLACE_MASK,
    PROBABILITY_BITS,
    SYMBOL_SHIFT,
    TOTAL,
    TableSet,
)

WORD_BITS = 16
LOWEST = 1 << WORD_BITS
"""States are at least this, and this in the beginning of writing."""

Written = tuple[NDArray[np.uint16], NDArray[np.int16]]
WriteSymbols = Callable[[NDArray[np.int16], NDArray[np.uint8], TableSet, NDArray[np.uint32]], Written]
"""(symbols [O, I], table of each, tables, states) -> words, escaped symbols; both in reading order. Changes the states."""

ReadSymbols = Callable[
    [NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint16], int, NDArray[np.int64]], tuple[NDArray[np.int8], int]
]
"""(table of each symbol [O, I], entries, words, words used, states) -> symbols int8 [O, I] with escapes as ESCAPE, words used.

Changes the states. `words` ends in at least I zeros that belong to no stream; a reader stops where fewer than I words are left.
"""

# as arrays: numpy would convert a Python number in every call
_SLOT_MASK, _SLOT_BITS, _FREQUENCY_SHIFT, _PLACE_MASK, _LOWEST, _WORD_BITS = (
    np.array(value) for value in (TOTAL - 1, PROBABILITY_BITS, FREQUENCY_SHIFT, PLACE_MASK, LOWEST, WORD_BITS)
)


def write_symbols(
    symbol_OI: NDArray[np.int16], table_OI: NDArray[np.uint8], tables: TableSet, states: NDArray[np.uint32]
) -> Written:
    """The writer of one matrix (see WriteSymbols): last symbol first, so that the reader meets the first one first."""
    frequencies, starts, state = tables.frequencies.tolist(), tables.starts.tolist(), states.tolist()
    words, escapes = [], []
    for symbol_I, table_I in zip(symbol_OI[::-1].tolist(), table_OI[::-1].tolist(), strict=True):
        for j in range(len(symbol_I) - 1, -1, -1):
            lane, symbol, table = j % len(state), symbol_I[j], table_I[j]
            column = symbol + OFFSET if ESCAPE < symbol < OFFSET else 0
            if column == 0 or frequencies[table][column] == 0:
                escapes.append(symbol)
                column = 0
            frequency = frequencies[table][column]
            if state[lane] >> (2 * WORD_BITS - PROBABILITY_BITS) >= frequency:
                words.append(state[lane] & (LOWEST - 1))
                state[lane] >>= WORD_BITS
            quotient, rest = divmod(state[lane], frequency)
            state[lane] = (quotient << PROBABILITY_BITS) + rest + starts[table][column]
    states[:] = state
    return np.array(words[::-1], np.uint16), np.array(escapes[::-1], np.int16)


def read_symbols(
    table_OI: NDArray[np.uint8], entries: NDArray[np.int64], words: NDArray[np.uint16], used: int, states: NDArray[np.int64]
) -> tuple[NDArray[np.int8], int]:
    """The reader of one matrix (see ReadSymbols): a dozen numpy operations a piece."""
    O, I = table_OI.shape
    end = len(words) - I
    symbol_OI = np.empty((O, I), np.int8)
    column_I, entry_I = np.empty(I, np.int64), np.empty(I, np.int64)
    spare = np.empty(len(states), np.int64)
    cuts = [(a, min(a + len(states), I)) for a in range(0, I, len(states))]
    pieces = [(states[: b - a], column_I[a:b], entry_I[a:b], spare[: b - a]) for a, b in cuts]
    for table_I, symbol_I in zip(table_OI, symbol_OI, strict=True):
        np.left_shift(table_I, _SLOT_BITS, out=column_I)
        row_words = words[used : used + I].astype(np.int64)
        taken = 0
        for piece in pieces:
            taken += _advance_(*piece, entries, row_words[taken:])
        symbol_I[:] = entry_I >> SYMBOL_SHIFT  # its low byte
        used += taken
        if used > end:
            break
    return symbol_OI, used


def _advance_(
    state: NDArray[np.int64],
    column: NDArray[np.int64],
    entry: NDArray[np.int64],
    spare: NDArray[np.int64],
    entries: NDArray[np.int64],
    words: NDArray[np.int64],
) -> int:
    """Decode one symbol in each lane of a piece into `entry`; returns how many words the lanes took."""
    np.bitwise_and(state, _SLOT_MASK, out=spare)
    np.add(spare, column, out=spare)
    entries.take(spare, out=entry, mode="clip")  # in range already; "raise" would copy
    np.right_shift(state, _SLOT_BITS, out=state)
    np.right_shift(entry, _FREQUENCY_SHIFT, out=spare)
    np.multiply(state, spare, out=state)
    np.bitwise_and(entry, _PLACE_MASK, out=spare)
    np.add(state, spare, out=state)
    hungry = (state < _LOWEST).nonzero()[0]
    state[hungry] = state[hungry] << _WORD_BITS | words[: len(hungry)]
    return len(hungry)
