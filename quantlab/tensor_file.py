"""Safetensors files: written whole or not at all, their header's strings, and a fingerprint of a state dict."""

import hashlib
import json
from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from quantlab.array_file import read_array
from quantlab.errors import CheckpointError
from quantlab.files import whole_file

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of each tensor of a file, in the order in which they lie there."""
_DTYPES = {torch.float32: "F32", torch.int32: "I32"}


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save `tensors` with string `metadata` in the header; the file appears whole or not at all.

    Tensors that share memory are written out each.

    Raises:
        QuantlabError: the file cannot be written.
    """
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if place in seen else plain
        seen.add(place)
    data = save(separate, metadata)
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


class TensorFile:
    """A safetensors file that stays open and whose tensors are read one by one, into memory of their own.

    Nothing is mapped: a file that is larger than the memory or the address space that the process may have can be read.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check its header.

        Raises:
            SafetensorError: the header is damaged.
            OSError: the file cannot be read.
        """
        with safe_open(path, framework="pt", device="cpu") as checked:  # the library refuses overlaps, holes and wrong lengths
            self.metadata: dict[str, str] = dict(checked.metadata() or {})
            slices = {name: checked.get_slice(name) for name in checked.keys()}  # noqa: SIM118 (not a dict)
            self.headers = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            del slices  # they keep the file mapped
        self._file = path.open("rb", buffering=0)
        size = int.from_bytes(self._file.read(8), "little")
        places = json.loads(self._file.read(size))
        self._starts = {name: 8 + size + places[name]["data_offsets"][0] for name in self.headers}

    def read(self, name: str) -> Tensor:
        """Return a tensor of dtype float32 or int32. EOFError if the file has become shorter."""
        kind, shape = self.headers[name]
        array = np.empty(shape, {"F32": np.float32, "I32": np.int32}[kind])
        try:
            read_array(self._file, array, self._starts[name])
        except EOFError as error:
            raise EOFError(f"it has become shorter, tensor {name} is cut off") from error
        return torch.from_numpy(array)


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
