"""Interleaved range coding (rANS) of a string of symbols: the reference writer and reader, in Python and numpy.

Asymmetric numeral systems of Duda (arXiv:1311.2540), interleaved and vectorised as by Giesen (arXiv:1402.3392). All is integer
arithmetic. Symbol n belongs to lane n modulo the number of lanes, and each lane has a state of its own. The reader goes in
steps of one symbol a lane; after each step the lanes whose state fell below 2**16 are renormalized: they take one word each, in
lane order, from the words of their lane group. A group is 32 neighbouring lanes: groups do not wait for each other, so a GPU
reads each with one warp. rans_numba.py has fast implementations of both.

Invariant: between two symbols, LOWEST = 2**16 <= state < 2**32 in every lane. Each direction breaks it in one line and restores
it in another; comments there say which. The states at which reading starts are checked by those who parse them.

N: symbols, G: lane groups.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantlab.coding.frequency_tables import FREQUENCY_SHIFT, PLACE_MASK, SYMBOL_SHIFT, TableSet, columns_of
from quantlab.format_rules import LANE_GROUP, LOWEST, PROBABILITY_BITS, TOTAL, WORD_BITS, lane_groups_of

_BLOCK = 256  # steps whose slots and entries are in memory at a time

# as arrays: numpy would convert a Python number in every call
_SLOT_MASK, _SLOT_BITS, _FREQUENCY_SHIFT, _PLACE_MASK, _LOWEST, _WORD_BITS = (
    np.array(value) for value in (TOTAL - 1, PROBABILITY_BITS, FREQUENCY_SHIFT, PLACE_MASK, LOWEST, WORD_BITS)
)

Written = tuple[list[NDArray[np.uint16]], NDArray[np.int16]]
WriteSymbols = Callable[[NDArray[np.int16], NDArray[np.uint16], TableSet, NDArray[np.uint32], int], Written]
"""(symbols [N], table of each, tables, states, number of the first symbol) -> words of each lane group, escaped symbols; both
in reading order.

A long string is written run by run, the last run first, since the writer goes from the end to the beginning. `states` begin as
LOWEST and are changed: those after one run are those before the next, and in the end those at which reading starts.
"""

ReadSymbols = Callable[
    [NDArray[np.uint16], NDArray[np.int64], NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]], NDArray[np.int8]
]
"""(table of each symbol [N], entries, words, used [G], states) -> symbols int8 [N], with escapes as ESCAPE.

`words` end in a zero that belongs to no lane group. `used` is where each group's words begin, and in the end the word after its
last: a damaged stream may lead a group beyond its own words, and beyond all words that zero is read. Changes `used` and
`states`.
"""


def write_symbols(
    symbol_N: NDArray[np.int16], table_N: NDArray[np.uint16], tables: TableSet, states: NDArray[np.uint32], first: int = 0
) -> Written:
    """Write symbols (see WriteSymbols), the last one first, so that the reader meets the first one first."""
    frequencies, starts, state, lanes = tables.frequencies.tolist(), tables.starts.tolist(), states.tolist(), len(states)
    words: list[list[int]] = [[] for _ in range(lane_groups_of(lanes))]
    escapes, columns = [], columns_of(symbol_N).tolist()
    for n, table in zip(range(len(symbol_N) - 1, -1, -1), table_N[::-1].tolist(), strict=True):
        lane, column = (first + n) % lanes, columns[n]
        if column == 0 or frequencies[table][column] == 0:
            escapes.append(symbol_N[n])
            column = 0
        frequency = frequencies[table][column]
        if state[lane] >> (2 * WORD_BITS - PROBABILITY_BITS) >= frequency:  # the symbol would lift the state to 2**32 or more
            words[lane // LANE_GROUP].append(state[lane] & (LOWEST - 1))
            state[lane] >>= WORD_BITS  # breaks the invariant: the state may fall to 16 · frequency, below LOWEST
        quotient, rest = divmod(state[lane], frequency)
        state[lane] = (quotient << PROBABILITY_BITS) + rest + starts[table][column]  # restores it: 16 <= quotient < 2**20
    states[:] = state
    return [np.array(group[::-1], np.uint16) for group in words], np.array(escapes[::-1], np.int16)


def first_states(lanes: int) -> NDArray[np.uint32]:
    """Return the states before anything is written, uint32 [lanes]."""
    return np.full(lanes, LOWEST, np.uint32)


def read_symbols(
    table_N: NDArray[np.uint16],
    entries: NDArray[np.int64],
    words: NDArray[np.uint16],
    used: NDArray[np.int64],
    states: NDArray[np.int64],
) -> NDArray[np.int8]:
    """Read symbols (see ReadSymbols) in some twenty numpy operations a step."""
    symbol_N, lanes = np.empty(len(table_N), np.int8), len(states)
    counting, group = np.arange(lanes), np.arange(lanes) // LANE_GROUP
    for block in range(0, len(table_N), _BLOCK * lanes):
        slot_N = table_N[block : block + _BLOCK * lanes].astype(np.int64)
        slot_N <<= PROBABILITY_BITS
        entry_N = np.empty_like(slot_N)
        for start in range(0, len(slot_N), lanes):
            state, entry = states[: len(slot_N) - start], entry_N[start : start + lanes]
            _advance_(state, slot_N[start : start + lanes], entry, entries)
            renormalizing = (state < _LOWEST).nonzero()[0]
            if len(renormalizing):
                _renormalize_(state, renormalizing, group[renormalizing], counting, words, used)
        symbol_N[block : block + len(entry_N)] = entry_N >> SYMBOL_SHIFT  # its low byte
    return symbol_N


def _advance_(state: NDArray[np.int64], slot: NDArray[np.int64], entry: NDArray[np.int64], entries: NDArray[np.int64]) -> None:
    """Decode one symbol in each lane into `entry`; `slot` is the first slot of its table, and spare afterwards."""
    np.bitwise_and(state, _SLOT_MASK, out=entry)
    np.add(slot, entry, out=slot)
    entries.take(slot, out=entry, mode="clip")  # in range already; "raise" would copy
    np.right_shift(state, _SLOT_BITS, out=state)
    np.right_shift(entry, _FREQUENCY_SHIFT, out=slot)
    np.multiply(state, slot, out=state)
    np.bitwise_and(entry, _PLACE_MASK, out=slot)
    np.add(state, slot, out=state)  # breaks the invariant: from 16 · frequency on, always below 2**32


def _renormalize_(
    state: NDArray[np.int64],
    lanes: NDArray[np.int64],
    group: NDArray[np.int64],
    counting: NDArray[np.int64],
    words: NDArray[np.uint16],
    used: NDArray[np.int64],
) -> None:
    """Give each of the `lanes` below LOWEST, `group` by lane, the next word of its lane group."""
    at = counting[: len(lanes)]
    if len(used) == 1:
        at = at + used
        used += len(lanes)
    else:
        counts = np.bincount(group, minlength=len(used))
        used += counts
        at = at + (used - counts.cumsum())[group]
    state[lanes] = state[lanes] << _WORD_BITS | words.take(at, mode="clip")  # restores it: 2**20 or more, below 2**32
