"""The grids among which the search chooses: a family has a few coarse settings, between which any other can be made.

A setting is (bits, size). For row grids the size is the clip, in root mean squares of a row; for shaped grids it is c, the step
times the square root of what an error costs, in square roots of nats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantlab.quant.distortion import Use
from quantlab.quant.gptq import Feedback
from quantlab.quant.grid import Grid, row_grid
from quantlab.quant.shape import Shape

Setting = tuple[int, float]

CLIPS = (4.0, 8.0, 16.0, 32.0)
COARSEST_CLIP = 64.0  # of the narrowest width only: about half a bit per weight
STEPS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # shaped steps in units of the weights themselves: 7 bits to 1
COARSEST_STEP = 4.0


@dataclass(frozen=True, slots=True)
class Family:
    """Grids for one matrix."""

    coarse: tuple[Setting, ...]
    """Settings an octave apart that are always measured."""
    smallest: Setting
    """The setting that takes the fewest bytes."""
    grid: Callable[[int, float], Grid]
    """The grid of one setting."""


def row_family(w_OI: Tensor, widths: Sequence[int]) -> Family:
    """One step a row; every width with every clip."""
    coarse = tuple((bits, clip) for bits in sorted(widths) for clip in CLIPS)
    return Family(coarse, (min(widths), COARSEST_CLIP), lambda bits, clip: row_grid(w_OI, bits=bits, clip=clip))


def shaped_family(w_OI: Tensor, uses: tuple[Use, ...], fb: Feedback, widths: Sequence[int]) -> Family:
    """One step a weight, of one shape and any size, in the widest container: the coder decides the bytes."""
    shape, bits = Shape(w_OI, uses, fb), max(widths)
    coarse = tuple((bits, shape.unit * step) for step in STEPS)
    return Family(coarse, (bits, shape.unit * COARSEST_STEP), lambda bits, c: shape.grid(c, bits))
