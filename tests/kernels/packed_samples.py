"""Packed matrices with everything that may go wrong in them, for the tests of kernels."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from quantlab.kernels.packed import Packed, pack

SHAPES = [(1, 1), (3, 17), (63, 500), (5, 513)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A packed matrix and what it was made of, weights in float64."""

    packed: Packed
    codes_OI: Tensor
    half_OI: Tensor
    row_scale_O: Tensor
    column_scale_I: Tensor
    w_OI: Tensor


def sample(shape, *, bits=None, has_classes=True, outliers=0, seed=0) -> Sample:
    """Codes that `bits` bits hold but for `outliers` of them; about half of the weights are half a step lower."""
    generator = torch.Generator().manual_seed(seed)
    O, I = shape

    def integers(low, high, *size):
        return torch.randint(low, high + 1, size, generator=generator).to(torch.int16)

    limit = min(2 ** ((bits or 5) - 1) - 1, 32766)
    codes = integers(-limit, limit, O, I)
    codes.view(-1)[torch.randperm(O * I, generator=generator)[:outliers]] = integers(-32766, 32766, min(outliers, O * I))
    rows, columns = torch.rand(O, generator=generator) + 0.1, torch.rand(I, generator=generator) + 0.1
    classes = {"row_class_O": integers(-2, 7, O), "column_class_I": integers(0, 11, I)} if has_classes else {}
    half = torch.zeros(O, I)
    if has_classes:
        half = 0.5 * (classes["row_class_O"][:, None] + classes["column_class_I"] >= 6)
    return Sample(
        packed=amid_nan(pack(codes, rows, columns, bits=bits, **classes)),
        codes_OI=codes,
        half_OI=half,
        row_scale_O=rows,
        column_scale_I=columns,
        w_OI=(codes.double() - half) * rows[:, None] * columns,
    )


def amid_nan(packed: Packed) -> Packed:
    """The same matrix with NaN before and after each float32 tensor in memory."""
    tensors = {field.name: getattr(packed, field.name) for field in fields(packed)}
    floats = {name: t for name, t in tensors.items() if isinstance(t, Tensor) and t.dtype == torch.float32}
    return replace(packed, **{name: surrounded(t) for name, t in floats.items()})


def surrounded(tensor: Tensor) -> Tensor:
    """The same values with NaN before and after them in memory."""
    buffer = tensor.new_full((tensor.numel() + 1024,), torch.nan)
    buffer[512 : 512 + tensor.numel()] = tensor.reshape(-1)
    return buffer[512 : 512 + tensor.numel()].view(tensor.shape)
