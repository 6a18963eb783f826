"""Grids whose steps follow what each weight can bear: large where rows and columns are insensitive.

With an entropy coder the best step of a weight is inversely proportional to the square root of what an error there costs. After
feedback that is d_O[i] · d_I[j] (see factors.py), so step[i, j] = c / (d_O[i] · d_I[j]), and one c puts every weight of every
tensor at the same slope of loss against bits (water filling; WaterSIC, arXiv 2603.04956, for the columns).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.manifest import code_limit
from quantlab.artifact.shaped_grid import LEVELS, SHAPES, shaped_steps
from quantlab.methods.trellis.factors import Factors

HEADROOM = 0.94
"""Largest weight as a share of the largest code; feedback adds to weights while they wait for their turn."""


@dataclass(frozen=True, slots=True)
class ShapedGrid:
    """Steps as they are stored: step[i, j] = 2**(level/64 + (a[i] + b[j])/4)."""

    bits: int
    level: int
    a_O: NDArray[np.int8]
    b_I: NDArray[np.int8]

    @property
    def steps_OI(self) -> NDArray[np.float32]:
        """Float32 [O, I], exactly what a reader of the file gets."""
        return shaped_steps(self.level, self.a_O, self.b_I)


class Shape:
    """Row and column shapes of one matrix in octaves, fixed before any rounding; `grid` makes steps of any size."""

    def __init__(self, w_OI: Tensor, parts: Factors, *, rows: bool = True, columns: bool = True) -> None:
        self.w_OI = w_OI.double().abs()
        rows_O, columns_I = _octaves(parts.d_O, rows), _octaves(parts.d_I, columns)
        self.a_O, self.b_I = _quarters(rows_O), _quarters(columns_I)
        self.base = float(rows_O.mean() + columns_I.mean())
        self._largest_O = (self.w_OI / 2 ** (self.b_I / SHAPES)).amax(1).clamp_min(1e-30)

    def level(self, c: float) -> float:
        """The level, before rounding, at which steps are c / (d_O · d_I)."""
        return LEVELS * (math.log2(c) + self.base)

    def grid(self, level: int, bits: int) -> ShapedGrid:
        """Steps of a level; a row whose weights would not fit codes of `bits` bits gets coarser until they do."""
        fitting_O = (SHAPES * ((self._largest_O / (HEADROOM * code_limit(bits))).log2() - level / LEVELS)).ceil()
        a_O = torch.maximum(self.a_O, fitting_O).clamp(-127, 127)
        return ShapedGrid(bits, level, a_O.to(torch.int8).numpy(), self.b_I.to(torch.int8).numpy())


def _octaves(d: Tensor, is_shaped: bool) -> Tensor:
    """log2 of the steps along one side; without a shape all of them take the root mean square of d."""
    return -(d if is_shaped else d.square().mean().sqrt().expand_as(d)).log2()


def _quarters(octaves: Tensor) -> Tensor:
    """Deviations from the mean in whole quarters of an octave, within what int8 holds."""
    return (SHAPES * (octaves - octaves.mean())).round().clamp(-127, 127)
