"""Estimates of several sizes, and where the bytes of one would go."""

import math
from dataclasses import replace

import pytest
import torch

import quantlab
from quantlab.errors import BudgetError, ConfigError
from quantlab.jobs.estimate import TUNED, Solving, parse_sizes, sensitivity
from quantlab.methods.method import Estimate, Point
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


class Exact:
    """A solver whose ln KL falls by 1 nat each 1,000 bytes, and whose files miss what was asked by so many bytes."""

    def __init__(self, missed: int) -> None:
        self.missed = missed

    def estimate(self, budget_bytes: int) -> Estimate:
        size = budget_bytes + self.missed
        kl = math.exp(-size / 1000)
        points = {"w": Point(8, 1.0, size - 100, kl)}
        return Estimate(file_bytes=size, points=points, tensors={"w": torch.tensor(2 * kl)})


def solving_exactly(missed, n_params, is_tuned=False):
    """Return a solver whose measured KL is twice the predicted one."""
    facts = {"statistics": None, "shapes": {"w": (80, 100)}, "has_tokenizer": False, "is_tuned": is_tuned}
    return Solving(solver=Exact(missed), n_params=n_params, kl_of=lambda values: float(values["w"]), **facts)


@pytest.mark.parametrize("missed", [0, 60, -60])
def test_kl_is_carried_from_the_file_to_the_size_that_was_asked_for(missed):
    points = solving_exactly(missed, 8000).curve([2000, 3000, 4000])
    for point in points:
        assert point.predicted_kl == pytest.approx(math.exp(-point.total_bytes / 1000))
        assert point.kl == pytest.approx(2 * point.predicted_kl)
        (tensor,) = point.tensors
        assert tensor.kl_per_kilobyte == pytest.approx(tensor.predicted_kl, rel=1e-6)
        assert (tensor.name, tensor.shape) == ("w", (80, 100))


def test_a_size_far_from_any_file_has_the_kl_of_the_nearest_one():
    (point,) = solving_exactly(-400, 8000).curve([2000])
    assert point.predicted_kl == pytest.approx(math.exp(-1.6))


@pytest.mark.parametrize("is_tuned", [False, True])
def test_the_band_is_around_what_a_packing_should_measure(is_tuned):
    (point,) = solving_exactly(0, 8000, is_tuned).curve([2000])
    assert point.kl == pytest.approx((TUNED if is_tuned else 1) * 2 * point.predicted_kl)
    assert (point.low, point.high) == pytest.approx((0.8 * point.kl, 1.25 * point.kl))


def test_what_the_file_carries_is_part_of_its_size(toy_checkpoint, stats, tokenizer_file):
    loaded = load(toy_checkpoint)
    carrying = replace(loaded, tokenizer_files={"tokenizer.model": tokenizer_file.read_bytes()})
    alone, more = (quantlab.estimate(x, budgets=[60_000], stats=stats, method="rtn").smallest_bytes for x in (loaded, carrying))
    assert more > alone + 500  # the tokenizer of the tests takes 900 bytes behind its codec
