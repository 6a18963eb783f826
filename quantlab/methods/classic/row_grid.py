"""Grids of the GPTQ and RTN baselines: one step for each row, set by a clip in root mean squares of the row.

A setting is a code width and a clip. The search measures a few coarse settings of every matrix first, then others between them.

Legend: O rows (outputs), I columns (inputs).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.manifest import GridTensor
from quantlab.format_rules import code_limit

CLIPS = (4.0, 8.0, 16.0, 32.0)
"""Clips that are measured for every width."""
COARSEST_CLIP = 64.0
"""Clip of the smallest file, for the narrowest width only: about half a bit per weight."""


class Setting(NamedTuple):
    """One grid of a matrix."""

    bits: int
    """Code width."""
    clip: float
    """Value of the largest code, in root mean squares of the row."""

    @property
    def step(self) -> float:
        """Difference of two codes, in root mean squares of the row."""
        return self.clip / code_limit(self.bits)


def coarse_settings(widths: Sequence[int]) -> tuple[Setting, ...]:
    """Return the settings that are always measured: every width with every clip, a factor of 2 apart."""
    return tuple(Setting(bits, clip) for bits in sorted(widths) for clip in CLIPS)


def smallest_setting(widths: Sequence[int]) -> Setting:
    """Return the setting that takes the fewest bytes."""
    return Setting(min(widths), COARSEST_CLIP)


@dataclass(frozen=True, slots=True)
class RowGrid:
    """Steps as a file stores them: step[i] = scale[i] · 2**exponent."""

    bits: int
    """Code width."""
    scale_O: NDArray[np.float16]
    """At most 2."""
    exponent: int

    @property
    def steps_OI(self) -> Tensor:
        """Steps float32 [O, 1], exactly what a reader of the file gets."""
        return torch.from_numpy(np.ldexp(self.scale_O.astype(np.float32), np.int32(self.exponent)))[:, None]

    def entry(self, name: str, shape: tuple[int, ...], bits: int) -> GridTensor:
        """Return the tensor's entry in the manifest, with codes stored in `bits` bits."""
        return GridTensor(name=name, shape=shape, bits=bits, exponent=self.exponent)


def row_grid(w_OI: Tensor, *, bits: int, clip: float) -> RowGrid:
    """Return the grid whose largest code stands for `clip` root mean squares of its row.

    With an entropy coder the clip hardly ever clips: it sets the step, and so the rate. This is SDClip (parameter-golf #1394),
    with the root mean square in place of the standard deviation, so that a constant row works.

    Args:
        w_OI: weights, float32 [O, I].
        bits: code width, 2 to 8.
        clip: positive.
    """
    step_O = clip * w_OI.double().square().mean(1).sqrt() / code_limit(bits)
    largest = float(step_O.max()) if step_O.numel() else 0.0
    exponent = max(math.floor(math.log2(largest)), -100) if largest > 0 else 0
    scale_O = torch.ldexp(step_O, torch.tensor(-exponent)).half()  # at most 2
    return RowGrid(bits, scale_O.numpy(), exponent)


def round_to_nearest(w_OI: Tensor, grid: RowGrid) -> Tensor:
    """Return the code int8 [O, I] of the grid point nearest to each weight (float32 [O, I]), within the width."""
    steps_OI = grid.steps_OI
    inverse_OI = torch.where(steps_OI > 0, 1 / steps_OI, 0.0)
    limit = code_limit(grid.bits)
    return (w_OI * inverse_OI).round_().clamp_(-limit, limit).to(torch.int8)
