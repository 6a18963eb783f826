"""The stream that holds the integer codes of many matrices: its layout, and the reference writer and reader.

Codes become symbols (symbols.py), symbols are range coded in the context of their classes (lanes.py, classes.py). Everything is
integer arithmetic, so the codes depend on the bytes alone. rans_numba.py is the fast twin, and counts and prices codes.

Stream, little endian: u32 number of escapes, u32 bytes of raw bits, u32 number of words of every strand but the last, escapes
(int16, what the shift leaves of the symbol), raw bits (most significant first; unused ones of the last byte are 0), one u32
state a lane, then u16 words to the end, strand by strand. Escapes and raw bits are in the order of the symbols: matrix by
matrix, row by row. All states end as 2**16.

O: rows, I: columns, N: codes of all matrices, S: strands.
"""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.coding.contexts import TensorContext, check_context, classes_of, raw_bits, shifts_of, tables_of
from quantlab.coding.lanes import LOWEST, STRAND, ReadSymbols, WriteSymbols, read_symbols, strands_of, write_symbols
from quantlab.coding.symbols import from_symbols, join_low_bits_, low_bits, to_symbols
from quantlab.coding.tables import ESCAPE, TABLE_CLASSES, TableSet
from quantlab.errors import FormatError

MIN_LANES, MAX_LANES = 16, 2048
_LANE_BYTES = 3  # that a lane wastes on average: 16 bits to begin with, 8 unused ones of its stored state
_LANE_WASTE = 0.0005  # of the stream
_COUNTS = struct.Struct("<II")


def lanes_for(stream_bytes: float) -> int:
    """Whole strands, 32 to 2048 lanes, that waste at most 0.05 % of the stream; 16 lanes where it is too short for one."""
    strands = int(min(stream_bytes * _LANE_WASTE / _LANE_BYTES, MAX_LANES)) // STRAND
    return strands * STRAND or MIN_LANES


def check_contexts(contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int) -> None:
    """Raise FormatError where contexts, tables and lanes do not belong together."""
    if not 1 <= lanes <= MAX_LANES or (lanes > STRAND and lanes % STRAND):
        raise FormatError(f"{lanes} lanes: 1 to {STRAND}, or a multiple of {STRAND} to {MAX_LANES}, are allowed")
    for tables in sets:
        if len(tables.classes) != TABLE_CLASSES:
            raise FormatError(f"table set of {len(tables.classes)} classes, {TABLE_CLASSES} expected")
    for number, context in enumerate(contexts):
        if not 0 <= context.tables < len(sets):
            raise FormatError(f"context {number}: table set {context.tables} of {len(sets)}")
        check_context(context)


def check_codes(code_OI: NDArray[np.int16], context: TensorContext) -> None:
    """Raise ValueError where codes are not int16 of the context's shape."""
    if code_OI.shape != context.shape or code_OI.dtype != np.int16:
        raise ValueError(f"codes are {code_OI.dtype} {code_OI.shape}, their context is int16 {context.shape}")


def encode(
    codes: Sequence[NDArray[np.int16]],
    contexts: Sequence[TensorContext],
    sets: Sequence[TableSet],
    lanes: int,
    write: WriteSymbols = write_symbols,
) -> bytes:
    """The stream that `decode` reads.

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
        symbol_OI, shift_OI = to_symbols(code_OI, context.states, class_OI), shifts_of(class_OI)
        symbols.append((symbol_OI >> shift_OI).reshape(-1))
        tables.append(numbers_of_tables(class_OI, context))
        bits.append(low_bits(symbol_OI, shift_OI))
    states, words, escapes = write(np.concatenate(symbols), np.concatenate(tables), joined(sets), lanes)
    raw = np.packbits(np.concatenate(bits))
    counts = np.array([len(escapes), len(raw), *map(len, words[:-1])])
    head = counts.astype("<u4").tobytes() + escapes.astype("<i2").tobytes() + raw.tobytes()
    return head + states.astype("<u4").tobytes() + np.concatenate(words).astype("<u2").tobytes()


def joined(sets: Sequence[TableSet]) -> TableSet:
    """All tables of all sets as one set, in order."""
    return TableSet(tuple(table for one in sets for table in one.classes))


def numbers_of_tables(class_OI: NDArray[np.uint8], context: TensorContext) -> NDArray[np.uint16]:
    """Which of the joined tables codes each symbol of a context, uint16 [O·I]."""
    return tables_of(class_OI).reshape(-1) + np.uint16(TABLE_CLASSES * context.tables)


def decode(
    stream: bytes, contexts: Sequence[TensorContext], sets: Sequence[TableSet], lanes: int, read: ReadSymbols = read_symbols
) -> list[NDArray[np.int16]]:
    """The codes of every context, int16 [O, I] each; work and memory are bounded by the contexts' shapes.

    Raises:
        FormatError: truncated, altered or trailing data, or contexts that do not fit the tables.
    """
    check_contexts(contexts, sets, lanes)
    escapes, raw, states, words, counts = split(stream, lanes, sum(raw_bits(context) for context in contexts))
    classes = [classes_of(context) for context in contexts]
    tables = [np.zeros(0, np.uint16), *(numbers_of_tables(*pair) for pair in zip(classes, contexts, strict=True))]
    ends = np.cumsum(counts)
    used = ends - counts
    symbol_N = read(np.concatenate(tables), joined(sets).entries, np.append(words, np.uint16(0)), used, states).astype(np.int16)
    if (used != ends).any() or (states != LOWEST).any():
        raise FormatError(f"code stream is damaged: its strands end after {used.tolist()} words, {ends.tolist()} expected")
    _fill_escapes_(symbol_N, escapes)
    codes, at, bits = [], 0, 0
    for class_OI, context in zip(classes, contexts, strict=True):
        symbol_OI = symbol_N[at : at + class_OI.size].reshape(class_OI.shape)
        at += class_OI.size
        bits = join_low_bits_(symbol_OI, shifts_of(class_OI), raw, bits)
        codes.append(from_symbols(symbol_OI, context.states, class_OI))
    return codes


Parts = tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint16], NDArray[np.int64]]


def split(stream: bytes, lanes: int, bits: int) -> Parts:
    """What a stream whose contexts have so many raw bits holds: escapes, raw bits with two bytes more, states, words, and how
    many of the words each strand has.

    Raises:
        FormatError: lengths that contradict each other, a state that is too low, raw bits after the last.
    """
    strands = strands_of(lanes)
    head_bytes = 4 * (1 + strands)
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
        raise FormatError("unused raw bits of a code stream are not 0")
    states = np.frombuffer(stream, "<u4", lanes, at).astype(np.int64)
    if (states < LOWEST).any():
        raise FormatError(f"code stream starts in state {states.min()}, at least {LOWEST} expected")
    counts = np.zeros(strands, np.int64)
    counts[:-1] = np.frombuffer(stream, "<u4", strands - 1, _COUNTS.size)
    counts[-1] = rest // 2 - counts.sum()
    if counts[-1] < 0:
        raise FormatError(f"code stream of {rest // 2} words, its strands need {counts[:-1].sum()}")
    escapes = np.frombuffer(stream, "<i2", count, head_bytes).astype(np.int16)
    raw = np.frombuffer(stream[raw_at:at] + bytes(2), np.uint8)
    return escapes, raw, states, np.frombuffer(stream, "<u2", offset=at + 4 * lanes).astype(np.uint16), counts


def _fill_escapes_(symbol_N: NDArray[np.int16], escapes: NDArray[np.int16]) -> None:
    """Put the values of the escapes in their places."""
    places = np.flatnonzero(symbol_N == ESCAPE)
    if len(places) != len(escapes):
        raise FormatError(f"code stream is damaged: {len(escapes)} escapes for {len(places)} places")
    symbol_N[places] = escapes
