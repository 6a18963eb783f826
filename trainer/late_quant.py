"""Quantization-aware end of training: the forward pass sees weights on the packer's own shaped grid.

The grid is that of the trellis method (quant.shape): step[i, j] = c / (d_G[i] · d_H[j]) from Kronecker factors measured on
training text when it begins, c so that plain rounding to it has the wanted entropy. Gradients go straight through.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from quantlab.calib.collect import collect
from quantlab.checkpoint.classify import is_matrix
from quantlab.errors import ConfigError
from quantlab.quant.factors import factors
from quantlab.quant.shape import Shape
from quantlab.trainer.linear import Linear
from quantlab.trainer.model import GPT

CODE_BITS = 16  # of the widest codes that files have: no step is widened to fit
_OCTAVES = (-24.0, 8.0)  # of c, tried


def quantize_(model: GPT, steps: Mapping[str, Tensor]) -> None:
    """Let `model` see its matrices rounded to multiples of `steps` [O, I] from now on; its weights stay as they are."""
    for name, step_OI in steps.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Linear):
            owner.seen_as = on_grid(step_OI)
        elif owner is model.tok_emb:
            model.table_seen_as = on_grid(step_OI)
        elif model.bigram is not None and owner is model.bigram.embed:
            model.bigram.seen_as = on_grid(step_OI)
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


def on_grid(step_OI: Tensor) -> Callable[[Tensor], Tensor]:
    """A function to the nearest multiples of the steps, whose gradient is that of the identity."""

    def seen_as(weight_OI: Tensor) -> Tensor:
        rounded_OI = torch.round(weight_OI.detach() / step_OI) * step_OI
        return weight_OI + (rounded_OI - weight_OI.detach())

    return seen_as


def shaped_steps(model: GPT, ids_NT: Tensor, bits: float) -> dict[str, Tensor]:
    """The packer's grid at about `bits` a weight: steps float32 [O, I] by matrix, on the model's device.

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
    grids = {n: Shape(p, factors(n, stats.fisher_uses(n))) for n, p in matrices.items()}
    weights = sum(p.numel() for p in matrices.values())
    low, high = _OCTAVES
    for _ in range(20):
        middle = (low + high) / 2
        total = sum(_entropy(p, grids[n], 2.0**middle) for n, p in matrices.items())
        low, high = (middle, high) if total > bits * weights else (low, middle)
    device = model.tok_emb.weight.device
    return {n: _steps(grids[n], 2.0**high).to(device) for n in matrices}


def _steps(shape: Shape, c: float) -> Tensor:
    return torch.from_numpy(shape.grid(round(shape.level(c)), CODE_BITS).steps_OI)


def _entropy(w_OI: Tensor, shape: Shape, c: float) -> float:
    """Bits of all codes together, as if each row had its own code table: the packer's classes do about as well."""
    codes_OI = torch.round(w_OI / _steps(shape, c)).double()
    sigma_O = codes_OI.square().mean(1)
    return float((0.5 * torch.log2(1 + 2 * torch.pi * torch.e * sigma_O)).sum()) * codes_OI.shape[1]
