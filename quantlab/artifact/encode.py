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
from quantlab.artifact.manifest import CodedTensor, GridTensor, Manifest, RawTensor, ShapedTensor
from quantlab.coding.codecs import encode_smallest
from quantlab.coding.planes import to_byte_planes


@dataclass(frozen=True, slots=True)
class CodedPayload:
    """One quantized matrix, ready to be written: its entry, what its steps need beside it, and its coded section."""

    entry: CodedTensor
    side: NDArray[Any]
    """float16 scales [O] of a row grid; int8 shapes [O + I], rows first, of a shaped one."""
    codes: Section


@dataclass(frozen=True, slots=True)
class RawPayload:
    """One kept tensor, ready to be written."""

    entry: RawTensor
    raw: bytes
    value: Tensor
    """What every reader of the file must get: 16-bit floats as float32."""


def encode_artifact(payloads: Sequence[CodedPayload | RawPayload], **about: Any) -> bytes:
    """The bytes of the file; `about` are the other fields of Manifest (model, tokenizer, origin, producer)."""
    manifest = Manifest(tensors=tuple(p.entry for p in payloads), **about)
    coded = [p for p in payloads if isinstance(p, CodedPayload)]
    scales = _joined([p.side for p in coded if isinstance(p.entry, GridTensor)], np.float16)
    shapes = _joined([p.side for p in coded if isinstance(p.entry, ShapedTensor)], np.int8)
    raw = b"".join(p.raw for p in payloads if isinstance(p, RawPayload))
    small = [to_byte_planes(scales), shapes.tobytes(), raw]
    return write_container(manifest.to_dict(), [*map(smallest_section, small), *(p.codes for p in coded)])


def _joined(parts: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])


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
