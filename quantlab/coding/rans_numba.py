"""The fast twin of rans.py in numba: the same streams and the same codes; counts and lengths of codes."""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quantlab.coding import rans
from quantlab.coding.contexts import TensorContext, check_context, classes_of, raw_bits, shifts_of, tables_of
from quantlab.coding.lanes import LOWEST, STRAND, WORD_BITS, Written, strands_of
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


def histogram(code_OI: NDArray[np.int16], context: TensorContext) -> NDArray[np.int64]:
    """How often each table meets each symbol, int64 [TABLE_CLASSES, 256]: the counts of `fit_tables`.

    The low bits of wide classes are off; symbols beyond ±127, which always escape, are in column 0.

    Raises:
        ValueError: the codes do not fit the context.
        FormatError: the context contradicts itself.
    """
    check_context(context)
    rans.check_codes(code_OI, context)
    class_OI = classes_of(context)
    symbol_OI = to_symbols(code_OI, context.states, class_OI)
    counts = np.zeros((TABLE_CLASSES, 256), np.int64)
    _count_(counts, symbol_OI >> shifts_of(class_OI), tables_of(class_OI))
    return counts


def code_bits(code_OI: NDArray[np.int16], context: TensorContext, tables: TableSet) -> float:
    """Bits of the codes under the integer tables, with escapes and raw bits; a stream adds only what its lanes waste."""
    return float((histogram(code_OI, context) * tables.lengths).sum()) + raw_bits(context)


def encode(
    codes: Sequence[NDArray[np.int16]], contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int
) -> bytes:
    """What `rans.encode` returns, and the errors it raises."""
    return rans.encode(codes, contexts, sets, lanes, write=_write_symbols)


def decode(stream: bytes, contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int) -> list[NDArray[np.int16]]:
    """What `rans.decode` returns, and the errors it raises."""
    return rans.decode(stream, contexts, sets, lanes, read=_read_symbols)


def _write_symbols(symbol_N: NDArray[np.int16], table_N: NDArray[np.uint16], tables: TableSet, lanes: int) -> Written:
    steps = -(-len(symbol_N) // lanes)
    words = np.empty((strands_of(lanes), steps * STRAND), np.uint16)  # a symbol takes at most one word and one escape
    escapes, states = np.empty(len(symbol_N), np.int16), np.full(lanes, LOWEST, np.uint32)
    word_at = np.full(len(words), words.shape[1])
    frequencies, starts = tables.frequencies.astype(np.uint32), tables.starts.astype(np.uint32)
    escape_at = _write_(symbol_N, table_N, frequencies, starts, PROBABILITY_BITS, states, STRAND, words, word_at, escapes)
    return states, [strand[at:] for strand, at in zip(words, word_at, strict=True)], escapes[escape_at:].copy()


def _read_symbols(
    table_N: NDArray[np.uint16],
    entries: NDArray[np.int64],
    words: NDArray[np.uint16],
    used: NDArray[np.int64],
    states: NDArray[np.int64],
) -> NDArray[np.int8]:
    symbol_N = np.empty(len(table_N), np.int8)
    _read_(symbol_N, table_N, entries, PROBABILITY_BITS, words, used, STRAND, states)
    return symbol_N


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
    symbol_N: Any,
    table_N: Any,
    frequencies: Any,
    starts: Any,
    bits: int,
    states: Any,
    strand_lanes: int,
    words: Any,
    word_at: Any,
    escapes: Any,
) -> int:
    """Push all symbols, the last one first, into the ends of `words` and `escapes`; returns where the escapes begin."""
    escape_at = len(escapes)
    for n in range(len(symbol_N) - 1, -1, -1):
        lane = n % len(states)
        row, column = table_N[n], _column(int(symbol_N[n]))
        if column == 0 or frequencies[row, column] == 0:
            escape_at -= 1
            escapes[escape_at] = symbol_N[n]
            column = 0
        frequency = frequencies[row, column]
        state = states[lane]
        if state >> (2 * WORD_BITS - bits) >= frequency:
            strand = lane // strand_lanes
            word_at[strand] -= 1
            words[strand, word_at[strand]] = state & (LOWEST - 1)
            state >>= np.uint32(WORD_BITS)
        quotient = state // frequency
        states[lane] = (quotient << bits) + (state - quotient * frequency) + starts[row, column]
    return escape_at


@_compiled
def _read_(symbol_N: Any, table_N: Any, entries: Any, bits: int, words: Any, used: Any, strand_lanes: int, states: Any) -> None:
    """Pop all symbols; the same steps as lanes.read_symbols, a lane at a time."""
    lanes, last = len(states), len(words) - 1
    for start in range(0, len(symbol_N), lanes):
        for lane in range(min(lanes, len(symbol_N) - start)):
            state = states[lane]
            entry = entries[(int(table_N[start + lane]) << bits) + (state & ((1 << bits) - 1))]
            state = (entry >> FREQUENCY_SHIFT) * (state >> bits) + (entry & PLACE_MASK)
            if state < LOWEST:
                strand = lane // strand_lanes
                state = (state << WORD_BITS) | words[min(used[strand], last)]
                used[strand] += 1
            states[lane] = state
            symbol_N[start + lane] = np.int8((entry >> SYMBOL_SHIFT) & 255)
