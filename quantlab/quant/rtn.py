"""Round to nearest: every weight on its own."""

import torch
from torch import Tensor

from quantlab.artifact.manifest import code_limit
from quantlab.quant.grid import RowGrid


def round_to_nearest(w_OI: Tensor, grid: RowGrid) -> Tensor:
    """Code int8 [O, I] of the nearest grid point of each weight (float32 [O, I]), within the width."""
    steps_OI = grid.steps_OI
    inverse_OI = torch.where(steps_OI > 0, 1 / steps_OI, 0.0)
    limit = code_limit(grid.bits)
    return (w_OI * inverse_OI).round_().clamp_(-limit, limit).to(torch.int8)
