"""Arrays as stored bytes and back: the order of an array's bytes, and the byte codecs that compress them.

The first part lays integer codes and floats out as bytes, in the order that suits the codecs. The second has all byte codecs
behind one interface: the smallest stream is stored, and decoding is bounded. A file names a codec by its number
(docs/format.md), so a number is never given a new meaning. Every decoder takes the exact length of its output and stops there,
so a hostile stream cannot allocate more.

O: rows, I: columns.
"""

import lzma
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import brotli
import numpy as np
import zstandard
from numpy.typing import NDArray

from quantlab.coding.byte_coder import decode_bytes, encode_bytes, most_bytes
from quantlab.errors import FormatError

_CHUNK = 1 << 20  # bytes asked of a decompressor at a time
_ZSTD_PIECE = 256  # stored bytes given to zstd at a time: each gives at most 64 blocks of 128 KiB


def codes_to_bytes(q_OI: NDArray[np.int8]) -> bytes:
    """Return codes [O, I] as one byte each, column after column.

    The codes of one input channel share a scale that neighbours in a row do not, so the model of a codec fits them better.
    """
    return np.ascontiguousarray(q_OI.T).tobytes()


def bytes_to_codes(raw: bytes, rows: int, columns: int) -> NDArray[np.int8]:
    """Return the codes that `codes_to_bytes` turned into `raw`: int8 [rows, columns] in row-major memory."""
    return np.ascontiguousarray(np.frombuffer(raw, np.int8).reshape(columns, rows).T)


def to_byte_planes(values: NDArray[np.generic]) -> bytes:
    """Return all lowest bytes, then all next ones, and so on (little-endian): exponents lie together, and mantissas."""
    flat = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).reshape(-1)
    return np.ascontiguousarray(flat.view(np.uint8).reshape(-1, values.dtype.itemsize).T).tobytes()


def from_byte_planes(raw: bytes, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Return the values that `to_byte_planes` turned into `raw`: a flat array of `dtype`, whose size divides len(raw)."""
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype.newbyteorder("<")).astype(dtype, copy=False)


@dataclass(frozen=True, slots=True)
class Codec:
    """One byte codec: `encode(raw)`, and `decode(stored, raw_bytes)`, which returns at most raw_bytes and one chunk."""

    name: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes, int], bytes]


def _brotli_encode(raw: bytes) -> bytes:
    return bytes(brotli.compress(raw, quality=11, lgwin=24))


def _brotli_decode(stored: bytes, raw_bytes: int) -> bytes:
    decoder = brotli.Decompressor()
    parts = [decoder.process(stored, output_buffer_limit=_CHUNK)]
    size = len(parts[0])
    while parts[-1] and not decoder.is_finished() and size <= raw_bytes:  # output may wait where it can accept more data
        parts.append(decoder.process(b"", output_buffer_limit=_CHUNK))
        size += len(parts[-1])
    if not decoder.is_finished():
        raise FormatError(f"brotli stream does not end after {raw_bytes} bytes")
    return b"".join(parts)


def _zstd_encode(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=22).compress(raw)


def _zstd_decode(stored: bytes, raw_bytes: int) -> bytes:
    window = max(1 << 20, _power_of_two(raw_bytes))  # a frame may not ask for a larger one
    decoder = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
    parts, size = [], 0
    for at in range(0, len(stored), _ZSTD_PIECE):
        if decoder.eof:
            raise FormatError(f"zstd stream ends before its {len(stored)} stored bytes do")
        parts.append(decoder.decompress(stored[at : at + _ZSTD_PIECE]))
        size += len(parts[-1])
        if size > raw_bytes:
            break
    if not decoder.eof or decoder.unused_data:
        raise FormatError(f"zstd stream does not end after {raw_bytes} bytes")
    return b"".join(parts)


def _power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`, and at least 2."""
    return 1 << max(count - 1, 1).bit_length()


def _lzma_filters(raw_bytes: int) -> list[dict[str, int]]:
    dictionary = min(max(_power_of_two(raw_bytes), 1 << 12), 1 << 26)
    # codes are single bytes with no alignment: no position bits
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary, "lp": 0, "pb": 0}]


def _lzma_encode(raw: bytes) -> bytes:
    return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_lzma_filters(len(raw)))


def _lzma_decode(stored: bytes, raw_bytes: int) -> bytes:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_lzma_filters(raw_bytes))
    raw = decoder.decompress(stored, max_length=raw_bytes + 1)
    if not decoder.eof or decoder.unused_data:
        raise FormatError(f"lzma stream does not end after {raw_bytes} bytes")
    return raw


def _deflate_encode(raw: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return encoder.compress(raw) + encoder.flush()


def _deflate_decode(stored: bytes, raw_bytes: int) -> bytes:
    decoder = zlib.decompressobj(-15)
    raw = decoder.decompress(stored, raw_bytes + 1)
    if not decoder.eof or decoder.unused_data:
        raise FormatError(f"deflate stream does not end after {raw_bytes} bytes")
    return raw


CODECS: dict[int, Codec] = {
    0: Codec("stored", lambda raw: raw, lambda stored, raw_bytes: stored),
    1: Codec("deflate", _deflate_encode, _deflate_decode),
    2: Codec("brotli-11", _brotli_encode, _brotli_decode),
    3: Codec("zstd-22", _zstd_encode, _zstd_decode),
    4: Codec("lzma", _lzma_encode, _lzma_decode),
    5: Codec("rans-0", encode_bytes, decode_bytes),
}
STORED, DEFLATE, BROTLI, LZMA, RANS = 0, 1, 2, 4, 5
SELF_CONTAINED = (0, 1, 4, 5)
"""Numbers of the codecs that Python's standard library and numpy can read."""


def encode_smallest(raw: bytes, allowed: Sequence[int] | None = None) -> tuple[int, bytes]:
    """Return the number of the codec, of those `allowed`, whose stream of `raw` is smallest, and that stream.

    Of equal streams the lower number wins. None allows all codecs. A stream of rans-0 that readers refuse is left out.
    """
    streams = ((number, CODECS[number].encode(raw)) for number in allowed or CODECS)
    readable = (item for item in streams if item[0] != RANS or len(raw) <= most_bytes(len(item[1])))
    return min(readable, key=lambda item: (len(item[1]), item[0]))


def decode(number: int, stored: bytes, raw_bytes: int) -> bytes:
    """Return the `raw_bytes` bytes that `encode` of codec `number` turned into `stored`.

    Raises:
        FormatError: unknown codec, damaged stream, or a stream that holds another number of bytes.
    """
    if number not in CODECS:
        raise FormatError(f"codec {number} is unknown, this version of quantlab reads 0 to {max(CODECS)}")
    codec = CODECS[number]
    try:
        raw = codec.decode(stored, raw_bytes)
    except (brotli.error, zstandard.ZstdError, lzma.LZMAError, zlib.error, EOFError, MemoryError) as error:
        raise FormatError(f"damaged {codec.name} stream: {error}") from error
    if len(raw) != raw_bytes:
        have = "more" if len(raw) > raw_bytes else str(len(raw))
        raise FormatError(f"{codec.name} stream holds {have} bytes, {raw_bytes} expected")
    return raw
