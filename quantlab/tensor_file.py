"""Safetensors files: written whole or not at all, their header's strings, and a fingerprint of a state dict."""

import hashlib
import json
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from quantlab.errors import CheckpointError
from quantlab.files import whole_file

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of each tensor of a file, in the order in which they lie there."""
_DTYPES = {torch.float32: "F32", torch.int32: "I32"}


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save `tensors` with string `metadata` in the header; the file appears whole or not at all.

    Raises:
        QuantlabError: the file cannot be written.
    """
    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    header, start = _sorted_header(data)
    with whole_file(path) as file:
        file.write(header)
        file.write(memoryview(data)[start:])


def _sorted_header(data: bytes) -> tuple[bytes, int]:
    """Return the header with its strings in order of their keys, which safetensors writes in any, and where tensors start."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    if len(header.get("__metadata__", {})) < 2:
        return data[:start], start
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, start


def write_safetensors_in_parts(path: Path, layout: Layout, tensors: Iterable[Tensor], metadata: dict[str, str]) -> None:
    """Save tensors one after another, so that only one is in memory; the file appears whole or not at all.

    Args:
        layout: dtypes (float32 or int32) and shapes, known before the first tensor.
        tensors: the tensors in the order of `layout`, on the CPU.
        metadata: strings in the header.
    Raises:
        QuantlabError: the file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + dtype.itemsize * prod(shape)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, (dtype, shape) in zip(tensors, layout.values(), strict=True):
            assert tensor.dtype == dtype and tuple(tensor.shape) == shape
            file.write(tensor.contiguous().numpy().data)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the strings in the header of a .safetensors file; an empty dict for any other file.

    Raises:
        CheckpointError: the .safetensors file is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read the header of {path}: the file is damaged: {error}") from error


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return 32 hex digits of SHA-256 over the names, dtypes, shapes and bits of the tensors, in order of name."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:32]
