"""Grids whose steps follow what each weight can bear: large where rows and columns are insensitive.

With an entropy coder the best step of a weight is inversely proportional to the square root of what an error there costs. Row i
of a matrix bears errors by its output gradient g_i, column j by d_j, the diagonal of the Cholesky factor of H in the order of
rounding (what is left of an error after feedback), so step[i, j] = c / (sqrt(g_i) · d_j), and one c puts every weight of every
tensor at the same slope of loss against bits (water filling; WaterSIC, arXiv 2603.04956, for the columns).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.manifest import ShapedTensor, code_limit
from quantlab.artifact.steps import LEVELS, SHAPES, shaped_steps
from quantlab.quant.distortion import Use, column_hessian
from quantlab.quant.gptq import Feedback

ROW_FLOOR = 1e-3
"""A row's sensitivity counts as at least this share of the mean: rows that the sample hardly saw stay safe."""
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
    def steps_OI(self) -> Tensor:
        """Float32 [O, I], exactly what a reader of the file gets."""
        return torch.from_numpy(shaped_steps(self.level, self.a_O, self.b_I))

    @property
    def side(self) -> NDArray[np.int8]:
        """What the file stores of the steps beside the entry."""
        return np.concatenate([self.a_O, self.b_I])

    def entry(self, name: str, shape: tuple[int, ...], bits: int) -> ShapedTensor:
        """The tensor's line in the manifest."""
        return ShapedTensor(name=name, shape=shape, bits=bits, level=self.level)


class Shape:
    """Row and column shapes of one matrix in octaves, fixed before any rounding; `grid` makes steps of any size."""

    def __init__(self, w_OI: Tensor, uses: tuple[Use, ...], fb: Feedback) -> None:
        self.w_OI = w_OI.double().abs()
        rows_O = -0.5 * row_sensitivity(uses).log2()
        columns_I = torch.empty(w_OI.shape[1], dtype=torch.float64)
        columns_I[fb.order] = fb.U_II.diagonal().double().log2()  # U is of the inverse: its diagonal is 1/d
        self.a_O, self.b_I = _quarters(rows_O), _quarters(columns_I)
        self.base = float(rows_O.mean() + columns_I.mean())
        spread = w_OI.double().square().mean(1).sqrt().clamp_min(1e-30).log2().mean()
        self.unit = 2.0 ** (float(spread) - self.base)
        """The c at which steps are about as large as the weights."""

    def grid(self, c: float, bits: int) -> ShapedGrid:
        """Steps c / (sqrt(g_i) · d_j); a row whose weights would not fit the codes gets coarser until they do."""
        level = round(LEVELS * (float(np.log2(c)) + self.base))
        largest_O = (self.w_OI / 2 ** (self.b_I / SHAPES)).amax(1).clamp_min(1e-30)
        fitting_O = (SHAPES * ((largest_O / (HEADROOM * code_limit(bits))).log2() - level / LEVELS)).ceil()
        a_O = torch.maximum(self.a_O, fitting_O).clamp(-127, 127)
        return ShapedGrid(bits, level, a_O.to(torch.int8).numpy(), self.b_I.to(torch.int8).numpy())


def row_sensitivity(uses: tuple[Use, ...]) -> Tensor:
    """What an error in each row costs relative to the shared column Hessian, float64 [O], floored; one use gives its g."""
    traces = [float(u.H_II.double().diagonal().sum() if u.H_II.ndim == 2 else u.H_II.double().sum()) for u in uses]
    total_O = sum((u.g_O.double() * t for u, t in zip(uses, traces, strict=True)), torch.zeros_like(uses[0].g_O.double()))
    rho_O = total_O / float(column_hessian(uses).diagonal().sum())
    return rho_O.clamp_min(ROW_FLOOR * float(rho_O.mean()))


def _quarters(octaves: Tensor) -> Tensor:
    """Deviations from the mean in whole quarters of an octave, within what int8 holds."""
    return (SHAPES * (octaves - octaves.mean())).round().clamp(-127, 127)
