"""From the bytes of a .qlab file to numpy arrays. Needs numpy and the byte codecs, no torch.

Codes are integers; a weight is code · scale, one IEEE float32 multiplication of two exact float32 numbers, so every
machine gets the same bits.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.container import Section, read_container
from quantlab.artifact.manifest import CodedTensor, GridTensor, Manifest, RawTensor, ShapedTensor, code_limit
from quantlab.artifact.steps import shaped_steps
from quantlab.coding.planes import bytes_to_codes, from_byte_planes
from quantlab.errors import FormatError

Array = NDArray[Any]

SCALES, SHAPES, RAW = 0, 1, 2  # section numbers; codes of the k-th coded tensor lie in section 3 + k
CODES = 3


def read_artifact(path: Path) -> tuple[Manifest, list[Section]]:
    """Manifest and undecoded sections of the file at `path`. FormatError names the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return parse_artifact(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def parse_artifact(data: bytes) -> tuple[Manifest, list[Section]]:
    """Manifest and undecoded sections of a whole file in memory; section lengths agree with the tensors."""
    raw_manifest, sections = read_container(data)
    manifest = Manifest.from_dict(raw_manifest)
    expected = section_lengths(manifest)
    got = [s.raw_bytes for s in sections]
    if got != expected:
        at = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected)))
        raise FormatError(f"the tensors need {len(expected)} sections, the file has {len(got)}; they differ at section {at}")
    return manifest, sections


def section_lengths(manifest: Manifest) -> list[int]:
    """Decoded bytes of each section that the manifest's tensors call for."""
    coded = [t for t in manifest.tensors if not isinstance(t, RawTensor)]
    scale_bytes = 2 * sum(t.shape[0] for t in coded if isinstance(t, GridTensor))
    shape_bytes = sum(t.shape[0] + t.shape[1] for t in coded if isinstance(t, ShapedTensor))
    raw_bytes = sum(math.prod(t.shape) * itemsize(t.dtype) for t in manifest.tensors if isinstance(t, RawTensor))
    return [scale_bytes, shape_bytes, raw_bytes, *(math.prod(t.shape) for t in coded)]


def decode_artifact(manifest: Manifest, sections: list[Section]) -> dict[str, Array]:
    """All tensors in the manifest's order: float tensors as float32 (float64 kept), others in their own dtype.

    Raises:
        FormatError: damaged streams, codes beyond their width, or scales that are negative or not finite.
    """
    scales: Array = from_byte_planes(sections[SCALES].decode(), np.dtype(np.float16))
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise FormatError("a row scale is negative or not finite")
    shapes: Array = np.frombuffer(sections[SHAPES].decode(), np.int8)
    raw, coded = sections[RAW].decode(), iter(sections[CODES:])
    arrays: dict[str, Array] = {}
    for tensor in manifest.tensors:
        if isinstance(tensor, GridTensor):
            mine, scales = np.split(scales, [tensor.shape[0]])
            arrays[tensor.name] = _dequantize(tensor, next(coded), _row_steps(tensor, mine))
        elif isinstance(tensor, ShapedTensor):
            a_O, b_I, shapes = np.split(shapes, np.cumsum(tensor.shape))
            arrays[tensor.name] = _dequantize(tensor, next(coded), shaped_steps(tensor.level, a_O, b_I))
        else:
            size = math.prod(tensor.shape) * itemsize(tensor.dtype)
            arrays[tensor.name], raw = _from_raw(tensor, raw[:size]), raw[size:]
    return arrays


def decode_codes(tensor: CodedTensor, section: Section) -> NDArray[np.int8]:
    """Codes int8 [rows, columns] of one coded tensor. FormatError if one lies beyond the tensor's width."""
    rows, columns = tensor.shape
    q_OI = bytes_to_codes(section.decode(), rows, columns)
    limit = code_limit(tensor.bits)
    if q_OI.size and (int(q_OI.min()) < -limit or int(q_OI.max()) > limit):
        raise FormatError(f"tensor {tensor.name!r}: a code lies beyond ±{limit}, the range of {tensor.bits} bits")
    return q_OI


def _row_steps(tensor: GridTensor, scale_O: Array) -> Array:
    with np.errstate(over="ignore"):
        steps_O: Array = np.ldexp(scale_O.astype(np.float32), np.int32(tensor.exponent))
    return steps_O[:, None]


def _dequantize(tensor: CodedTensor, section: Section, steps: Array) -> Array:
    """Codes times steps, float32 [O, I]; steps are [O, 1] or [O, I]."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights: Array = decode_codes(tensor, section).astype(np.float32) * steps
    if not np.isfinite(weights).all():
        raise FormatError(f"tensor {tensor.name!r}: a weight is beyond float32")
    return weights


def _from_raw(tensor: RawTensor, raw: bytes) -> Array:
    if tensor.dtype == "bfloat16":  # numpy has no bfloat16: the upper half of a float32
        bits = from_byte_planes(raw, np.dtype(np.uint16)).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    array = from_byte_planes(raw, np.dtype(tensor.dtype) if tensor.dtype != "bool" else np.dtype(np.uint8))
    if tensor.dtype == "bool":
        mask: Array = array != 0
        return mask.reshape(tensor.shape)
    values: Array = array.astype(np.float32) if tensor.dtype == "float16" else array
    return values.reshape(tensor.shape)


def itemsize(dtype: str) -> int:
    """Bytes of one element of a RAW_DTYPES name."""
    return {"bfloat16": 2, "bool": 1}.get(dtype) or np.dtype(dtype).itemsize


def digest(arrays: dict[str, Array]) -> str:
    """SHA-256 over names, dtypes, shapes and bits of all tensors in order of name: equal digests mean equal tensors."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(json.dumps([name, array.dtype.name, list(arrays[name].shape)]).encode())
        state.update(array.tobytes())
    return state.hexdigest()
