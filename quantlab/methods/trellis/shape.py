"""Grids with row and column scales: the step of each weight follows from the sensitivity of its row and its column.

With an entropy coder the best step of a weight is inversely proportional to the square root of what an error there costs. After
feedback that is d_O[i] · d_I[j] (factors.py), so step[i, j] = c / (d_O[i] · d_I[j]). One step scale c then puts every weight of
every tensor at the same slope of predicted KL against bits (water filling; WaterSIC, arXiv 2603.04956, for the columns).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.shaped_grid import grid_steps
from quantlab.format_rules import LOG_STEPS, SCALE_UNITS, code_limit
from quantlab.methods.trellis.factors import Factors

HEADROOM = 0.94
"""Largest weight as a share of the largest code: feedback adds to the weights that are not rounded yet."""


@dataclass(frozen=True, slots=True)
class ScaledGrid:
    """Steps as a file stores them: step[i, j] = 2**(level/64 + (a[i] + b[j])/4)."""

    bits: int
    """Width of the codes."""
    level: int
    """Log-step index."""
    a_O: NDArray[np.int8]
    """Row scales, in quarters of a power of two."""
    b_I: NDArray[np.int8]
    """Column scales, in quarters of a power of two."""

    @property
    def steps_OI(self) -> NDArray[np.float32]:
        """Steps float32 [O, I], exactly what a reader of the file gets."""
        return grid_steps(self.level, self.a_O, self.b_I)


class StepScales:
    """Row and column scales of one matrix, fixed before any rounding; `grid` makes steps of any size from them."""

    def __init__(self, w_OI: Tensor, parts: Factors, *, rows: bool = True, columns: bool = True) -> None:
        """Derive the scales from the sensitivities; a side that is switched off has one scale for all."""
        rows_O, columns_I = _log_scales(parts.d_O, rows), _log_scales(parts.d_I, columns)
        self.a_O, self.b_I = _in_units(rows_O), _in_units(columns_I)
        self.base = float(rows_O.mean() + columns_I.mean())
        self._largest_O = (w_OI.double().abs() / 2 ** (self.b_I / SCALE_UNITS)).amax(1).clamp_min(1e-30)

    def level(self, step_scale: float) -> float:
        """Return the log-step index, not yet rounded, at which steps are step_scale / (d_O · d_I)."""
        return LOG_STEPS * (math.log2(step_scale) + self.base)

    def grid(self, level: int, bits: int) -> ScaledGrid:
        """Return the steps of a log-step index.

        A row whose weights would not fit codes of `bits` bits gets larger steps until they do.
        """
        fitting_O = (SCALE_UNITS * ((self._largest_O / (HEADROOM * code_limit(bits))).log2() - level / LOG_STEPS)).ceil()
        a_O = torch.maximum(self.a_O, fitting_O).clamp(-127, 127)
        return ScaledGrid(bits, level, a_O.to(torch.int8).numpy(), self.b_I.to(torch.int8).numpy())


def _log_scales(d: Tensor, is_scaled: bool) -> Tensor:
    """Return log2 of the steps along one side; without scales all of them take the root mean square of d."""
    return -(d if is_scaled else d.square().mean().sqrt().expand_as(d)).log2()


def _in_units(log_scales: Tensor) -> Tensor:
    """Return deviations from the mean in whole quarters of a power of two, within int8."""
    return (SCALE_UNITS * (log_scales - log_scales.mean())).round().clamp(-127, 127)
