"""The forecast of a packing: its line, its stages, and the least effort that a time limit leaves."""

from dataclasses import dataclass

import pytest
import torch

from quantlab.calib.sources import CalibrationConfig
from quantlab.errors import TimeLimitError
from quantlab.jobs import forecast
from quantlab.jobs.forecast import MARGIN, Forecast, changes, plan_effort
from quantlab.methods.method import MethodOptions, method_options
from quantlab.models.loading import load

SAMPLE = CalibrationConfig(tokens=1024, seq_len=64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Halving(MethodOptions):
    """Work that can be halved down to 1 second."""

    work_s: float = 8.0
    limit: float | None = None

    @property
    def limit_s(self):
        return self.limit

    def lighter(self):
        return Halving(work_s=self.work_s / 2, limit=self.limit) if self.work_s > 1 else None

    def forecast(self, shapes, token_s):
        return {"rounding": self.work_s}


def test_the_line_says_stages_and_memory():
    stages = {"sampling": 60.0, "statistics": 90.0, "rounding": 30.4, "tuning": 19.6}
    assert Forecast(stages_s=stages, peak_bytes=1_420_000_000).line() == (
        "forecast: about 3 min 20 s (sampling 1 min 0 s, statistics 1 min 30 s, rounding 30 s, tuning 20 s), "
        "peak memory about 1.4 GB"
    )


def test_the_most_work_that_keeps_the_limit_by_the_margin_is_taken(toy_checkpoint, monkeypatch):
    monkeypatch.setattr(forecast, "_held_out_seconds", lambda *_: 0.5)
    loaded, rest = load(toy_checkpoint), forecast.FRESH_PROCESS_S + 0.5
    for limit, work_s in (
        (None, 8.0),
        ((8 + rest) / MARGIN + 0.1, 8.0),
        ((8 + rest) / MARGIN - 0.1, 4.0),
        (1 + rest + 0.1, 1.0),
    ):
        plan = plan_effort(loaded, Halving(limit=limit), None, plain=False)
        assert plan.options.work_s == work_s and plan.forecast.total_s == work_s + rest
        assert list(plan.forecast.stages_s) == ["rounding", "held-out KL", "reading back"]
    with pytest.raises(TimeLimitError, match=r"^the time limit of 5\.4 s cannot be kept: the least effort takes about 5\.5 s$"):
        plan_effort(loaded, Halving(limit=rest + 0.9), None, plain=False)


def test_every_stage_of_this_packing_is_forecast_and_no_other(toy_checkpoint):
    loaded, options = load(toy_checkpoint), method_options("trellis", {})
    random = CalibrationConfig(source="random", tokens=1024, seq_len=64)
    both = {"rounding", "tuning", "held-out KL", "reading back"}
    for chosen, calibration, stages in (
        (options, SAMPLE, both | {"sampling", "statistics"}),
        (options, random, both | {"statistics"}),
        (options, None, both),
        (method_options("trellis", {"effort": "fast"}), None, both - {"tuning"}),
        (method_options("gptq", {}), random, {"statistics", "held-out KL", "reading back"}),
    ):
        found = plan_effort(loaded, chosen, calibration, plain=True).forecast
        assert found.stages_s.keys() == stages and all(s >= 0 for s in found.stages_s.values()) and found.peak_bytes > 0


def test_twice_the_tokens_take_twice_the_time(toy_checkpoint, monkeypatch):
    loaded = load(toy_checkpoint)
    monkeypatch.setattr(forecast, "_seconds", lambda work: work() is None or 1e-3)
    monkeypatch.setattr("quantlab.methods.trellis.effort._weight_seconds", lambda states: (1e-6, 0.0))
    short, long = (
        plan_effort(
            loaded, method_options("trellis", {}), CalibrationConfig(tokens=n, seq_len=64), plain=False
        ).forecast.stages_s
        for n in (8192, 16384)
    )
    assert long["statistics"] == pytest.approx(2 * short["statistics"], abs=0.02)
    assert short["sampling"] == pytest.approx(63e-3 * forecast.LONG_CACHE / forecast.STEPS, abs=0.01)  # 63 steps of one batch
    assert long["sampling"] == pytest.approx(2 * short["sampling"], abs=0.02)
    assert long["rounding"] == short["rounding"]


def test_measuring_leaves_model_and_random_numbers_as_they_were(toy_checkpoint):
    loaded = load(toy_checkpoint)
    before, state = {n: t.clone() for n, t in loaded.model.state_dict().items()}, torch.get_rng_state()
    plan_effort(loaded, method_options("trellis", {}), SAMPLE, plain=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in loaded.model.state_dict().items())
    assert all(p.grad is None for p in loaded.model.parameters())


def test_changes_names_what_differs():
    wanted = method_options("trellis", {})
    assert (
        changes(wanted, wanted) == "" and changes(wanted, method_options("trellis", {"states": 4})) == "states 4 instead of 8"
    )
