"""Order-0 codec for side information: short arrays of bytes of small entropy, range coded with one frequency table.

Bytes: first value of the support, its size n, how the logarithms are packed (16·exponent + width), the base-2 logarithms of the
escape and of the support in units of 2**exponent eighths, `width` bits each, most significant first, padded with zeros to a
byte; then one u32 state a lane, u16 words, and the escaped values to the end, a byte each. The support wraps around: its values
are modulo 256. Numbers are little endian; see lanes.py for states and words.

n: values of the support.
"""

import numpy as np
from numpy.typing import NDArray

from quantlab.coding.frequency_tables import ClassTable, TableSet, fit_tables
from quantlab.coding.lanes import first_states, read_symbols, write_symbols
from quantlab.errors import FormatError
from quantlab.format_rules import ESCAPE, LOWEST, OFFSET

MAX_LANES = 16
_LANE_SYMBOLS = 2048  # a lane costs 3 bytes and saves the time of as many pieces
_LOW = 1 - OFFSET  # symbol of the first value of the support
_HEAD_BYTES = 3
_EXPONENTS = 4  # packed logarithms have an exponent below this
_FLOOR = 1 << 20  # bytes that any stream may hold ...
_EXPANSION = 16  # ... besides this many a stored byte
_CHUNK = 1 << 16  # values decoded at a time, a multiple of all numbers of lanes: a hostile length stops with the words


def lanes_of(raw_bytes: int) -> int:
    """Return the number of lanes of an array: a power of two, 1 below 4 KiB to 16 from 32 KiB on."""
    return min(1 << max((raw_bytes // _LANE_SYMBOLS).bit_length() - 1, 0), MAX_LANES)


def most_bytes(stored_bytes: int) -> int:
    """Return the most bytes that a stream of this length may hold: few lanes read them one after the other."""
    return _FLOOR + _EXPANSION * stored_bytes


def encode_bytes(raw: bytes) -> bytes:
    """Return the stream of a byte array, about its order-0 entropy and a table; an empty array has an empty stream."""
    if not raw:
        return b""
    values = np.frombuffer(raw, np.uint8)
    counts = np.bincount(values, minlength=256)
    first, logs = _fit(counts)
    symbols = (values + np.uint8(_LOW - first & 255)).view(np.int8)
    head, tables = _cheapest_head(first, logs, np.roll(counts, _LOW + OFFSET - first))
    table = np.zeros(len(raw), np.uint16)
    states = first_states(lanes_of(len(raw)))
    (words,), escapes = write_symbols(symbols.astype(np.int16), table, tables, states)
    escaped = escapes.astype(np.uint8) + np.uint8(first - _LOW & 255)
    return head + states.astype("<u4").tobytes() + words.astype("<u2").tobytes() + escaped.tobytes()


def _cheapest_head(first: int, logs: NDArray[np.uint8], counts: NDArray[np.int64]) -> tuple[bytes, TableSet]:
    """Return the bytes before the states, and the table.

    The logarithms are rounded such that head and symbols together take the fewest bits.

    Args:
        counts: how often each symbol occurs, by column (tables.columns_of).
    """
    heads = []
    for exponent in range(_EXPONENTS):
        packed = (logs + (1 << exponent >> 1)) >> exponent
        width = int(packed.max()).bit_length()
        bits = packed[:, None] >> np.arange(width)[::-1] & 1
        tables = _tables((packed << exponent).astype(np.uint8))
        head = bytes([first, len(logs) - 1, exponent << 4 | width]) + np.packbits(bits).tobytes()
        heads.append((8 * len(head) + float((counts * tables.lengths[0]).sum()), head, tables))
    return min(heads, key=lambda priced: priced[0])[1:]


def _fit(counts: NDArray[np.int64]) -> tuple[int, NDArray[np.uint8]]:
    """Return the first value of the support, and the logarithms of the escape and of the support.

    One value is always outside the support and escapes: the rarest, of equals the one farthest from all others.
    """
    distance = np.abs(np.subtract.outer(np.arange(256), np.arange(256)))
    distances = np.minimum(distance, 256 - distance) @ counts
    outside = int(np.lexsort((-distances, counts))[0])
    table = fit_tables(np.roll(counts, -outside)[None]).classes[0]
    first = (outside + OFFSET + table.low) % 256 if table.n else 0
    return first, np.frombuffer(table.logs, np.uint8)


def _tables(logs: NDArray[np.uint8]) -> TableSet:
    return TableSet((ClassTable(_LOW if len(logs) > 1 else 0, logs.tobytes()),))


def decode_bytes(stored: bytes, raw_bytes: int) -> bytes:
    """Return the `raw_bytes` bytes that `encode_bytes` turned into `stored`.

    Raises:
        FormatError: truncated, altered or trailing data, or more bytes than a stream of this length may hold.
    """
    if raw_bytes > most_bytes(len(stored)):
        raise FormatError(f"{len(stored)} coded bytes hold {raw_bytes}, at most {most_bytes(len(stored))} are allowed")
    if not raw_bytes:
        if stored:
            raise FormatError(f"coded bytes of an empty array must be empty, got {len(stored)} bytes")
        return b""
    first, tables, at = _read_head(stored)
    states, rest = _read_states(stored[at:], lanes_of(raw_bytes))
    words = np.frombuffer(rest, "<u2", len(rest) // 2).astype(np.uint16)
    symbols, used = _read_symbols(raw_bytes, tables, words, states)
    places, escapes = np.flatnonzero(symbols == ESCAPE), np.frombuffer(rest[2 * used :], np.uint8)
    if len(places) != len(escapes) or (states != LOWEST).any():
        raise FormatError(f"coded bytes are damaged: {len(rest)} bytes for {used} words and {len(places)} escapes")
    values = symbols.view(np.uint8) + np.uint8(first - _LOW & 255)
    values[places] = escapes
    return bytes(values)


def _read_symbols(
    count: int, tables: TableSet, words: NDArray[np.uint16], states: NDArray[np.int64]
) -> tuple[NDArray[np.int8], int]:
    """Return the symbols and the number of words that they took; change the states."""
    padded, used = np.append(words, np.uint16(0)), np.zeros(1, np.int64)
    chunks = []
    for start in range(0, count, _CHUNK):
        table = np.zeros(min(_CHUNK, count - start), np.uint16)
        chunks.append(read_symbols(table, tables.entries, padded, used, states))
        if used[0] > len(words):
            raise FormatError(f"coded bytes end after {len(words)} words, {used[0]} or more are needed")
    return np.concatenate(chunks), int(used[0])


def _read_head(stored: bytes) -> tuple[int, TableSet, int]:
    """Return the first value of the support, its table, and where the states begin."""
    if len(stored) < _HEAD_BYTES:
        raise FormatError(f"coded bytes end after {len(stored)} bytes, within their head of {_HEAD_BYTES}")
    first, n, (exponent, width) = stored[0], stored[1], divmod(stored[2], 16)
    if exponent >= _EXPONENTS or width > 8 or (n == 0 and first != 0):
        got = f"{n} values from {first}, logarithms of {width} bits in units of 2**{exponent}"
        raise FormatError(f"coded bytes have an impossible head: {got}")
    used = (n + 1) * width
    at = _HEAD_BYTES + (used + 7) // 8
    bits = np.unpackbits(np.frombuffer(stored[_HEAD_BYTES:at], np.uint8))
    if len(stored) < at or bits[used:].any():
        raise FormatError(f"coded bytes have {len(stored)} bytes: their table of {used} bits is cut or does not end in zeros")
    logs = (bits[:used].reshape(n + 1, width) @ (1 << np.arange(width)[::-1])) << exponent
    if logs.max() > 255:
        raise FormatError(f"the table of coded bytes has a logarithm of {logs.max()}, at most 255 is allowed")
    return first, _tables(logs.astype(np.uint8)), at


def _read_states(stored: bytes, lanes: int) -> tuple[NDArray[np.int64], bytes]:
    """Return the states of the lanes, and the bytes after them."""
    if len(stored) < 4 * lanes:
        raise FormatError(f"coded bytes end within the states of {lanes} lanes")
    states = np.frombuffer(stored, "<u4", lanes).astype(np.int64)
    if (states < LOWEST).any():
        raise FormatError(f"coded bytes start in state {states.min()}, at least {LOWEST} expected")
    return states, stored[4 * lanes :]
