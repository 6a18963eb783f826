"""The decoder: from the bytes of a .qlab file to numpy arrays. It needs numpy and the byte codecs, no torch.

Codes are integers; a weight is code · scale, one IEEE float32 multiplication of two exact float32 numbers, so every
machine gets the same bits.

O: rows, I: columns.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.container import Section, check_codes, check_tables, manifest_text, read_container
from quantlab.artifact.manifest import CodedTensor, GridTensor, Manifest, RawTensor, Tensor, TrellisTensor
from quantlab.artifact.shaped_grid import context_of, weights_of
from quantlab.coding import rans
from quantlab.coding.codecs import bytes_to_codes, from_byte_planes
from quantlab.coding.contexts import TensorContext
from quantlab.coding.frequency_tables import sets_from_bytes
from quantlab.errors import FormatError
from quantlab.format_rules import code_limit

Array = NDArray[Any]

ROW_SCALES, GRID_SCALES, RAW, CLASSES, TABLES, STREAM = range(6)  # codes of the k-th row grid lie in section 6 + k
CODES = 6
"""Where there are files, they lie in one more section, the last."""
MAX_TABLE_BYTES = 1 << 20


def parse_artifact(data: bytes) -> tuple[Manifest, list[Section]]:
    """Return the manifest and the undecoded sections of a whole file in memory.

    Raises:
        FormatError: read_container refuses the file, the lengths of its sections do not agree with the tensors, or it has more
            codes than its length justifies.
    """
    raw_manifest, sections = read_container(data)
    manifest = Manifest.from_dict(raw_manifest)
    if manifest_text(manifest.to_dict()) != manifest_text(raw_manifest):
        raise FormatError("manifest is not canonical: a key holds what its absence means")
    check_codes((t.shape for t in manifest.tensors if isinstance(t, TrellisTensor)), len(data))
    expected = section_lengths(manifest, sections)
    got = [s.raw_bytes for s in sections]
    if got != expected:
        at = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected)))
        raise FormatError(f"the tensors need {len(expected)} sections, the file has {len(got)}; they differ at section {at}")
    check_tables(got[TABLES], len(data))
    return manifest, sections


def section_lengths(manifest: Manifest, sections: list[Section]) -> list[int]:
    """Return the decoded bytes that the tensors need of each section; tables and stream have a length of their own."""
    grids = [t for t in manifest.tensors if isinstance(t, GridTensor)]
    trellises = [t for t in manifest.tensors if isinstance(t, TrellisTensor)]
    side_bytes = sum(t.shape[0] + t.shape[1] for t in trellises)
    raw_bytes = sum(math.prod(t.shape) * itemsize(t.dtype) for t in manifest.tensors if isinstance(t, RawTensor))
    own = [min(s.raw_bytes, MAX_TABLE_BYTES) if n == TABLES else len(s.stored) for n, s in enumerate(sections[:CODES])]
    tables, stream = (own[TABLES], own[STREAM]) if trellises and len(own) == CODES else (0, 0)
    fixed = [2 * sum(t.shape[0] for t in grids), side_bytes, raw_bytes, side_bytes, tables, stream]
    files = [sum(manifest.files.values())] if manifest.files else []
    return [*fixed, *(math.prod(t.shape) for t in grids), *files]


def decode_artifact(manifest: Manifest, sections: list[Section]) -> dict[str, Array]:
    """Return all tensors in the manifest's order: floats of 16 and 32 bits as float32, others in their own dtype.

    Raises:
        FormatError: damaged streams, codes beyond their width, scales that are negative, or values that are not finite.
    """
    arrays = decode_passthrough(manifest, sections)
    for grid, codes_OI, step_O in decode_row_grids(manifest, sections):
        with np.errstate(over="ignore", invalid="ignore"):
            arrays[grid.name] = _checked(grid, codes_OI.astype(np.float32) * step_O[:, None])
    for tensor, codes_OI, context, a_O, b_I in decode_trellis(manifest, sections):
        arrays[tensor.name] = _checked(tensor, weights_of(tensor, codes_OI, context, a_O, b_I))
    return {tensor.name: arrays[tensor.name] for tensor in manifest.tensors}


def decode_trellis(
    manifest: Manifest, sections: list[Section], decode: Callable[..., list[Any]] = rans.decode
) -> Iterator[tuple[TrellisTensor, Any, TensorContext, Array, Array]]:
    """Yield for each trellis tensor its entry, codes int16 [O, I], context, and row and column units int8 [O] and [I].

    Args:
        decode: rans.decode, or another implementation of it, whose type the codes then have.
    Raises:
        FormatError: damaged sections, or codes beyond their width.
    """
    tensors = [t for t in manifest.tensors if isinstance(t, TrellisTensor)]
    if not tensors:
        for number in (GRID_SCALES, CLASSES, TABLES, STREAM):
            sections[number].decode()  # to nothing: whatever is stored there, no tensor reads it
        return
    sides = [_sides(tensors, sections[number].decode()) for number in (GRID_SCALES, CLASSES)]
    contexts = [context_of(t, *units, *shares) for t, units, shares in zip(tensors, *sides, strict=True)]
    sets = sets_from_bytes(sections[TABLES].decode())
    codes = decode(sections[STREAM].decode(), contexts, sets, manifest.lanes)
    for tensor, codes_OI in zip(tensors, codes, strict=True):
        _check_width(tensor, codes_OI)
    yield from ((t, q, context, *units) for t, q, context, units in zip(tensors, codes, contexts, sides[0], strict=True))


def decode_row_grids(manifest: Manifest, sections: list[Section]) -> Iterator[tuple[GridTensor, NDArray[np.int8], Array]]:
    """Yield for each tensor on a row grid its entry, codes int8 [O, I], and steps float32 [O].

    Raises:
        FormatError: codes beyond their width, or scales that are negative or not finite.
    """
    scales: Array = from_byte_planes(sections[ROW_SCALES].decode(), np.dtype(np.float16))
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise FormatError("a row scale is negative or not finite")
    grids = [t for t in manifest.tensors if isinstance(t, GridTensor)]
    for tensor, section in zip(grids, sections[CODES : CODES + len(grids)], strict=True):
        mine, scales = np.split(scales, [tensor.shape[0]])
        with np.errstate(over="ignore"):
            steps_O = np.ldexp(mine.astype(np.float32), np.int32(tensor.exponent))
        codes_OI = bytes_to_codes(section.decode(), *tensor.shape)
        _check_width(tensor, codes_OI)
        yield tensor, codes_OI, steps_O


def decode_passthrough(manifest: Manifest, sections: list[Section]) -> dict[str, Array]:
    """Return the unquantized tensors by name, float16 and bfloat16 as float32. FormatError for a value that is not finite."""
    raw, at, arrays = sections[RAW].decode(), 0, {}
    for tensor in manifest.tensors:
        if isinstance(tensor, RawTensor):
            size = math.prod(tensor.shape) * itemsize(tensor.dtype)
            arrays[tensor.name] = _checked(tensor, _from_raw(tensor, raw[at : at + size]))
            at += size
    return arrays


def decode_files(manifest: Manifest, sections: list[Section]) -> dict[str, bytes]:
    """Return the tokenizer's files by name, in order of name; empty where the artifact carries none."""
    raw, files = sections[-1].decode() if manifest.files else b"", {}
    for name, size in sorted(manifest.files.items()):
        files[name], raw = raw[:size], raw[size:]
    return files


def _sides(tensors: list[TrellisTensor], raw: bytes) -> list[tuple[Array, Array]]:
    """Return one int8 [O] and one int8 [I] for each tensor; the section has all rows first, then all columns."""
    lengths = [t.shape[0] for t in tensors] + [t.shape[1] for t in tensors]
    parts = np.split(np.frombuffer(raw, np.int8), np.cumsum(lengths)[:-1])
    return list(zip(parts[: len(tensors)], parts[len(tensors) :], strict=True))


def _check_width(tensor: CodedTensor, q_OI: Array) -> None:
    limit = code_limit(tensor.bits)
    if q_OI.size and (int(q_OI.min()) < -limit or int(q_OI.max()) > limit):
        raise FormatError(f"tensor {tensor.name!r}: a code lies beyond ±{limit}, the range of {tensor.bits} bits")


def _checked(tensor: Tensor, values: Array) -> Array:
    """Return the values. A checkpoint with a value that is not finite is never packed, so a file has none."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        what = "a value is not finite" if isinstance(tensor, RawTensor) else "a weight is beyond the range of float32"
        raise FormatError(f"tensor {tensor.name!r}: {what}")
    return values


def _from_raw(tensor: RawTensor, raw: bytes) -> Array:
    if tensor.dtype == "bfloat16":  # numpy has no bfloat16: the upper half of a float32
        bits = from_byte_planes(raw, np.dtype(np.uint16)).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    array = from_byte_planes(raw, np.dtype(tensor.dtype) if tensor.dtype != "bool" else np.dtype(np.uint8))
    if tensor.dtype == "bool":
        if array.size and int(array.max()) > 1:
            raise FormatError(f"tensor {tensor.name!r}: a bool is stored as {int(array.max())}, 0 or 1 are allowed")
        mask: Array = array != 0
        return mask.reshape(tensor.shape)
    values: Array = array.astype(np.float32 if tensor.dtype == "float16" else array.dtype)  # a copy: bytes are read-only
    return values.reshape(tensor.shape)


def itemsize(dtype: str) -> int:
    """Return the bytes of one element, by a name of RAW_DTYPES."""
    return {"bfloat16": 2, "bool": 1}.get(dtype) or np.dtype(dtype).itemsize


def digest(arrays: dict[str, Array]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bits of all tensors in order of name, as hex digits."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(json.dumps([name, array.dtype.name, list(arrays[name].shape)]).encode())
        state.update(array.tobytes())
    return state.hexdigest()
