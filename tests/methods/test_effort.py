"""Levels of effort: what each sets, what is left out where time is short, and the forecast of the method's stages."""

import pytest

from quantlab.errors import ConfigError
from quantlab.format_rules import STATES
from quantlab.methods.method import method_options
from quantlab.methods.trellis import EFFORTS, TrellisOptions, effort
from quantlab.methods.trellis.effort import FORECAST_PASSES, stage_seconds
from quantlab.methods.trellis.tuning import token_passes

SHAPES = {"q": (64, 64), "up": (256, 64)}


def weight_seconds(states):
    """A machine that needs a microsecond a weight and state, and a thousandth of that for every row and column."""
    return states * 1e-6, states * 1e-9


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(effort, "_weight_seconds", weight_seconds)
    monkeypatch.setattr(effort, "processors", lambda: 2)


@pytest.mark.parametrize("level", EFFORTS)
def test_a_level_sets_what_is_not_given(level):
    options = method_options("trellis", {"effort": level})
    assert all(getattr(options, name) == value for name, value in EFFORTS[level].items())
    other = {"states": 16, "tune": not options.tune, "tune_steps": 3}
    assert method_options("trellis", {"effort": level, **other}) == method_options("trellis", other | {"effort": level})
    assert method_options("trellis", {"effort": level, "states": 16}).states == 16


def test_the_defaults_are_those_of_the_default_level():
    assert method_options("trellis", {}) == method_options("trellis", {"effort": "default"}) == TrellisOptions()


@pytest.mark.parametrize("level", ["fastest", 3, ["fast"]])
def test_another_level_is_refused(level):
    with pytest.raises(ConfigError, match="effort must be"):
        method_options("trellis", {"effort": level})


def test_lighter_options_drop_refinement_then_tuning_and_then_states_down_to_plain_rounding():
    options, seen = method_options("trellis", {"effort": "best", "widths": [6]}), []
    while (options := options.lighter()) is not None:
        assert options.widths == (6,)
        seen.append((options.refine_steps, options.states, options.batches))
    assert seen == [(0, 64, 48), *((0, states, 0) for states in sorted(STATES, reverse=True) if states <= 64)]


def test_an_unknown_level_is_refused():
    with pytest.raises(ConfigError, match="effort must be one of fast, default, best, got 'most'"):
        TrellisOptions(effort="most")


def test_the_forecast_counts_weights_and_tokens(machine):
    options = TrellisOptions(states=8, tune_steps=5)
    one_pass = (64 * 64 * (8e-6 + 8e-9 * 128) + 256 * 64 * (8e-6 + 8e-9 * 320)) / 2
    largest = 256 * 64 * (8e-6 + 8e-9 * 320)  # it takes longer than half of the work
    assert one_pass < largest
    seconds = stage_seconds(options, SHAPES, token_s=1e-3)
    assert seconds == {"rounding": pytest.approx(FORECAST_PASSES * largest), "tuning": pytest.approx(1e-3 * token_passes(5))}
    assert stage_seconds(TrellisOptions(tune=False), SHAPES, 1e-3).keys() == {"rounding"}


def test_rounding_is_timed_on_this_machine():
    each, more = effort._weight_seconds(4)
    assert 0 <= each < 1e-3 and 0 <= more < 1e-5 and each + more > 0


def test_the_forecast_of_memory_counts_what_refinement_holds():
    best, default = (method_options("trellis", {"effort": level}) for level in ("best", "default"))
    assert best.learning_bytes(1000, 100) == 5200 and default.learning_bytes(1000, 100) == 0
    assert method_options("gptq", {}).learning_bytes(1000, 100) == 0
