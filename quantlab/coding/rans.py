"""The stream that holds the integer codes of many matrices: its layout, and the reference writer and reader.

Codes become symbols (symbols.py), symbols are range coded in the context of their scale classes (lanes.py, contexts.py).
Everything is integer arithmetic, so the codes depend on the bytes alone. rans_numba.py is the fast implementation of both, and
counts and prices codes; rans_device.py reads on a GPU.

Stream, little endian: u32 number of escapes, u32 bytes of raw bits, u32 number of words of every lane group but the last,
escapes (int16, what the shift leaves of the symbol), raw bits (most significant first; unused ones of the last byte are 0), one
u32 state a lane, then u16 words to the end, lane group by lane group. Escapes and raw bits are in the order of the symbols:
matrix by matrix, row by row. All states end as LOWEST.

O: rows, I: columns, N: codes of all matrices.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.coding.contexts import TensorContext, check_context, classes_of, raw_bits
from quantlab.coding.frequency_tables import TableSet
from quantlab.coding.lanes import ReadSymbols, WriteSymbols, read_symbols, write_symbols
from quantlab.coding.symbols import SymbolsOf, from_symbols, join_low_bits_, low_bits, to_symbols
from quantlab.errors import FormatError
from quantlab.format_rules import ESCAPE, LANE_GROUP, LOWEST, TABLE_CLASSES, lane_groups_of, shifts_of, tables_of

MIN_LANES, MAX_LANES = 16, 2048
_LANE_BYTES = 3  # that a lane wastes on average: 16 bits to begin with, 8 unused ones of its stored state
_LANE_WASTE = 0.0005  # largest share of the stream that lanes may waste
MAX_STEPS = 1 << 20
"""Most symbols of one lane: each takes a reader some fixed time, however many lanes there are. Writers stay below it."""
_COUNTS = struct.Struct("<II")


def lanes_for(stream_bytes: float, codes: int = 0) -> int:
    """Return the number of lanes for a stream of about so many bytes.

    Whole lane groups, 32 to 2048 lanes, that waste at most 0.05 % of the stream; 16 lanes where it is too short for a group.
    More where so few could not hold the codes: a large matrix of zeros has a short stream.
    """
    groups = int(min(stream_bytes * _LANE_WASTE / _LANE_BYTES, MAX_LANES)) // LANE_GROUP
    needed = -(-codes // MAX_STEPS)
    return max(groups * LANE_GROUP or MIN_LANES, lane_groups_of(needed) * LANE_GROUP if needed > MIN_LANES else 0)


def code_bits(counts: NDArray[np.int64], context: TensorContext, tables: TableSet) -> float:
    """Return the bits of codes under the integer tables, with escapes and raw bits; lanes alone add to it in a stream.

    Args:
        counts: how often each table meets each symbol (rans_numba.histogram), int64 [28, 256].
    """
    return float((counts * tables.lengths).sum()) + raw_bits(context)


def stream_bytes(bits: float, lanes: int) -> int:
    """Return about the length of a stream whose codes take `bits` bits by `code_bits`."""
    return _COUNTS.size + 4 * (lane_groups_of(lanes) - 1) + math.ceil(bits / 8) + _LANE_BYTES * lanes


def check_contexts(contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int) -> None:
    """Raise FormatError where contexts, tables and lanes do not belong together."""
    if not 1 <= lanes <= MAX_LANES or (lanes > LANE_GROUP and lanes % LANE_GROUP):
        raise FormatError(f"{lanes} lanes: 1 to {LANE_GROUP}, or a multiple of {LANE_GROUP} to {MAX_LANES}, are allowed")
    if (codes := sum(math.prod(context.shape) for context in contexts)) > MAX_STEPS * lanes:
        raise FormatError(f"{lanes} lanes hold {codes} codes, at most {MAX_STEPS * lanes} are allowed")
    for tables in sets:
        if len(tables.classes) != TABLE_CLASSES:
            raise FormatError(f"a table set has {len(tables.classes)} tables, {TABLE_CLASSES} expected")
    for number, context in enumerate(contexts):
        if not 0 <= context.tables < len(sets):
            raise FormatError(f"context {number} names table set {context.tables}, there are {len(sets)}")
        check_context(context)


def check_codes(code_OI: NDArray[np.int16], context: TensorContext) -> None:
    """Raise ValueError where codes are not int16 of the context's shape."""
    if code_OI.shape != context.shape or code_OI.dtype != np.int16:
        raise ValueError(f"codes are {code_OI.dtype} {code_OI.shape}, their context needs int16 {context.shape}")


def encode(
    codes: Sequence[NDArray[np.int16]],
    contexts: Sequence[TensorContext],
    sets: Sequence[TableSet],
    lanes: int,
    write: WriteSymbols = write_symbols,
    symbols_of: SymbolsOf = to_symbols,
) -> bytes:
    """Return the stream that `decode` reads.

    Args:
        codes: int16 [O, I] of each context.
    Raises:
        ValueError: codes of another shape or dtype, or that `to_symbols` refuses.
        FormatError: contexts and tables that do not belong together.
    """
    check_contexts(contexts, sets, lanes)
    symbols, tables, bits = [np.zeros(0, np.int16)], [np.zeros(0, np.uint16)], [np.zeros(0, np.uint8)]
    for code_OI, context in zip(codes, contexts, strict=True):
        check_codes(code_OI, context)
        class_OI = classes_of(context)
        symbol_OI, shift_OI = symbols_of(code_OI, class_OI, context.states, context.paths), shifts_of(class_OI)
        symbols.append((symbol_OI >> shift_OI).reshape(-1))
        tables.append(_numbers_of_tables(class_OI, context))
        bits.append(low_bits(symbol_OI, shift_OI))
    states, words, escapes = write(np.concatenate(symbols), np.concatenate(tables), joined(sets), lanes)
    raw = np.packbits(np.concatenate(bits))
    counts = np.array([len(escapes), len(raw), *map(len, words[:-1])])
    head = counts.astype("<u4").tobytes() + escapes.astype("<i2").tobytes() + raw.tobytes()
    return head + states.astype("<u4").tobytes() + np.concatenate(words).astype("<u2").tobytes()


def joined(sets: Sequence[TableSet]) -> TableSet:
    """Return all tables of all sets as one set, in order."""
    return TableSet(tuple(table for one in sets for table in one.classes))


def _numbers_of_tables(class_OI: NDArray[np.uint8], context: TensorContext) -> NDArray[np.uint16]:
    """Return which of the joined tables codes each symbol of a context, uint16 [O·I]."""
    return tables_of(class_OI).reshape(-1) + np.uint16(TABLE_CLASSES * context.tables)


def decode(
    stream: bytes, contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int, read: ReadSymbols = read_symbols
) -> list[NDArray[np.int16]]:
    """Return the codes of every context, int16 [O, I] each; work and memory are bounded by the contexts' shapes.

    Raises:
        FormatError: truncated, altered or trailing data, or contexts that do not fit the tables.
    """
    check_contexts(contexts, sets, lanes)
    escapes, raw, states, words, counts = split(stream, lanes, sum(raw_bits(context) for context in contexts))
    classes = [classes_of(context) for context in contexts]
    tables = [np.zeros(0, np.uint16), *(_numbers_of_tables(*pair) for pair in zip(classes, contexts, strict=True))]
    ends = np.cumsum(counts)
    used = ends - counts
    entries = np.concatenate([np.zeros(0, np.int64), *(one.entries for one in sets)])
    symbol_N = read(np.concatenate(tables), entries, np.append(words, np.uint16(0)), used, states).astype(np.int16)
    if (used != ends).any() or (states != LOWEST).any():
        raise FormatError(f"code stream is damaged: its lane groups end after {used.tolist()} words, {ends.tolist()} expected")
    _fill_escapes_(symbol_N, escapes)
    codes, at, bits = [], 0, 0
    for class_OI, context in zip(classes, contexts, strict=True):
        symbol_OI = symbol_N[at : at + class_OI.size].reshape(class_OI.shape)
        at += class_OI.size
        bits = join_low_bits_(symbol_OI, shifts_of(class_OI), raw, bits)
        codes.append(from_symbols(symbol_OI, class_OI, context.states, context.paths))
    return codes


Parts = tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint16], NDArray[np.int64]]


def split(stream: bytes, lanes: int, bits: int) -> Parts:
    """Split a code stream into its parts.

    Args:
        bits: number of raw bits of all contexts.
    Returns:
        Escapes, raw bits with two bytes more, states, words, and the number of words of each lane group.
    Raises:
        FormatError: lengths that contradict each other, a state that is too low, raw bits after the last.
    """
    groups = lane_groups_of(lanes)
    head_bytes = 4 * (1 + groups)
    count, raw_bytes = _COUNTS.unpack_from(stream) if len(stream) >= head_bytes else (0, 0)
    raw_at = head_bytes + 2 * count
    at = raw_at + raw_bytes
    rest = len(stream) - at - 4 * lanes
    if rest < 0 or rest % 2:
        held = f"{count} escapes, {raw_bytes} bytes of raw bits, {lanes} states and whole words"
        raise FormatError(f"code stream of {len(stream)} bytes cannot hold {held}")
    if raw_bytes != (bits + 7) // 8:
        raise FormatError(f"code stream has {raw_bytes} bytes of raw bits, its contexts need {bits} bits")
    if bits % 8 and stream[at - 1] & (255 >> bits % 8):
        raise FormatError("code stream is damaged: the unused bits after its raw bits are not 0")
    states = np.frombuffer(stream, "<u4", lanes, at).astype(np.int64)
    if (states < LOWEST).any():
        raise FormatError(f"code stream starts in state {states.min()}, at least {LOWEST} expected")
    counts = np.zeros(groups, np.int64)
    counts[:-1] = np.frombuffer(stream, "<u4", groups - 1, _COUNTS.size)
    counts[-1] = rest // 2 - counts.sum()
    if counts[-1] < 0:
        raise FormatError(f"code stream has {rest // 2} words, its lane groups need {counts[:-1].sum()} or more")
    escapes = np.frombuffer(stream, "<i2", count, head_bytes).astype(np.int16)
    raw = np.frombuffer(stream[raw_at:at] + bytes(2), np.uint8)
    return escapes, raw, states, np.frombuffer(stream, "<u2", offset=at + 4 * lanes).astype(np.uint16), counts


def _fill_escapes_(symbol_N: NDArray[np.int16], escapes: NDArray[np.int16]) -> None:
    """Put the escaped values in their places."""
    places = np.flatnonzero(symbol_N == ESCAPE)
    if len(places) != len(escapes):
        raise FormatError(f"code stream is damaged: {len(escapes)} escapes for {len(places)} places")
    symbol_N[places] = escapes
