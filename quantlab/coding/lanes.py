"""Interleaved range coding (rANS) of a string of symbols: the writer and the reader that define it, in Python and numpy.

Asymmetric numeral systems of Duda (arXiv:1311.2540), interleaved and vectorised as by Giesen (arXiv:1402.3392). All is integer
arithmetic. Symbol n belongs to lane n modulo the number of lanes, and each lane has a state of its own. The symbols go in steps
of one a lane; after each step the lanes whose state fell below 2**16 take a word each, in lane order, from the words of their
strand. A strand is 32 neighbouring lanes: strands do not wait for each other, so a GPU reads each with one warp.
rans_numba.py has the fast twins of both.

N: symbols, S: strands.
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

STRAND = 32
"""Lanes of a strand; there may be fewer where all lanes are one strand."""
WORD_BITS = 16
LOWEST = 1 << WORD_BITS
"""States are at least this, and this in the beginning of writing."""

_BLOCK = 256  # steps whose slots and entries are in memory at a time

# as arrays: numpy would convert a Python number in every call
_SLOT_MASK, _SLOT_BITS, _FREQUENCY_SHIFT, _PLACE_MASK, _LOWEST, _WORD_BITS = (
    np.array(value) for value in (TOTAL - 1, PROBABILITY_BITS, FREQUENCY_SHIFT, PLACE_MASK, LOWEST, WORD_BITS)
)

Written = tuple[NDArray[np.uint32], list[NDArray[np.uint16]], NDArray[np.int16]]
WriteSymbols = Callable[[NDArray[np.int16], NDArray[np.uint16], TableSet, int], Written]
"""(symbols [N], table of each, tables, lanes) -> states, words of each strand, escaped symbols; all in reading order."""

ReadSymbols = Callable[
    [NDArray[np.uint16], NDArray[np.int64], NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]], NDArray[np.int8]
]
"""(table of each symbol [N], entries, words, used [S], states) -> symbols int8 [N], with escapes as ESCAPE.

`words` end in a zero that belongs to no strand. `used` is where each strand's words begin, and in the end the word after its
last: a damaged stream may lead a strand beyond its own words, and beyond all words that zero is read. Changes `used` and
`states`.
"""


def strands_of(lanes: int) -> int:
    """How many strands so many lanes are."""
    return -(-lanes // STRAND)


def write_symbols(symbol_N: NDArray[np.int16], table_N: NDArray[np.uint16], tables: TableSet, lanes: int) -> Written:
    """The writer (see WriteSymbols): last symbol first, so that the reader meets the first one first."""
    frequencies, starts, state = tables.frequencies.tolist(), tables.starts.tolist(), [LOWEST] * lanes
    words: list[list[int]] = [[] for _ in range(strands_of(lanes))]
    escapes = []
    for n, (symbol, table) in enumerate(zip(symbol_N[::-1].tolist(), table_N[::-1].tolist(), strict=True)):
        lane = (len(symbol_N) - 1 - n) % lanes
        column = symbol + OFFSET if ESCAPE < symbol < OFFSET else 0
        if column == 0 or frequencies[table][column] == 0:
            escapes.append(symbol)
            column = 0
        frequency = frequencies[table][column]
        if state[lane] >> (2 * WORD_BITS - PROBABILITY_BITS) >= frequency:
            words[lane // STRAND].append(state[lane] & (LOWEST - 1))
            state[lane] >>= WORD_BITS
        quotient, rest = divmod(state[lane], frequency)
        state[lane] = (quotient << PROBABILITY_BITS) + rest + starts[table][column]
    in_order = [np.array(strand[::-1], np.uint16) for strand in words]
    return np.array(state, np.uint32), in_order, np.array(escapes[::-1], np.int16)


def read_symbols(
    table_N: NDArray[np.uint16],
    entries: NDArray[np.int64],
    words: NDArray[np.uint16],
    used: NDArray[np.int64],
    states: NDArray[np.int64],
) -> NDArray[np.int8]:
    """The reader (see ReadSymbols): some twenty numpy operations a step."""
    symbol_N, lanes = np.empty(len(table_N), np.int8), len(states)
    counting, strand = np.arange(lanes), np.arange(lanes) // STRAND
    for block in range(0, len(table_N), _BLOCK * lanes):
        slot_N = table_N[block : block + _BLOCK * lanes].astype(np.int64)
        slot_N <<= PROBABILITY_BITS
        entry_N = np.empty_like(slot_N)
        for start in range(0, len(slot_N), lanes):
            state, entry = states[: len(slot_N) - start], entry_N[start : start + lanes]
            _advance_(state, slot_N[start : start + lanes], entry, entries)
            hungry = (state < _LOWEST).nonzero()[0]
            if len(hungry):
                _feed_(state, hungry, strand[hungry], counting, words, used)
        symbol_N[block : block + len(entry_N)] = entry_N >> SYMBOL_SHIFT  # its low byte
    return symbol_N


def _advance_(state: NDArray[np.int64], slot: NDArray[np.int64], entry: NDArray[np.int64], entries: NDArray[np.int64]) -> None:
    """Decode one symbol in each lane into `entry`; `slot` is the table's first one, and spare afterwards."""
    np.bitwise_and(state, _SLOT_MASK, out=entry)
    np.add(slot, entry, out=slot)
    entries.take(slot, out=entry, mode="clip")  # in range already; "raise" would copy
    np.right_shift(state, _SLOT_BITS, out=state)
    np.right_shift(entry, _FREQUENCY_SHIFT, out=slot)
    np.multiply(state, slot, out=state)
    np.bitwise_and(entry, _PLACE_MASK, out=slot)
    np.add(state, slot, out=state)


def _feed_(
    state: NDArray[np.int64],
    hungry: NDArray[np.int64],
    strand: NDArray[np.int64],
    counting: NDArray[np.int64],
    words: NDArray[np.uint16],
    used: NDArray[np.int64],
) -> None:
    """Give each hungry lane the next word of its strand."""
    at = counting[: len(hungry)]
    if len(used) == 1:
        at = at + used
        used += len(hungry)
    else:
        counts = np.bincount(strand, minlength=len(used))
        used += counts
        at = at + (used - counts.cumsum())[strand]
    state[hungry] = state[hungry] << _WORD_BITS | words.take(at, mode="clip")
