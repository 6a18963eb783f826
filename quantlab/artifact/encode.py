"""From codes, scales and kept tensors to the bytes of a .qlab file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.container import Section, write_container
from quantlab.artifact.manifest import GridTensor, Manifest, RawTensor
from quantlab.coding.codecs import encode_smallest
from quantlab.coding.planes import to_byte_planes


@dataclass(frozen=True, slots=True)
class GridPayload:
    """One quantized matrix, ready to be written: its entry, float16 scales [rows], and its coded section."""

    entry: GridTensor
    scale_O: NDArray[np.float16]
    codes: Section


@dataclass(frozen=True, slots=True)
class RawPayload:
    """One kept tensor, ready to be written."""

    entry: RawTensor
    raw: bytes
    value: Tensor
    """What every reader of the file must get: 16-bit floats as float32."""


def encode_artifact(payloads: Sequence[GridPayload | RawPayload], **about: Any) -> bytes:
    """The bytes of the file; `about` are the other fields of Manifest (model, tokenizer, origin, producer)."""
    manifest = Manifest(tensors=tuple(p.entry for p in payloads), **about)
    grids = [p for p in payloads if isinstance(p, GridPayload)]
    raws = [p for p in payloads if isinstance(p, RawPayload)]
    scales = np.concatenate([p.scale_O for p in grids]) if grids else np.empty(0, np.float16)
    small = [to_byte_planes(scales), b"".join(p.raw for p in raws)]
    return write_container(manifest.to_dict(), [*map(smallest_section, small), *(p.codes for p in grids)])


def smallest_section(raw: bytes) -> Section:
    """`raw` under the codec that makes it smallest."""
    codec, stored = encode_smallest(raw)
    return Section(codec, len(raw), stored)


def keep(name: str, tensor: Tensor, *, exact: bool = False) -> RawPayload:
    """A tensor stored as it is, floats in 16 bits where that loses less than half a float16 unit of the largest value.

    float16 and bfloat16 stay as they are; float32 and float64 become float16 if every value survives to
    2**-11 of the tensor's largest, else float32. Integers and bools stay. With `exact` floats keep their own dtype.
    """
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in (torch.float32, torch.float64) and not exact:
        tensor = tensor.half() if _fits_half(tensor) else tensor.float()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype == torch.bfloat16:
        array: NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16)
    else:
        array = tensor.view(torch.uint8).numpy() if tensor.dtype == torch.bool else tensor.numpy()
    value = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return RawPayload(RawTensor(name=name, shape=tuple(tensor.shape), dtype=dtype), to_byte_planes(array), value)


def _fits_half(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    error = (tensor.half().double() - tensor.double()).abs().max().item()
    return math.isfinite(error) and error <= 2.0**-11 * tensor.abs().max().item()
