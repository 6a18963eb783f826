"""Estimates of several sizes, and where the bytes of one would go."""

import pytest

import quantlab
from quantlab.errors import BudgetError, ConfigError
from quantlab.jobs.estimate import TUNED, parse_sizes, sensitivity
from quantlab.models.loading import load

CALIB = {"calib_tokens": 2048, "calib_seq_len": 64}


@pytest.fixture(scope="module")
def stats(toy_checkpoint):
    return quantlab.calibrate(toy_checkpoint, **CALIB)


def test_estimates_are_near_what_packing_then_gives(toy_checkpoint, stats, tmp_path):
    budgets = [30_000, 50_000, 90_000]
    found = quantlab.estimate(toy_checkpoint, budgets=budgets, stats=stats)
    assert [point.total_bytes for point in found.points] == budgets
    for point in found.points:
        output = tmp_path / f"{point.total_bytes}.qlab"
        report = quantlab.pack(toy_checkpoint, budget=point.total_bytes, output=output, stats=stats, seed=0)
        assert point.predicted_kl == pytest.approx(report.predicted_kl, rel=0.25)
        assert point.kl == pytest.approx(report.measured.kl, rel=0.25)
        assert point.low < point.kl < point.high
    assert list(tmp_path.glob("*.stats*")) == []


def test_a_packing_that_does_not_tune_is_not_forecast_to(toy_checkpoint, stats):
    plain, tuned = (
        quantlab.estimate(toy_checkpoint, budgets=[50_000], stats=stats, tune=tune).points[0] for tune in (False, True)
    )
    assert tuned.kl == pytest.approx(TUNED * plain.kl) and tuned.predicted_kl == plain.predicted_kl


def test_an_estimate_below_the_smallest_file_is_refused_with_its_size(toy_checkpoint, stats):
    with pytest.raises(BudgetError) as caught:
        quantlab.estimate(toy_checkpoint, budgets="300:90kB", stats=stats)
    smallest = caught.value.smallest_bytes
    assert quantlab.estimate(toy_checkpoint, budgets=[40_000], stats=stats).smallest_bytes == smallest > 300


def test_the_baseline_is_estimated_too(toy_checkpoint, stats):
    trellis, gptq = (
        quantlab.estimate(toy_checkpoint, budgets=[60_000], stats=stats, method=method).points[0]
        for method in ("trellis", "gptq")
    )
    assert trellis.predicted_kl < gptq.predicted_kl


def test_slopes_of_tensors_agree_and_are_those_of_the_file(toy_checkpoint, stats):
    point = sensitivity(toy_checkpoint, budget="60kB", stats=stats)
    saved = [t.kl_per_kilobyte for t in point.tensors]
    assert len(saved) == len(point.tensors)
    assert max(saved) < 3 * min(saved)  # one slope for all, but for the noise of small tensors
    more = quantlab.estimate(toy_checkpoint, budgets=[60_000, 61_000], stats=stats).points
    assert (more[0].predicted_kl - more[1].predicted_kl) == pytest.approx(sum(saved) / len(saved), rel=0.3)
    weights = sum(tensor.numel() for tensor in load(toy_checkpoint).state.values())
    assert sensitivity(toy_checkpoint, stats=stats).total_bytes == weights // 2


@pytest.mark.parametrize(
    ("budgets", "message"),
    [("2MB:1MB", "2000000 bytes is not below 1000000"), ("x", "'x'"), ([], "at least one size"), ("1MB,,2MB", "''")],
)
def test_sizes_that_cannot_be_read_are_refused(budgets, message):
    with pytest.raises(ConfigError, match=message):
        parse_sizes(budgets, 1000)


def test_estimates_beyond_what_a_method_fills_are_those_of_its_largest_file(toy_checkpoint, stats):
    points = quantlab.estimate(toy_checkpoint, budgets=[60_000, 400_000, 900_000], stats=stats, method="rtn").points
    kl = [point.predicted_kl for point in points]
    assert kl[0] >= kl[1] >= kl[2] > 0
    assert 0 < sensitivity(toy_checkpoint, budget=400_000, stats=stats, method="rtn").predicted_kl < 1


def test_calibration_beside_statistics_is_refused(toy_checkpoint, stats):
    with pytest.raises(ConfigError, match="the statistics bring their own calibration"):
        quantlab.estimate(toy_checkpoint, stats=stats, calib="random")


def test_default_sizes_can_be_reached(toy_checkpoint, stats):
    found = quantlab.estimate(toy_checkpoint, stats=stats)
    assert found.points[0].total_bytes >= found.smallest_bytes and len(found.points) == 5
