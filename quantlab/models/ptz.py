"""The challenge's submissions (.ptz): quantized tensors in a torch file, its bytes perhaps shuffled, then compressed.

The formats are those of train_gpt.py of github.com/openai/parameter-golf (int8, zlib) and of its record of 2026-04-05 (int6,
bytes shuffled, brotli or xz).
"""

import lzma
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import brotli
import numpy as np
from torch import Tensor

from quantlab.coding.codecs import BROTLI, CODECS
from quantlab.errors import CheckpointError, FormatError
from quantlab.files import read_regular
from quantlab.models.dequantize import INT8_FORMAT, dequantize_int8, dequantize_mixed
from quantlab.models.torch_files import read_torch_bytes

MOST_EXPANSION = 64
"""Bytes that a stored byte may decompress to, besides `FREE_BYTES`. Submissions have about 1 (int8) to 2.5 (int6)."""
FREE_BYTES = 1 << 20
"""Bytes that any file may decompress to."""
SHUFFLED = b"BSHF"
"""First bytes of a stream whose bytes were shuffled: then come the stride, one byte, and the shuffled bytes."""
_XZ, _ZSTD, _PER_GROUP = b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PGRP"
_XZ_MEMORY = 1 << 27  # bytes that xz may ask for; the largest preset needs 65 MiB


def read_ptz(path: Path) -> dict[str, Tensor]:
    """Return the dequantized tensors of a submission, by name.

    Raises:
        CheckpointError: the file is damaged, of another kind, or decompresses to more than `most_bytes`; or see
            `dequantize_int8` and `dequantize_mixed`.
    """
    raw = unshuffled(path, decompress(path, read_regular(path, CheckpointError, "checkpoint")))
    loaded = read_torch_bytes(path, raw)
    if isinstance(loaded, Mapping):
        check_total(path, loaded, len(raw))
        if loaded.get("__quant_format__") == INT8_FORMAT:
            return dequantize_int8(path, loaded)
        if loaded.keys() == {"w", "m"}:
            return dequantize_mixed(path, loaded["w"], loaded["m"])
    found = loaded.get("__quant_format__", list(loaded)[:4]) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise CheckpointError(f"checkpoint {path} has neither the format {INT8_FORMAT} nor the keys w and m, but {found!r:.80}")


def most_bytes(stored_bytes: int) -> int:
    """Return the number of bytes that a compressed file of this size may hold."""
    return FREE_BYTES + MOST_EXPANSION * stored_bytes


def decompress(path: Path, stored: bytes) -> bytes:
    """Return what a zlib, xz or brotli stream holds; the last has no magic and is tried for anything else.

    Raises:
        CheckpointError: the stream is damaged, of another kind, or holds more than `most_bytes`.
    """
    if stored.startswith(_PER_GROUP):
        raise CheckpointError(
            f"checkpoint {path} is compressed in groups by lrzip (PGRP), which is not supported",
            hint="use the final_model.pt beside it, or the submission's own program with COMPRESSOR=brotli",
        )
    if stored.startswith(_ZSTD):
        raise CheckpointError(f"checkpoint {path} is a zstd stream, supported are zlib, brotli and xz")
    limit = most_bytes(len(stored))
    try:
        raw, is_whole = _decoder_of(stored)(stored, limit)
    except (zlib.error, lzma.LZMAError, brotli.error, FormatError, EOFError, MemoryError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged, or decompresses to more than {limit} bytes: {error}") from error
    if len(raw) > limit:
        raise CheckpointError(f"checkpoint {path}: {len(stored)} bytes decompress to more than {limit}")
    if not is_whole:
        raise CheckpointError(f"checkpoint {path} is damaged: its stream is cut off, or bytes follow it")
    return raw


def _decoder_of(stored: bytes) -> Callable[[bytes, int], tuple[bytes, bool]]:
    """Return a decoder: from stream and limit to at most one chunk more than the limit, and whether the stream ended there."""
    if stored.startswith(_XZ):
        return _inflate_xz
    is_zlib = len(stored) > 1 and stored[0] == 0x78 and int.from_bytes(stored[:2], "big") % 31 == 0
    return _inflate_zlib if is_zlib else lambda stream, limit: (CODECS[BROTLI].decode(stream, limit), True)


def _inflate_zlib(stored: bytes, limit: int) -> tuple[bytes, bool]:
    decoder = zlib.decompressobj()
    raw = decoder.decompress(stored, limit + 1)
    return raw, decoder.eof and not decoder.unused_data


def _inflate_xz(stored: bytes, limit: int) -> tuple[bytes, bool]:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    raw = decoder.decompress(stored, limit + 1)
    return raw, decoder.eof and not decoder.unused_data


def unshuffled(path: Path, raw: bytes) -> bytes:
    """Return the bytes in their own order; bytes without the mark `SHUFFLED` are returned as they are.

    With stride s the shuffled bytes are bytes 0, s, 2 s, ... of the original, then 1, s + 1, ..., up to s - 1, 2 s - 1, ...

    Raises:
        CheckpointError: the stride is missing or below 2.
    """
    if not raw.startswith(SHUFFLED):
        return raw
    stride = raw[len(SHUFFLED)] if len(raw) > len(SHUFFLED) else 0
    if stride < 2:
        raise CheckpointError(f"checkpoint {path}: bytes are shuffled with stride {stride}, allowed are 2 to 255")
    shuffled = np.frombuffer(raw, np.uint8, offset=len(SHUFFLED) + 1)
    out, start = np.empty_like(shuffled), 0
    for offset in range(stride):
        every = out[offset::stride]
        every[:] = shuffled[start : start + len(every)]
        start += len(every)
    return out.tobytes()


def check_total(path: Path, loaded: Mapping[str, Any], raw_bytes: int) -> None:
    """Raise CheckpointError if the tensors have more bytes than their file, as views that share or repeat memory can."""
    total = 0
    for value in loaded.values():
        for tensor in value.values() if isinstance(value, Mapping) else ():
            if isinstance(tensor, Tensor):
                total += tensor.numel() * tensor.element_size()
    if total > raw_bytes:
        raise CheckpointError(f"checkpoint {path}: its tensors have {total} bytes, but its torch file has {raw_bytes}")
