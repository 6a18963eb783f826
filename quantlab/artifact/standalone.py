"""A whole reader of trellis artifacts in one file: from a .qlab file to a state dict, with numpy and torch alone.

`emit.py` makes a short file of this module that is counted as code. So it imports nothing of quantlab (the constants of
format_rules.py are repeated as numbers), and checks only what tells a whole file from any other (magic, version, number of
sections, digest) and what bounds its time and memory by the length of the file. It passes over files of a tokenizer. decode.py
and its modules check everything else and say why each step is as it is; both readers give the same tensors bit for bit. This
one knows the kinds trellis_grid and raw, and the codecs stored, deflate, lzma and rans-0. It needs a little-endian machine.

O: rows, I: columns.
"""

import hashlib
import json
import lzma
import math
import struct
import zlib
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Entry = dict[str, Any]

_START = b"\x89QLAB\r\n\x1a\1\0"  # magic, version 1
_DTYPES = "float16 bfloat16 float32 float64 int8 uint8 int16 int32 int64 bool"
_PARITY_CHECKS = {4: (5, 2), 8: (11, 4), 16: (19, 4), 32: (37, 8), 64: (67, 20), 256: (333, 242)}
_CHUNK = 1 << 16  # symbols whose low bits are read at a time: bounds the memory of temporaries


def load(path: "str | PathLike[str]") -> dict[str, torch.Tensor]:
    """Return the tensors of the artifact at `path`: those that `quantlab unpack` gives, in the file's order.

    Raises:
        ValueError: the file is of another kind or version, has row grids, was altered, or decodes to more than a file of its
            length may.
    """
    with open(path, "rb") as file:
        data = file.read()
    problem = str(path) + ": damaged, or not a trellis artifact of version 1"
    if data[:10] != _START or hashlib.sha256(data[:-16]).digest()[:16] != data[-16:]:
        raise ValueError(problem)
    count, manifest_bytes = struct.unpack_from("<HI", data, 10)
    table_end = 28 + count * 13
    at = table_end + manifest_bytes
    manifest = json.loads(zlib.decompressobj(-15).decompress(data[table_end:at], 65536 + 64 * len(data)))
    if count != 6 + ("files" in manifest):
        raise ValueError(problem)
    rows = list(struct.iter_unpack("<BIII", data[28 : 28 + 6 * 13]))
    _check_bound(rows, manifest, 64 * len(data))
    sections = []
    for codec, stored_bytes, raw_bytes, _ in rows:
        sections.append(_unpacked(codec, data[at : at + stored_bytes], raw_bytes))
        at += stored_bytes
    weights, raw = _weights(manifest, sections), memoryview(sections[2])  # slices of it are not copied
    tensors = {}
    for entry in manifest["tensors"]:
        if entry["kind"] == "raw":
            tensors[entry["name"]], raw = _passthrough(entry, raw)
        else:
            tensors[entry["name"]] = torch.from_numpy(next(weights))
    for name, stored in manifest.get("aliases", {}).items():
        tensors[name] = tensors[stored]
    for name, shape in manifest.get("shapes", {}).items():
        parts = [tensors[name]] if name in tensors else [tensors.pop(name + "." + str(n)) for n in range(math.prod(shape[:-2]))]
        tensors[name] = torch.cat(parts).reshape(shape)
    return tensors


def _check_bound(rows: list[Any], manifest: Entry, expanded: int) -> None:
    """Raise ValueError where sections and codes are more than docs/format.md allows for a file of this length."""
    shapes = [entry["shape"] for entry in manifest["tensors"] if entry["kind"] != "raw"]
    codes = sum(max(O * max(I, 64), I, 64) for O, I in shapes)
    is_slow = any(codec == 5 and raw_bytes > 16 * stored_bytes + (1 << 20) for codec, stored_bytes, raw_bytes, _ in rows)
    is_slow |= rows[4][2] > expanded // 16 + 2048
    raw_total = sum(row[2] for row in rows)
    values = sum(abs(math.prod(entry["shape"])) for entry in manifest["tensors"] if entry["kind"] == "raw")
    is_large = raw_total > expanded + (1 << 22) or codes > expanded + (1 << 20) or values > raw_total
    if is_slow or is_large or manifest.get("lanes", 16) < 16:
        raise ValueError("the file decodes to more than one of its length may")


def _unpacked(codec: int, stored: bytes, raw_bytes: int) -> bytes:
    """Return the bytes that a section holds (coding/codecs.py)."""
    if codec == 1:
        return zlib.decompressobj(-15).decompress(stored, raw_bytes + 1)
    if codec == 4:
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26}]
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, None, filters).decompress(stored, raw_bytes + 1)
    if codec == 5 and raw_bytes:
        return _rans_bytes(stored, raw_bytes)
    return stored


def _rans_bytes(stored: bytes, raw_bytes: int) -> bytes:
    """Decode side information (coding/byte_coder.py)."""
    first, n, packing = stored[:3]
    exponent, width = divmod(packing, 16)
    at = 3 + ((n + 1) * width + 7) // 8
    packed = int.from_bytes(stored[3:at], "big") >> -(n + 1) * width % 8
    logs = [(packed >> (n - i) * width & (1 << width) - 1) << exponent for i in range(n + 1)]
    states, words = _lanes(stored, at, min(1 << max((raw_bytes // 2048).bit_length() - 1, 0), 16))
    symbols = _symbols(np.zeros(raw_bytes, np.uint16), np.array(_slots(-127, logs)), states, words, np.array([0]))
    is_escape = symbols == -128
    values = (symbols + np.int16(first + 127)).astype(np.uint8)
    values[is_escape] = np.frombuffer(stored, np.uint8, offset=len(stored) - is_escape.sum())
    return bytes(values)


def _passthrough(entry: Entry, raw: memoryview) -> tuple[torch.Tensor, memoryview]:
    """Return an unquantized tensor from its byte planes, and the bytes after it."""
    dtype = {name: getattr(torch, name) for name in _DTYPES.split()}[entry["dtype"]]
    tensor = torch.empty(math.prod(entry["shape"]), dtype=dtype)
    planes = np.frombuffer(raw[: tensor.nbytes], np.uint8).reshape(dtype.itemsize, -1)
    tensor.view(torch.uint8).numpy()[:] = planes.T.reshape(-1)
    value = tensor.float() if dtype in (torch.float16, torch.bfloat16) else tensor
    return value.reshape(entry["shape"]), raw[tensor.nbytes :]


def _weights(manifest: Entry, sections: list[bytes]) -> Iterator[Array]:
    """Yield the weights float32 [O, I] of one trellis tensor after the other (artifact/shaped_grid.py)."""
    _, units, _, shares, tables, stream = sections
    entries = [entry for entry in manifest["tensors"] if entry["kind"] != "raw"]
    sides = list(zip(entries, *_sides(entries, units), *_sides(entries, shares), strict=True))
    classes = [
        np.add.outer(rows_O - a_O + entry["classes"], columns_I - b_I).clip(0, 83).astype(np.uint8)
        for entry, a_O, b_I, rows_O, columns_I in sides
    ]
    symbols = _all_symbols(entries, classes, _slots_of_sets(tables), manifest["lanes"], stream)
    for (entry, a_O, b_I, _, _), class_OI in zip(sides, classes, strict=True):
        symbol_OI, symbols = symbols[: class_OI.size].reshape(class_OI.shape), symbols[class_OI.size :]
        value_OI = _values(symbol_OI, class_OI < 9, entry["states"], entry["paths"])
        levels = range(entry["level"] - 16 * 256, entry["level"] + 16 * 256, 16)
        steps = [round(2 ** (level % 64 / 64 + 23)) * 2.0 ** (level // 64 - 23) for level in levels]
        yield value_OI * np.array(steps, np.float32)[np.add.outer(a_O, b_I) + 256]


def _all_symbols(entries: list[Entry], classes: list[Array], slots: Array, lanes: int, stream: bytes) -> Array:
    """Return the symbols int16 of all tensors, one after the other (coding/rans.py)."""
    class_N = np.concatenate([class_OI.reshape(-1) for class_OI in classes])
    shift_N = (class_N.clip(24) - 24) // 4
    first_tables = [np.uint16(28 * entry["tables"]) for entry in entries]
    table_N = class_N - 4 * shift_N + np.repeat(first_tables, [class_OI.size for class_OI in classes])
    escape_count, raw_bytes, *counts = np.frombuffer(stream, "<u4", 1 + (lanes + 31) // 32).tolist()
    escapes_at = 8 + 4 * len(counts)
    raw_at = escapes_at + 2 * escape_count
    states, words = _lanes(stream, raw_at + raw_bytes, lanes)
    shifted_N = _symbols(table_N, slots, states, words, np.cumsum([0, *counts]))
    symbols = shifted_N.astype(np.int16)
    symbols[shifted_N == -128] = np.frombuffer(stream, "<i2", escape_count, escapes_at)
    _join_low_bits_(symbols, shift_N, np.frombuffer(stream, np.uint8, offset=raw_at))
    return symbols


def _sides(entries: list[Entry], section: bytes) -> list[list[Array]]:
    """Return one int16 array a tensor for the rows, and one for the columns; the section has all rows first."""
    ends = np.cumsum([entry["shape"][side] for side in (0, 1) for entry in entries])
    parts = np.split(np.frombuffer(section, np.int8).astype(np.int16), ends)
    return [parts[: len(entries)], parts[len(entries) : -1]]


def _slots_of_sets(raw: bytes) -> Array:
    """Return the slots of all tables of all stored sets (coding/frequency_tables.py)."""
    at = 1 + 3 * 28 * raw[0]
    heads = np.cumsum(np.frombuffer(raw[1:at], np.uint8).reshape(3, -1), 1, np.uint8)
    latest, slots = [96] * 256, [np.empty(0, np.int64)]
    for low, n, escape in heads.T.tolist():
        column = low ^ 128  # low is a signed byte, symbol 0 in column 128
        for i in range(column, column + n):
            latest[i] = latest[i] + raw[at] & 255
            at += 1
        slots.append(np.array(_slots(column - 128, [escape, *latest[column : column + n]])))
    return np.concatenate(slots)


def _slots(low: int, logs: list[int]) -> list[int]:
    """Return the 4096 slots of one table: frequency, symbol byte, place within the symbol's slots.

    Powers that are rounded to whole numbers here are never near a half: every machine rounds them alike.
    """
    weights = [round(2 ** (40 - log % 8 / 8)) >> log // 8 for log in logs]
    total = sum(weights)
    rounded = [max(1, (8192 * weight + total) // (2 * total)) for weight in weights]
    frequencies, excess = np.array(rounded), sum(rounded) - 4096
    while excess:
        frequencies[frequencies.argmax()] -= min(excess, 1)
        excess -= min(excess, 1)
    symbols = [-128, *range(low, low + len(logs) - 1)]
    pairs = zip(frequencies.tolist(), symbols, strict=True)
    return [frequency << 24 | (symbol & 255) << 16 | place for frequency, symbol in pairs for place in range(frequency)]


def _lanes(stored: bytes, at: int, lanes: int) -> tuple[Array, Array]:
    """Return the states of the lanes, and the words after them."""
    words_at = at + 4 * lanes
    states = np.frombuffer(stored, "<u4", lanes, at).astype(np.int64)
    return states, np.frombuffer(stored, "<u2", (len(stored) - words_at) // 2, words_at).astype(np.int64)


def _symbols(table_N: Array, slots: Array, states: Array, words: Array, used: Array) -> Array:
    """Return symbols int8, -128 for escapes; `used`, where the words of each lane group begin, changes (coding/lanes.py)."""
    symbols = np.empty(len(table_N), np.int8)
    for start in range(0, len(table_N), len(states)):
        first = table_N[start : start + len(states)].astype(np.int64) << 12
        state = states[: len(first)]
        slot = slots.take((state & 4095) + first)
        symbols[start : start + len(states)] = slot >> 16
        state >>= 12
        state *= slot >> 24
        state += slot & 65535
        renormalizing = (state < 65536).nonzero()[0]
        counts = np.bincount(renormalizing // 32, minlength=len(used))
        at = np.arange(len(renormalizing)) + (used - counts.cumsum() + counts)[renormalizing // 32]
        state[renormalizing] = state[renormalizing] << 16 | words[at]
        used += counts
    return symbols


def _join_low_bits_(symbols: Array, shifts: Array, raw: Array) -> None:
    """Put raw low bits back under the symbols of high scale classes (coding/symbols.py)."""
    bit = 0
    for start in range(0, len(symbols), _CHUNK):
        has_raw = start + shifts[start : start + _CHUNK].nonzero()[0]
        shift = shifts[has_raw].astype(np.int64)
        end = bit + np.cumsum(shift)
        at = end - shift >> 3
        window = raw[at].astype(np.int64) << 16 | raw[at + 1].astype(np.int64) << 8 | raw[at + 2]
        symbols[has_raw] = symbols[has_raw] << shift | window >> 24 + 8 * at - end & (1 << shift) - 1
        bit += shift.sum()


def _values(symbol_OI: Array, is_scalar_OI: Array, states: int, paths: str) -> Array:
    """Return weights in steps, float32 [O, I] (coding/symbols.py, format_rules.py)."""
    if states == 1:
        return symbol_OI.astype(np.float32)
    h0, h1 = _PARITY_CHECKS[states]
    # by doubled state + parity; from 512 on for weights that bypass the trellis, which pass the state on
    move = [(i >> 1 ^ (i >> 1 & 1) * h0 ^ (i & 1) * h1) & 510 if i < 512 else i & 510 for i in range(1024)]
    moves = np.array(move, np.uint16)
    O, I = symbol_OI.shape
    Q = (I + 31) // 32
    index_OI = np.full((O, Q * 32), 512, np.uint16)
    index_OI[:, :I] = symbol_OI.astype(np.uint16) & 1 | is_scalar_OI * np.uint16(512)
    states_of_paths = np.zeros((O // 32 + Q + 1, 64), np.uint16)
    for i, here in enumerate(index_OI.reshape(O, Q, 32)):
        p, i = divmod(i, 32) if paths == "blocks" else (0, 0)
        before = states_of_paths[p : p + Q, i : i + 32]
        here |= before
        before[:] = moves.take(here)
    half_OI = (index_OI[:, :I] >> 1 & ~is_scalar_OI).astype(np.int16)
    code_OI = 2 * ((symbol_OI ^ -half_OI) + half_OI) + half_OI
    return code_OI.astype(np.float32) - np.float32(0.5) * ~is_scalar_OI
