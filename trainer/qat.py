"""Quantization-aware training (QAT): the forward pass sees matrices rounded to a grid, and gradients pass straight through.

The grid has row and column scales, step[i, j] = row_scale[i] · column_scale[j]. `train` gets a function that measures it
(quantlab/methods/trellis/training_grid.py has the packer's), since the trainer may not import a method.

Letters: O rows (outputs), I columns (inputs).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.errors import ConfigError, TrainingError
from quantlab.kernels.fake_quant import fake_quant
from quantlab.trainer.layers import Linear
from quantlab.trainer.model import GPT


@dataclass(frozen=True, slots=True)
class Steps:
    """The grid of one matrix: step[i, j] = row_scale[i] · column_scale[j]."""

    row_scale_O: Tensor
    """Scale of each row, float32 [O]."""
    column_scale_I: Tensor
    """Scale of each column, float32 [I]."""


MeasureGrid = Callable[[GPT, Tensor, float], dict[str, Steps]]
"""Called with the model, training sequences (int64 [N, T]) and bits a weight; returns the grid of each matrix by name."""


def quantize_(model: GPT, grid: Mapping[str, Steps]) -> None:
    """Make the forward pass of `model` round its matrices to the grid from now on; the weights themselves do not change.

    Raises:
        ConfigError: the grid names a tensor that is neither a linear map nor a table.
    """
    for name, steps in grid.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Linear):
            owner.weight_transform = fake_quantizer(steps)
        elif owner is model.tok_emb:
            model.table_transform = fake_quantizer(steps)
        elif model.bigram is not None and owner is model.bigram.embed:
            model.bigram.weight_transform = fake_quantizer(steps)
        else:
            raise ConfigError(f"tensor {name} cannot be trained on a grid: it is neither a linear map nor a table")


def stop_quantizing(model: GPT) -> None:
    """Make the forward pass of `model` use the weights themselves again."""
    model.table_transform = None
    if model.bigram is not None:
        model.bigram.weight_transform = None
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight_transform = None


def fake_quantizer(steps: Steps) -> Callable[[Tensor], Tensor]:
    """Return a function that rounds weights to the nearest multiples of the steps and has the gradient of the identity."""
    row_scale_O, column_scale_I = steps.row_scale_O, steps.column_scale_I

    def transform(weight_OI: Tensor) -> Tensor:
        return fake_quant(weight_OI, row_scale_O, column_scale_I)

    return transform


def grid_tensors(grid: Mapping[str, Steps]) -> dict[str, Tensor]:
    """Return the grid as tensors by name, for a checkpoint."""
    rows = {f"grid.{name}.row_scale_O": steps.row_scale_O for name, steps in grid.items()}
    return rows | {f"grid.{name}.column_scale_I": steps.column_scale_I for name, steps in grid.items()}


def grid_from_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Steps]:
    """Return the grid among the tensors of a checkpoint, the inverse of `grid_tensors`; other tensors are ignored.

    Raises:
        TrainingError: the grid is stored in another way.
    """
    fields: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("grid."):
            name, _, field = key.removeprefix("grid.").rpartition(".")
            fields.setdefault(name, {})[field] = tensor.to(device)
    try:
        return {name: Steps(**of_matrix) for name, of_matrix in fields.items()}
    except TypeError as error:
        raise TrainingError(
            "the checkpoint's grid is of another version of quantlab", hint="start anew without resume"
        ) from error
