"""The step scale and the tables with which the search begins, as if weights were Gaussian within their scale classes."""

import math
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import scipy.special
from numpy.typing import NDArray

from quantlab.format_rules import CLASSES_PER_POWER, COLUMNS, LOG_STEPS, OFFSET, TABLE_CLASSES, TOTAL
from quantlab.methods.trellis.rounder import Rounder
from quantlab.methods.trellis.scale_classes import ZERO

CENTRE = -8.0
"""Value of log2 c in the middle of the range of the first guess; c is in square roots of nats."""
RANGE = (-12.0, 12.0)
"""Range around CENTRE in which the first guess is searched by bisection."""
BISECTIONS = 40
LOG2_STEPS = 8
"""Powers of two by which the mean weight exceeds a step where its scale class is taken for the first guess."""
MOST_CLASS = 400
"""Largest magnitude of a scale class in the histograms of the first guess; larger ones count as this one."""


def first_step_scale(rounders: Sequence[Rounder], budget_bytes: int, pool: Executor) -> float:
    """Return the step scale c at which Gaussian codes of all weights take about `budget_bytes`, by bisection."""
    sizes = list(pool.map(_log2_sizes, rounders))
    low, high = RANGE
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        bits = sum(_gaussian_bits(s, r.scales.base + CENTRE + middle) for s, r in zip(sizes, rounders, strict=True))
        low, high = (low, middle) if bits / 8 < budget_bytes else (middle, high)
    return float(2.0 ** (CENTRE + low))


def _log2_sizes(rounder: Rounder) -> tuple[NDArray[np.int64], float]:
    """Return how many weights have each size, as `_gaussian_bits` reads it.

    Returns:
        Weights in each scale class, -MOST_CLASS to MOST_CLASS, at a level at which none counts as zero; log2 of the level.
    """
    level = round(LOG_STEPS * (math.log2(float(np.abs(rounder.w_OI).mean()) + 1e-30) - LOG2_STEPS))
    classes = rounder.first_classes(level)
    grid = rounder.scales.grid(level, rounder.bits)
    rows = classes.base + classes.rows_O.astype(np.int64) - grid.a_O.astype(np.int64)
    columns = classes.columns_I.astype(np.int64) - grid.b_I.astype(np.int64)
    shifted = (rows[:, None] + columns[None]).clip(-MOST_CLASS, MOST_CLASS).ravel() + MOST_CLASS
    counts: NDArray[np.int64] = np.bincount(shifted, minlength=2 * MOST_CLASS + 1)
    return counts, level / LOG_STEPS


def _gaussian_bits(sizes: tuple[NDArray[np.int64], float], log2_step: float) -> float:
    """Return about the entropy of all codes together: ½ log2(1 + 2πe σ²/(2·step)²) bits a weight."""
    counts, log2_level = sizes
    sigma = 2.0 ** ((np.arange(-MOST_CLASS, MOST_CLASS + 1) - ZERO) / CLASSES_PER_POWER + log2_level - log2_step - 1)
    return float(counts @ (0.5 * np.log2(1 + 2 * math.pi * math.e * sigma**2)))


def gaussian_lengths(states: int) -> NDArray[np.float32]:
    """Return the bits of each symbol in tables for Gaussian weights of each scale class, float32 [28, 256]."""
    spacing = 1 if states == 1 else 2  # steps between the points of neighbouring symbols
    sigma_C1 = 2.0 ** ((np.arange(TABLE_CLASSES)[:, None] - ZERO) / CLASSES_PER_POWER) / spacing
    edges = np.arange(-OFFSET - 0.5, COLUMNS - OFFSET + 0.5)
    probability = np.diff(scipy.special.ndtr(edges / sigma_C1), axis=1)
    lengths: NDArray[np.float32] = -np.log2(np.maximum(probability, 1 / TOTAL)).astype(np.float32)
    return lengths
