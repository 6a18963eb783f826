"""Quantization-aware end of training: the forward pass sees weights on the packer's own shaped grid.

The grid is that of the trellis method (quant.shape): step[i, j] = c / (d_G[i] · d_H[j]) from Kronecker factors measured on
training text when it begins, c so that plain rounding to it has the wanted entropy. Gradients go straight through.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.artifact.shaped_grid import LEVELS, SHAPES
from quantlab.calib.collect import collect
from quantlab.errors import ConfigError, TrainingError
from quantlab.kernels.fake_quant import fake_quant
from quantlab.methods.trellis.factors import factors
from quantlab.methods.trellis.shape import Shape, ShapedGrid
from quantlab.models.weights import is_matrix
from quantlab.trainer.layers import Linear
from quantlab.trainer.model import GPT

CODE_BITS = 16  # of the widest codes that files have: no step is widened to fit
_OCTAVES = (-24.0, 8.0)  # of c, tried


@dataclass(frozen=True, slots=True)
class Steps:
    """The grid of one matrix: step[i, j] = row_scale[i] · column_scale[j]."""

    row_scale_O: Tensor
    """Float32 [O]."""
    column_scale_I: Tensor
    """Float32 [I]."""


def quantize_(model: GPT, grid: Mapping[str, Steps]) -> None:
    """Let `model` see its matrices rounded to multiples of their steps from now on; its weights stay as they are."""
    for name, steps in grid.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Linear):
            owner.seen_as = on_grid(steps)
        elif owner is model.tok_emb:
            model.table_seen_as = on_grid(steps)
        elif model.bigram is not None and owner is model.bigram.embed:
            model.bigram.seen_as = on_grid(steps)
        else:
            raise ConfigError(f"tensor {name} cannot be trained on the packer's grid")


def stop_quantizing(model: GPT) -> None:
    """Let the model see its weights themselves again."""
    model.table_seen_as = None
    if model.bigram is not None:
        model.bigram.seen_as = None
    for module in model.modules():
        if isinstance(module, Linear):
            module.seen_as = None


def on_grid(steps: Steps) -> Callable[[Tensor], Tensor]:
    """A function to the nearest multiples of the steps, whose gradient is that of the identity."""
    row_scale_O, column_scale_I = steps.row_scale_O, steps.column_scale_I

    def seen_as(weight_OI: Tensor) -> Tensor:
        return fake_quant(weight_OI, row_scale_O, column_scale_I)

    return seen_as


def grid_tensors(grid: Mapping[str, Steps]) -> dict[str, Tensor]:
    """For a checkpoint."""
    rows = {f"grid.{name}.row_scale_O": steps.row_scale_O for name, steps in grid.items()}
    return rows | {f"grid.{name}.column_scale_I": steps.column_scale_I for name, steps in grid.items()}


def grid_from_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Steps]:
    """Inverse of `grid_tensors`; other tensors are left alone.

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
        raise TrainingError("the checkpoint's grid is of another version of quantlab", hint="start anew") from error


def measure_grid(model: GPT, ids_NT: Tensor, bits: float) -> dict[str, Steps]:
    """The packer's grid at about `bits` a weight, by matrix, on the model's device.

    Args:
        ids_NT: training sequences, int64 [N, T], on which sensitivities are measured.
        bits: mean entropy of the codes, bits a weight.
    Raises:
        StatisticsError: see `calib.collect`.
    """
    matrices = {n: p.detach().cpu() for n, p in model.named_parameters() if is_matrix(n, p)}
    was_training = model.training
    shapes = {n: tuple(p.shape) for n, p in matrices.items()}
    stats = collect(model, ids_NT, shapes, model_fingerprint="", source={}, plain=False)
    model.train(was_training)
    shaped = {n: Shape(p, factors(n, stats.fisher_uses(n))) for n, p in matrices.items()}
    weights = sum(p.numel() for p in matrices.values())
    low, high = _OCTAVES
    for _ in range(20):
        middle = (low + high) / 2
        total = sum(_entropy(p, _grid(shaped[n], 2.0**middle)) for n, p in matrices.items())
        low, high = (middle, high) if total > bits * weights else (low, middle)
    device = model.tok_emb.weight.device
    return {n: steps_of(_grid(shape, 2.0**high), device) for n, shape in shaped.items()}


def steps_of(grid: ShapedGrid, device: torch.device) -> Steps:
    """A shaped grid as two factors, whose product is within 1 unit in the last place of the step that a file's reader gets."""
    octaves_O = grid.level / LEVELS + torch.from_numpy(grid.a_O).double() / SHAPES
    octaves_I = torch.from_numpy(grid.b_I).double() / SHAPES
    return Steps(octaves_O.exp2().float().to(device), octaves_I.exp2().float().to(device))


def _grid(shape: Shape, c: float) -> ShapedGrid:
    return shape.grid(round(shape.level(c)), CODE_BITS)


def _entropy(w_OI: Tensor, grid: ShapedGrid) -> float:
    """Bits of all codes together, as if each row had its own code table: the packer's classes do about as well."""
    codes_OI = torch.round(w_OI / torch.from_numpy(grid.steps_OI)).double()
    sigma_O = codes_OI.square().mean(1)
    return float((0.5 * torch.log2(1 + 2 * torch.pi * torch.e * sigma_O)).sum()) * codes_OI.shape[1]
