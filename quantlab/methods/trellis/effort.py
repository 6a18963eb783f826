"""The time that a packing takes on this machine at a level of effort, forecast from the rounding of two small matrices."""

import math
import time
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import torch

from quantlab.calib.fisher import Use
from quantlab.calib.watch import FULL_ROWS
from quantlab.format_rules import COLUMNS, LOG_STEPS, TABLE_CLASSES
from quantlab.methods.trellis import TrellisOptions
from quantlab.methods.trellis.refinement import refinement_passes
from quantlab.methods.trellis.rounder import Rounder
from quantlab.methods.trellis.slope_search import LEAST_PASSES
from quantlab.methods.trellis.tuning import token_passes
from quantlab.methods.workers import processors

FORECAST_PASSES = LEAST_PASSES + 4
"""Roundings of everything whose time the search takes: three to four, factors, and what is coded and measured between them."""
SIDE = 512
"""Rows and columns of the matrix that is rounded on trial."""
FEEDBACK_SHARE = 0.25
"""Share of the time of a weight in that matrix that products of feedback take; it grows with rows and columns."""
SAMPLE_BITS = 8


def stage_seconds(options: TrellisOptions, shapes: Mapping[str, tuple[int, ...]], token_s: float) -> dict[str, float]:
    """Return the seconds of `rounding`, and of `tuning` and `refinement` if there will be any.

    Args:
        shapes: [O, I] of each matrix, by name.
        token_s: seconds in which the model reads one token.
    """
    seconds = {"rounding": FORECAST_PASSES * _pass_seconds(shapes.values(), options.states)}
    if options.batches:
        seconds["tuning"] = token_passes(options.batches) * token_s
    if options.refine_steps:
        again = _pass_seconds(shapes.values(), options.states)
        seconds["refinement"] = refinement_passes(options.refine_steps) * token_s + again
    return seconds


def _pass_seconds(shapes: Iterable[tuple[int, ...]], states: int) -> float:
    """Return the seconds to round all matrices once, each on one processor."""
    each, more = _weight_seconds(states)
    seconds = [O * I * (each + more * (I + O * (O <= FULL_ROWS))) for O, I in shapes]
    return max(max(seconds, default=0.0), sum(seconds) / processors())


@cache
def _weight_seconds(states: int) -> tuple[float, float]:
    """Return the seconds that each weight takes, and those more for each row and column of its matrix; neither is below 0."""
    _round_sample(8, states)  # compiles
    seconds = min(_round_sample(SIDE, states) for _ in range(2)) / SIDE**2
    return (1 - FEEDBACK_SHARE) * seconds, FEEDBACK_SHARE * seconds / (2 * SIDE)


def _round_sample(side: int, states: int) -> float:
    """Return the seconds of one rounding of a Gaussian matrix [side, side] at about 3 bits a weight."""
    generator = torch.Generator().manual_seed(0)
    w_OI, x_TI, g_TO = (torch.randn(n, side, generator=generator) for n in (side, 4 * side, 4 * side))
    uses = (Use(x_TI.T @ x_TI / len(x_TI), g_TO.T @ g_TO / len(g_TO)),)
    rounder = Rounder("sample", w_OI, lambda: uses, TrellisOptions(states=states), SAMPLE_BITS)
    level = round(LOG_STEPS * (math.log2(float(w_OI.abs().mean())) - 1))
    classes, free = rounder.first_classes(level), np.zeros((TABLE_CLASSES, COLUMNS), np.float32)
    start = time.perf_counter()
    rounder.codes(level, classes, free)
    return time.perf_counter() - start
