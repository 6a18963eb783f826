"""The grids among which the search chooses: a family has a few coarse settings, between which any other can be made.

A setting is (bits, size): the size of a row grid is its clip, in root mean squares of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantlab.quant.grid import RowGrid, row_grid

Setting = tuple[int, float]

CLIPS = (4.0, 8.0, 16.0, 32.0)
COARSEST_CLIP = 64.0  # of the narrowest width only: about half a bit per weight


@dataclass(frozen=True, slots=True)
class Family:
    """Grids for one matrix."""

    coarse: tuple[Setting, ...]
    """Settings an octave apart that are always measured."""
    smallest: Setting
    """The setting that takes the fewest bytes."""
    grid: Callable[[int, float], RowGrid]
    """The grid of one setting."""


def row_family(w_OI: Tensor, widths: Sequence[int]) -> Family:
    """One step a row; every width with every clip."""
    coarse = tuple((bits, clip) for bits in sorted(widths) for clip in CLIPS)
    return Family(coarse, (min(widths), COARSEST_CLIP), lambda bits, clip: row_grid(w_OI, bits=bits, clip=clip))
