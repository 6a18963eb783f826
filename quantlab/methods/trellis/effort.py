"""The effort that fits into a time limit: as many states of the trellis as possible first, then steps of tuning."""

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantlab.format_rules import COLUMNS, LOG_STEPS, STATES, TABLE_CLASSES
from quantlab.methods.trellis.rounder import Rounder
from quantlab.methods.trellis.slope_search import LEAST_PASSES

PASSES = LEAST_PASSES + 2
"""Times that most tensors are rounded: settling rounds them once or twice more."""
MARGIN = 0.8
"""Share of the time that may be planned: machines are noisy, and files are written in between."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Work that a packing may do."""

    states: int
    """States of the trellis."""
    tune_steps: int
    """Batches of tuning."""


def choose_effort(rounders: Sequence[Rounder], wanted: Effort, tune_step: Callable[[], object], time_limit_s: float) -> Effort:
    """Return the most of `wanted` that fits into `time_limit_s`, by timing the largest tensor and one step of tuning.

    Where even plain rounding does not fit, that is plain rounding without tuning: the least there is.
    """
    left = MARGIN * time_limit_s
    for states in (s for s in reversed(STATES) if s <= wanted.states):
        needed = _pass_seconds(rounders, states) * PASSES
        if needed <= left or states == 1:
            break
    left -= needed
    steps = 0 if wanted.tune_steps == 0 else max(0, min(wanted.tune_steps, int(left / max(_seconds(tune_step), 1e-6))))
    return Effort(states, steps)


def _pass_seconds(rounders: Sequence[Rounder], states: int) -> float:
    """Return the seconds to round all tensors once on all processors; work is counted as weights times feedback length."""
    small, large = (pick(rounders, key=_work) for pick in (min, max))
    _round_once(small, states)  # compiles
    seconds = _seconds(lambda: _round_once(large, states))
    return seconds * sum(map(_work, rounders)) / _work(large) / (os.cpu_count() or 1)


def _work(rounder: Rounder) -> float:
    O, I = rounder.w_OI.shape
    return float(O * I * (O + I + 512))  # a step of the trellis costs about as much as 512 terms of feedback


def _round_once(rounder: Rounder, states: int) -> None:
    trial = copy.copy(rounder)
    trial.options = replace(rounder.options, states=states)
    level = round(LOG_STEPS * (math.log2(float(np.abs(rounder.w_OI).mean()) + 1e-30) - 1))  # about 3 bits a weight
    trial.codes(level, trial.first_classes(level), np.zeros((TABLE_CLASSES, COLUMNS), np.float32))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
