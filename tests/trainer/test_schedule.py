"""Learning rate multiplier and momentum at named points."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.trainer.schedule import lr_multiplier, muon_momentum, muon_weight_decay, training_fraction
from quantlab.trainer.train_config import TrainConfig


def config(**changes):
    values = {"steps": 100, "max_seconds": 0.0, "warmup_steps": 4, "warmdown_frac": 0.5, "muon_momentum_warmup_steps": 10}
    return TrainConfig(**(values | changes))


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (50, 1.0), (60, 0.8), (75, 0.5), (99, 0.02), (100, 0.0)],
)
def test_by_steps(step, expected):
    assert lr_multiplier(config(), step, 1e9) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "seconds", "expected"),
    [
        (10, 0.0, 1.0),
        (10, 5.0, 1.0),
        (10, 7.5, 0.5),  # time is further
        (75, 1.0, 0.5),  # steps are further
        (10, 10.0, 0.0),
        (10, 11.0, 0.0),
    ],
)
def test_by_time_or_steps_whichever_is_further(step, seconds, expected):
    assert lr_multiplier(config(max_seconds=10.0), step, seconds) == pytest.approx(expected)


def test_without_warmup_and_warmdown_it_is_constant():
    flat = config(warmup_steps=0, warmdown_frac=0.0)
    assert [lr_multiplier(flat, step, 0.0) for step in range(100)] == [1.0] * 100


def test_warmdown_over_the_whole_training_starts_at_once():
    assert lr_multiplier(config(warmup_steps=0, warmdown_frac=1.0), 25, 0.0) == pytest.approx(0.75)


@given(step=st.integers(0, 200), seconds=st.floats(0, 30), frac=st.floats(0, 1), warmup=st.integers(0, 300))
def test_multiplier_is_between_0_and_1_and_never_rises_after_warmup(step, seconds, frac, warmup):
    c = config(max_seconds=10.0, warmdown_frac=frac, warmup_steps=warmup)
    now, later = (lr_multiplier(c, s, seconds) for s in (step, step + 1))
    assert 0.0 <= now <= 1.0
    assert 0.0 <= training_fraction(c, step, seconds) <= 1.0
    if step + 1 >= warmup:
        assert later <= now + 1e-12


def test_momentum_rises_linearly():
    c = config()
    assert [muon_momentum(c, s) for s in (0, 5, 10, 99)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert muon_momentum(config(muon_momentum_warmup_steps=0), 0) == 0.95


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (60, 0.1), (70, 0.1), (85, 0.075), (100, 0.05)])
def test_weight_decay_tapers_linearly_over_the_end(step, expected):
    """The record of pull request 1729: from 70 % of the training to half of it."""
    tapered = config(weight_decay=0.1, wd_taper_from=0.7, wd_taper_to=0.5)
    assert muon_weight_decay(tapered, step, 0.0) == pytest.approx(expected)
    assert muon_weight_decay(config(weight_decay=0.1), step, 0.0) == 0.1


def test_the_learning_rate_falls_to_its_floor():
    floor = config(warmup_steps=0, warmdown_frac=0.85, min_lr=0.1)
    assert [lr_multiplier(floor, step, 0.0) for step in (15, 57, 95, 100)] == pytest.approx([1.0, 43 / 85, 0.1, 0.1])
