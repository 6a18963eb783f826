"""The benchmark's record pipeline: its low-rank corrections, and that its file says all that a reader needs."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from quantlab.calib.sources import CalibrationConfig
from quantlab.jobs.calibrate import measure_statistics
from quantlab.models.loading import load

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from lqer import GROUP, RANK, Correction, correction_of, largest_errors
from record_pipeline import Clips, RecordPipeline, decode

pytestmark = pytest.mark.usefixtures("one_thread")


def low_rank(rows, columns, rank=1, noise=0.01):
    generator = torch.Generator().manual_seed(rows)
    a, b = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    return a @ b + noise * torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (48, 65), (3, 100), (1, 1)])
def test_a_correction_takes_most_of_a_low_rank_error_and_comes_back_from_its_bytes(rows, columns):
    error_OI = low_rank(rows, columns)
    correction = correction_of(error_OI)
    assert (error_OI - correction.product_OI).norm() < 0.6 * error_OI.norm()
    assert set(np.unique(correction.a_OR)) <= {-2, -1, 0, 1} and np.abs(correction.b_RI + 0.5).max() <= 7.5
    rank = min(RANK, rows, columns)
    assert correction.a_OR.shape == (rows, rank) and len(correction.b_scale_G) == -(-rank * columns // GROUP)
    raw = correction.to_bytes()
    back, size = Correction.from_bytes(raw + b"more", rows, columns)
    assert size == len(raw) and torch.equal(back.product_OI, correction.product_OI)


def test_no_error_needs_no_correction():
    assert not correction_of(torch.zeros(8, 70)).product_OI.any()


def test_the_largest_errors_are_chosen():
    errors = {"a": torch.ones(2, 2), "b": 3 * torch.ones(2, 2), "c": 2 * torch.ones(2, 2)}
    assert largest_errors(errors, 2) == ["b", "c"] and largest_errors(errors, 0) == []


@pytest.fixture(scope="module")
def pipelines(toy_checkpoint):
    loaded = load(toy_checkpoint)
    stats = measure_statistics(loaded, CalibrationConfig(source="random", tokens=1024, seq_len=64), None)
    return [RecordPipeline(loaded, stats, corrections=count, workers=1) for count in (0, 3)]


def test_a_file_is_read_back_with_its_corrections(pipelines):
    plain, corrected = pipelines
    clips = Clips().times(2, 2, 2)
    for pipeline in pipelines:
        state, expected = decode(pipeline.encode(clips)), pipeline.state(clips)
        assert state.keys() == expected.keys() and all(torch.equal(state[name], t) for name, t in expected.items())
    changed = corrected.corrected(clips)
    errors = {name: plain.matrices[name] - plain.state(clips)[name] for name in plain.matrices}
    assert list(changed) == largest_errors(errors, 3)
    for name, error in errors.items():
        after = (corrected.matrices[name] - corrected.state(clips)[name]).norm()
        assert after < error.norm() if name in changed else after == error.norm()
