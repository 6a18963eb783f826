"""The stream that holds the integer codes of many matrices: its layout, and the reference writer and reader.

Codes become symbols (symbols.py), symbols are range coded in the context of their classes (lanes.py, classes.py). Everything is
integer arithmetic, so the codes depend on the bytes alone. rans_numba.py is the fast twin, and counts and prices codes.

Stream, little endian: u32 number of escapes, u32 bytes of raw bits, escapes (int16, what the shift leaves of the symbol), raw
bits (most significant first; unused ones of the last byte are 0), one u32 state a lane, then u16 words to the end. Escapes, raw
bits and words are in the order of the symbols: matrix by matrix, row by row. All states end as 2**16.

O: rows, I: columns.
"""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.coding.classes import Plane, check_plane, classes_of, raw_bits, shifts_of, tables_of
from quantlab.coding.lanes import LOWEST, ReadSymbols, WriteSymbols, read_symbols, write_symbols
from quantlab.coding.symbols import from_symbols, join_low_bits_, low_bits, to_symbols
from quantlab.coding.tables import ESCAPE, TABLE_CLASSES, TableSet
from quantlab.errors import FormatError

MIN_LANES, MAX_LANES = 16, 2048
_LANE_BYTES = 3  # that a lane wastes on average: 16 bits to begin with, 8 unused ones of its stored state
_LANE_WASTE = 0.0005  # of the stream
_COUNTS = struct.Struct("<II")


def lanes_for(stream_bytes: float, widest: int) -> int:
    """A power of two, 16 to 2048, such that lanes waste at most 0.05 % of the stream (or there are 16).

    Lanes beyond the `widest` plane's columns would never be used.
    """
    most = int(min(stream_bytes * _LANE_WASTE / _LANE_BYTES, widest, MAX_LANES))
    return max(1 << max(most.bit_length() - 1, 0), MIN_LANES)


def check_planes(planes: Sequence[Plane], sets: Sequence[TableSet], lanes: int) -> None:
    """Raise FormatError where planes, tables and lanes do not belong together."""
    if not 1 <= lanes <= MAX_LANES:
        raise FormatError(f"{lanes} lanes: 1 to {MAX_LANES} are allowed")
    for tables in sets:
        if len(tables.classes) != TABLE_CLASSES:
            raise FormatError(f"table set of {len(tables.classes)} classes, {TABLE_CLASSES} expected")
    for number, plane in enumerate(planes):
        if not 0 <= plane.tables < len(sets):
            raise FormatError(f"plane {number}: table set {plane.tables} of {len(sets)}")
        check_plane(plane)


def check_codes(code_OI: NDArray[np.int16], plane: Plane) -> None:
    """Raise ValueError where codes are not int16 of the plane's shape."""
    if code_OI.shape != plane.shape or code_OI.dtype != np.int16:
        raise ValueError(f"codes are {code_OI.dtype} {code_OI.shape}, their plane is int16 {plane.shape}")


def encode(
    codes: Sequence[NDArray[np.int16]],
    planes: Sequence[Plane],
    sets: Sequence[TableSet],
    lanes: int,
    write: WriteSymbols = write_symbols,
) -> bytes:
    """The stream that `decode` reads.

    Args:
        codes: int16 [O, I] of each plane.
    Raises:
        ValueError: codes of another shape or dtype, or that `to_symbols` refuses.
        FormatError: planes and tables that do not belong together.
    """
    check_planes(planes, sets, lanes)
    states = np.full(lanes, LOWEST, np.uint32)
    bits, escapes, words = [np.zeros(0, np.uint8)], [np.zeros(0, np.int16)], [np.zeros(0, np.uint16)]
    for code_OI, plane in zip(reversed(codes), reversed(planes), strict=True):
        check_codes(code_OI, plane)
        class_OI = classes_of(plane)
        symbol_OI, shift_OI = to_symbols(code_OI, plane.states, class_OI), shifts_of(class_OI)
        plane_words, plane_escapes = write(symbol_OI >> shift_OI, tables_of(class_OI), sets[plane.tables], states)
        bits.append(low_bits(symbol_OI, shift_OI))
        escapes.append(plane_escapes)
        words.append(plane_words)
    escaped, raw = np.concatenate(escapes[::-1]), np.packbits(np.concatenate(bits[::-1]))
    head = _COUNTS.pack(len(escaped), len(raw)) + escaped.astype("<i2").tobytes() + raw.tobytes()
    return head + states.astype("<u4").tobytes() + np.concatenate(words[::-1]).astype("<u2").tobytes()


def decode(
    stream: bytes, planes: Sequence[Plane], sets: Sequence[TableSet], lanes: int, read: ReadSymbols = read_symbols
) -> list[NDArray[np.int16]]:
    """The codes of every plane, int16 [O, I] each; work and memory are bounded by the planes' shapes.

    Raises:
        FormatError: truncated, altered or trailing data, or planes that do not fit the tables.
    """
    check_planes(planes, sets, lanes)
    escapes, raw, states, words = _split(stream, lanes, sum(raw_bits(plane) for plane in planes))
    padded = np.concatenate([words, np.zeros(max((plane.shape[1] for plane in planes), default=0), np.uint16)])
    codes, used, escaped, bits = [], 0, 0, 0
    for plane in planes:
        class_OI = classes_of(plane)
        narrow_OI, used = read(tables_of(class_OI), sets[plane.tables].entries, padded, used, states)
        if used > len(words):
            raise FormatError(f"code stream ends after {len(words)} words, more are needed")
        symbol_OI = narrow_OI.astype(np.int16)
        escaped += _fill_escapes_(symbol_OI, escapes[escaped:])
        bits = join_low_bits_(symbol_OI, shifts_of(class_OI), raw, bits)
        codes.append(from_symbols(symbol_OI, plane.states, class_OI))
    if used != len(words) or escaped != len(escapes) or (states != LOWEST).any():
        raise FormatError(f"code stream is damaged: {used} of {len(words)} words, {escaped} of {len(escapes)} escapes used")
    return codes


def _split(
    stream: bytes, lanes: int, bits: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint16]]:
    """Escapes, raw bits with two bytes more, states and words of a stream whose planes have so many raw bits."""
    count, raw_bytes = _COUNTS.unpack_from(stream) if len(stream) >= _COUNTS.size else (0, 0)
    raw_at = _COUNTS.size + 2 * count
    at = raw_at + raw_bytes
    rest = len(stream) - at - 4 * lanes
    if rest < 0 or rest % 2:
        held = f"{count} escapes, {raw_bytes} bytes of raw bits, {lanes} states and whole words"
        raise FormatError(f"code stream of {len(stream)} bytes cannot hold {held}")
    if raw_bytes != (bits + 7) // 8:
        raise FormatError(f"code stream has {raw_bytes} bytes of raw bits, its planes need {bits} bits")
    if bits % 8 and stream[at - 1] & (255 >> bits % 8):
        raise FormatError("unused raw bits of a code stream are not 0")
    states = np.frombuffer(stream, "<u4", lanes, at).astype(np.int64)
    if (states < LOWEST).any():
        raise FormatError(f"code stream starts in state {states.min()}, at least {LOWEST} expected")
    escapes = np.frombuffer(stream, "<i2", count, _COUNTS.size).astype(np.int16)
    raw = np.frombuffer(stream[raw_at:at] + bytes(2), np.uint8)
    return escapes, raw, states, np.frombuffer(stream, "<u2", offset=at + 4 * lanes).astype(np.uint16)


def _fill_escapes_(symbol_OI: NDArray[np.int16], escapes: NDArray[np.int16]) -> int:
    """Put the values of the escapes in their places; returns how many there were."""
    flat = symbol_OI.reshape(-1)
    places = np.flatnonzero(flat == ESCAPE)
    if len(places) > len(escapes):
        raise FormatError(f"code stream lacks {len(places) - len(escapes)} escapes")
    flat[places] = escapes[: len(places)]
    return len(places)
