"""The fast implementation of rans.py in numba: the same streams and the same codes; counts and lengths of codes."""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quantlab.coding import rans
from quantlab.coding.contexts import TensorContext, check_context, classes_of
from quantlab.coding.frequency_tables import FREQUENCY_SHIFT, PLACE_MASK, SYMBOL_SHIFT, TableSet, columns_of
from quantlab.coding.lanes import Written
from quantlab.coding.symbols import to_symbols
from quantlab.format_rules import (
    COLUMNS,
    LANE_GROUP,
    LOWEST,
    MAX_CLASS,
    OFFSET,
    PATH_BLOCK,
    PROBABILITY_BITS,
    SCALAR_CLASSES,
    TABLE_CLASSES,
    WIDE,
    WORD_BITS,
    code_range,
    lane_groups_of,
    next_states,
    shifts_of,
    tables_of,
)

# A compiled function is cached under the date of this file alone. Numbers of other files that may change are arguments; LOWEST,
# WORD_BITS and the fields of an entry are compiled in: whoever changes one of them must touch this file.
_compiled = numba.njit(cache=True, nogil=True)


def histogram(code_OI: NDArray[np.int16], context: TensorContext) -> NDArray[np.int64]:
    """Return how often each table meets each symbol, int64 [TABLE_CLASSES, 256]: the counts of `fit_tables`.

    The raw low bits of high scale classes are left out; symbols beyond ±127, which always escape, are in column 0.

    Raises:
        ValueError: the codes do not fit the context.
        FormatError: the context contradicts itself.
    """
    check_context(context)
    rans.check_codes(code_OI, context)
    class_OI, classes = classes_of(context), np.arange(MAX_CLASS + 1)
    symbol_OI = symbols_of(code_OI, class_OI, context.states, context.paths)
    counts = np.zeros((TABLE_CLASSES, COLUMNS), np.int64)
    _count_(counts, symbol_OI, class_OI, tables_of(classes), shifts_of(classes), OFFSET)
    return counts


def symbols_of(code_OI: NDArray[np.int16], class_OI: NDArray[np.uint8], states: int, paths: str) -> NDArray[np.int16]:
    """Return what `symbols.to_symbols` returns, and raise what it raises."""
    symbol_OI = np.empty(code_OI.shape, np.int16)
    low, high = code_range(WIDE, states)
    block = PATH_BLOCK if paths == "blocks" else 0
    if states > 1 and _to_symbols_(symbol_OI, code_OI, class_OI, next_states(states), SCALAR_CLASSES, block, low, high):
        return symbol_OI
    return to_symbols(code_OI, class_OI, states, paths)


def encode(
    codes: Sequence[NDArray[np.int16]], contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int
) -> bytes:
    """Return what `rans.encode` returns, and raise what it raises."""
    return rans.encode(codes, contexts, sets, lanes, write=_write_symbols, symbols_of=symbols_of)


def decode(stream: bytes, contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int) -> list[NDArray[np.int16]]:
    """Return what `rans.decode` returns, and raise what it raises."""
    return rans.decode(stream, contexts, sets, lanes, read=_read_symbols)


def _write_symbols(
    symbol_N: NDArray[np.int16], table_N: NDArray[np.uint16], tables: TableSet, states: NDArray[np.uint32], first: int
) -> Written:
    lanes = len(states)
    steps = -(-(first % lanes + len(symbol_N)) // lanes)  # a run may begin and end within a step
    words = np.empty((lane_groups_of(lanes), steps * LANE_GROUP), np.uint16)  # a symbol takes at most one word and one escape
    escapes, word_at = np.empty(len(symbol_N), np.int16), np.full(len(words), words.shape[1])
    frequencies, starts = tables.frequencies.astype(np.uint32), tables.starts.astype(np.uint32)
    coded = (symbol_N, columns_of(symbol_N), table_N, first)
    escape_at = _write_(*coded, frequencies, starts, PROBABILITY_BITS, states, LANE_GROUP, words, word_at, escapes)
    return [group[at:].copy() for group, at in zip(words, word_at, strict=True)], escapes[escape_at:].copy()


def _read_symbols(
    table_N: NDArray[np.uint16],
    entries: NDArray[np.int64],
    words: NDArray[np.uint16],
    used: NDArray[np.int64],
    states: NDArray[np.int64],
) -> NDArray[np.int8]:
    symbol_N = np.empty(len(table_N), np.int8)
    _read_(symbol_N, table_N, entries, PROBABILITY_BITS, words, used, LANE_GROUP, states)
    return symbol_N


@_compiled
def _count_(counts: Any, symbol_OI: Any, class_OI: Any, table_C: Any, shift_C: Any, offset: int) -> None:
    for i in range(symbol_OI.shape[0]):
        for j in range(symbol_OI.shape[1]):
            cls = class_OI[i, j]
            column = (symbol_OI[i, j] >> shift_C[cls]) + offset
            counts[table_C[cls], column if 0 < column < 2 * offset else 0] += 1


@_compiled
def _to_symbols_(
    symbol_OI: Any, code_OI: Any, class_OI: Any, next_S2: Any, scalar_classes: int, block: int, low: int, high: int
) -> bool:
    """Fill in the symbols; False where a code leaves its range or its path. Paths are columns where `block` is 0."""
    O, I = code_OI.shape
    width = block if block else max(I, 1)
    stride = 2 * block if block else 0
    state_of_paths = np.zeros((O // width + I // width + 2) * stride + I, np.uint8)
    for i in range(O):
        for first in range(0, I, width):
            path = (i // width + first // width) * stride + (i % width if block else 0)
            for j in range(first, min(first + width, I)):
                code, state = int(code_OI[i, j]), state_of_paths[path + j - first]
                half = int(state & 1) if class_OI[i, j] >= scalar_classes else 0
                if (code & 1) != half or code < low or code > high:
                    return False
                k = code >> 1
                symbol_OI[i, j] = -k if half else k
                if class_OI[i, j] >= scalar_classes:
                    state_of_paths[path + j - first] = next_S2[state, k & 1]
    return True


@_compiled
def _write_(
    symbol_N: Any,
    column_N: Any,
    table_N: Any,
    first: int,
    frequencies: Any,
    starts: Any,
    bits: int,
    states: Any,
    group_lanes: int,
    words: Any,
    word_at: Any,
    escapes: Any,
) -> int:
    """Push all symbols, the last one first, into the ends of `words` and `escapes`; return where the escapes begin.

    Each step is that of lanes.write_symbols, where comments say how a state keeps its bounds.
    """
    escape_at = len(escapes)
    for n in range(len(symbol_N) - 1, -1, -1):
        lane = (first + n) % len(states)
        row, column = table_N[n], column_N[n]
        if column == 0 or frequencies[row, column] == 0:
            escape_at -= 1
            escapes[escape_at] = symbol_N[n]
            column = np.uint8(0)
        frequency = frequencies[row, column]
        state = states[lane]
        if state >> (2 * WORD_BITS - bits) >= frequency:
            group = lane // group_lanes
            word_at[group] -= 1
            words[group, word_at[group]] = state & (LOWEST - 1)
            state >>= np.uint32(WORD_BITS)
        quotient = state // frequency
        states[lane] = (quotient << bits) + (state - quotient * frequency) + starts[row, column]
    return escape_at


@_compiled
def _read_(symbol_N: Any, table_N: Any, entries: Any, bits: int, words: Any, used: Any, group_lanes: int, states: Any) -> None:
    """Pop all symbols in the steps of lanes.read_symbols, one lane at a time."""
    lanes, last = len(states), len(words) - 1
    for start in range(0, len(symbol_N), lanes):
        for lane in range(min(lanes, len(symbol_N) - start)):
            state = states[lane]
            entry = entries[(int(table_N[start + lane]) << bits) + (state & ((1 << bits) - 1))]
            state = (entry >> FREQUENCY_SHIFT) * (state >> bits) + (entry & PLACE_MASK)
            if state < LOWEST:
                group = lane // group_lanes
                state = (state << WORD_BITS) | words[min(used[group], last)]
                used[group] += 1
            states[lane] = state
            symbol_N[start + lane] = np.int8((entry >> SYMBOL_SHIFT) & 255)
