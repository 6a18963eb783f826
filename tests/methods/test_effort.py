"""A time limit buys states of the trellis first, then batches of tuning."""

import time

import pytest

from quantlab.methods.trellis import effort
from quantlab.methods.trellis.effort import Effort, choose_effort

WANTED = Effort(states=8, tune_steps=24)
PASS_SECONDS = {32: 40.0, 16: 20.0, 8: 10.0, 4: 6.0, 1: 2.0}


@pytest.fixture
def measured(monkeypatch):
    """Passes of known length; a step of tuning takes a hundredth of a second."""
    monkeypatch.setattr(effort, "_pass_seconds", lambda rounders, states: PASS_SECONDS[states])
    return lambda: time.sleep(0.01)


@pytest.mark.parametrize(
    ("limit_s", "states"),
    [(1000.0, 8), (50 / effort.MARGIN + 0.1, 8), (50 / effort.MARGIN - 0.1, 4), (30 / effort.MARGIN - 0.1, 1), (0.1, 1)],
)
def test_the_most_states_whose_passes_fit_are_taken_and_never_more_than_asked(measured, limit_s, states):
    assert choose_effort([], WANTED, measured, limit_s).states == states


def test_tuning_takes_what_is_left(measured):
    assert choose_effort([], WANTED, measured, 1000.0) == WANTED
    assert choose_effort([], WANTED, measured, 0.1).tune_steps == 0
    some = choose_effort([], WANTED, measured, (50 + 0.1) / effort.MARGIN).tune_steps
    assert 1 <= some <= 10  # 0.1 s are left, a step takes at least 0.01 s
    assert choose_effort([], Effort(8, 0), measured, 1000.0).tune_steps == 0
