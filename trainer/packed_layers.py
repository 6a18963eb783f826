"""Modules whose matrix stays packed in memory; kernels dequantize it where it is used.

Letters: O rows (outputs), I columns (inputs).
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.errors import ShapeError
from quantlab.kernels.dequant_matmul import dequant_matmul
from quantlab.kernels.packed import Packed
from quantlab.kernels.unpack_weights import unpack


class PackedWeight(nn.Module):
    """A packed matrix in buffers, so that it moves with the model to another device."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self._constants: dict[str, Any] = {}
        for field in fields(packed):
            value = getattr(packed, field.name)
            if isinstance(value, Tensor):
                self.register_buffer(field.name, value, persistent=False)
            else:
                self._constants[field.name] = value

    @property
    def packed(self) -> Packed:
        """The matrix, on the module's device."""
        values: dict[str, Any] = self._constants | dict(self.named_buffers(recurse=False))
        return Packed(**values)

    def product(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, [..., I] -> [..., O], under autocast in autocast's dtype."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return dequant_matmul(x, self.packed)


class PackedLinear(PackedWeight):
    """Linear map y = x Wᵀ with a packed matrix."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., I] to [..., O]."""
        return self.product(x)


class PackedEmbedding(PackedWeight):
    """Embedding whose table is a packed matrix."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ids, int64 [...], as float32 [..., I]."""
        rows = unpack(self.packed, rows=ids.flatten())
        return rows.view(*ids.shape, -1)


def pack_modules_(model: nn.Module, matrices: Mapping[str, Packed]) -> None:
    """Replace linear maps and tables of `model` by packed modules.

    Args:
        matrices: packed matrices by the name of the weight that each replaces.
    Raises:
        ShapeError: a matrix has another shape than its weight.
    """
    for name, packed in matrices.items():
        path = name.removesuffix(".weight")
        old = model.get_submodule(path)
        if tuple(model.get_parameter(name).shape) != packed.shape:
            raise ShapeError(
                f"{name} must be {list(model.get_parameter(name).shape)}, the packed matrix is {list(packed.shape)}"
            )
        new = PackedEmbedding(packed) if isinstance(old, nn.Embedding) else PackedLinear(packed)
        owner, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new.train(old.training))


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers in memory."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
