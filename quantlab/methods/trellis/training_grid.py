"""The trellis method's grid for a model that is still being trained, at a given rate, for quantization-aware training (QAT).

step[i, j] = c / (d_G[i] · d_H[j]) with Kronecker factors measured on training text (see shape.py). One c for all matrices is
found by bisection such that plain rounding gives codes of the wanted mean entropy.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantlab.calib.collect import collect
from quantlab.format_rules import LOG_STEPS, SCALE_UNITS
from quantlab.methods.trellis.factors import factors
from quantlab.methods.trellis.shape import ScaledGrid, StepScales
from quantlab.models.weights import is_matrix
from quantlab.trainer.model import GPT
from quantlab.trainer.qat import Steps

CODE_BITS = 16
"""Width of the widest codes that files have, so that no step has to be widened to fit a narrower one."""
LOG2_C_RANGE = (-24.0, 8.0)
"""Values of log2 c between which the bisection starts."""
BISECTIONS = 20


def measure_grid(model: GPT, ids_NT: Tensor, bits: float) -> dict[str, Steps]:
    """Return the trellis method's grid at about `bits` a weight, for each matrix by name, on the model's device.

    Args:
        model: the model in its present state; it is left as it was.
        ids_NT: training sequences, int64 [N, T], on which sensitivities are measured.
        bits: mean entropy of the codes, in bits a weight.
    Raises:
        StatisticsError: a matrix was never used, or its statistics are zero or not finite (see `calib.collect`).
    """
    matrices = {n: p.detach().cpu() for n, p in model.named_parameters() if is_matrix(n, p)}
    scales = _measured_scales(model, ids_NT, matrices)
    weights = sum(p.numel() for p in matrices.values())
    low, high = LOG2_C_RANGE
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        total = sum(_entropy_bits(p, _grid(scales[n], 2.0**middle)) for n, p in matrices.items())
        low, high = (middle, high) if total > bits * weights else (low, middle)
    device = model.tok_emb.weight.device
    return {n: steps_of(_grid(one, 2.0**high), device) for n, one in scales.items()}


def steps_of(grid: ScaledGrid, device: torch.device) -> Steps:
    """Return a grid as two factors whose product is within 1 unit in the last place of the step that a file's reader gets."""
    log2_O = grid.level / LOG_STEPS + torch.from_numpy(grid.a_O).double() / SCALE_UNITS
    log2_I = torch.from_numpy(grid.b_I).double() / SCALE_UNITS
    return Steps(log2_O.exp2().float().to(device), log2_I.exp2().float().to(device))


def _measured_scales(model: GPT, ids_NT: Tensor, matrices: Mapping[str, Tensor]) -> dict[str, StepScales]:
    was_training = model.training
    sizes = {n: tuple(p.shape) for n, p in matrices.items()}
    stats = collect(model, ids_NT, sizes, model_fingerprint="", source={}, plain=False)
    model.train(was_training)
    return {n: StepScales(p, factors(n, stats.fisher_uses(n))) for n, p in matrices.items()}


def _grid(scales: StepScales, c: float) -> ScaledGrid:
    return scales.grid(round(scales.level(c)), CODE_BITS)


def _entropy_bits(w_OI: Tensor, grid: ScaledGrid) -> float:
    """Return the bits of all codes of a matrix as if each row had its own code table; the packer's classes do about as well."""
    codes_OI = torch.round(w_OI / torch.from_numpy(grid.steps_OI)).double()
    variance_O = codes_OI.square().mean(1)
    return float((0.5 * torch.log2(1 + 2 * torch.pi * torch.e * variance_O)).sum()) * codes_OI.shape[1]
