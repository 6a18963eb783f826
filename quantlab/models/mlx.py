"""Checkpoints of the challenge's MLX script (.npz), and their weights as the PyTorch model needs them."""

import io
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from quantlab.errors import CheckpointError, first_line
from quantlab.files import check_regular

BFLOAT16 = np.dtype("V2")
"""Type that MLX writes for bfloat16, which numpy lacks: two bytes without a meaning."""
_ROTATED = ("attn.c_q.weight", "attn.c_k.weight")


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an .npz file as tensors, by name; two bytes of type `BFLOAT16` are bfloat16.

    Arrays must be stored without compression, as MLX stores them, so that memory is bounded by the file's size.

    Raises:
        CheckpointError: the file is damaged, or an array is compressed or of another type.
    """
    check_regular(path, CheckpointError, "checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise CheckpointError(f"checkpoint {path} has compressed arrays, supported are those of savez")
            if sum(e.file_size for e in entries) > path.stat().st_size:
                raise CheckpointError(f"checkpoint {path} is damaged: its entries overlap")
            names = [e.filename.removesuffix(".npy") for e in entries]
            if len(set(names)) < len(names):
                raise CheckpointError(f"checkpoint {path} has an array twice")
            return {name: _tensor(path, name, archive.read(entry)) for name, entry in zip(names, entries, strict=True)}
    except CheckpointError:
        raise
    except Exception as error:  # damaged archives fail in any way: BadZipFile, NotImplementedError, struct.error, ...
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error


def _tensor(path: Path, name: str, raw: bytes) -> Tensor:
    stream = io.BytesIO(raw)
    try:
        shape, is_fortran, dtype = _header(stream)
    except Exception as error:  # numpy parses the header as a Python literal, which fails in many ways
        raise CheckpointError(f"checkpoint {path}: array {name} has a damaged header: {first_line(error)}") from error
    data = raw[stream.tell() :]
    is_bfloat16 = dtype == BFLOAT16
    if not (is_bfloat16 or dtype.kind in "fiub") or dtype.byteorder == ">":
        raise CheckpointError(f"checkpoint {path}: array {name} has the type {dtype.str}, which is not supported")
    if any(n < 0 for n in shape) or prod(shape) * dtype.itemsize != len(data):
        raise CheckpointError(
            f"checkpoint {path}: array {name} has {len(data)} bytes, which do not fit its shape {list(shape)}"
        )
    values = np.frombuffer(data, np.int16 if is_bfloat16 else dtype).reshape(shape[::-1] if is_fortran else shape)
    try:
        tensor = torch.from_numpy(np.array(values.T if is_fortran else values, order="C"))
    except TypeError as error:
        raise CheckpointError(f"checkpoint {path}: array {name} has the type {dtype.str}, which is not supported") from error
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of .npy")


def rotated_as_torch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model in MLX as weights of the same function in the PyTorch model.

    MLX rotates the channel pair (j, j + E / 2) of a head by +angle, the PyTorch model by -angle. Both give the same scores once
    the second half of each head's rows in c_q and c_k has the other sign. Tensors that do not fit are left as they are.
    """
    out = dict(state)
    for name, tensor in state.items():
        gain = state.get(f"{name.split('.attn.')[0]}.attn.q_gain")
        query = state.get(f"{name.split('.attn.')[0]}.attn.c_q.weight")
        if not name.endswith(_ROTATED) or gain is None or query is None or not gain.numel() or tensor.ndim != 2:
            continue
        head_dim = query.shape[0] // gain.numel()
        if head_dim < 2 or tensor.shape[0] % head_dim:
            continue  # the check of shapes names it
        sign_E = torch.ones(head_dim)
        sign_E[head_dim // 2 :] = -1
        out[name] = tensor * sign_E.repeat(tensor.shape[0] // head_dim)[:, None].to(tensor.dtype)
    return out
