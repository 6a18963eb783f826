"""From a budget to row grids: files within it, close to it, better with more bytes, and the smallest one by name."""

import itertools

import pytest
import torch

from quantlab.artifact.decode import decode_artifact, parse_artifact
from quantlab.artifact.writer import encode_artifact
from quantlab.calib.fisher import Use
from quantlab.errors import BudgetError
from quantlab.methods.classic.allocation import Allocator
from quantlab.methods.classic.meter import TensorMeter
from quantlab.methods.classic.row_grid import Setting

SHAPES = {"up": (64, 32), "down": (32, 64), "head": (96, 32)}


def allocator(progress=None):
    meters = []
    for seed, (name, (O, I)) in enumerate(SHAPES.items()):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3 * I, I, generator=generator)
        use = Use(x.T @ x / len(x), torch.rand(O, generator=generator) * 10.0**-seed)
        meters.append(TensorMeter(name, torch.randn(O, I, generator=generator), (use,), (5, 6, 8), feeds_back=True))
    return Allocator(meters, encode_artifact, progress)


def test_files_fit_their_budget_and_more_bytes_are_better():
    losses = []
    for budget in (2_800, 3_600, 6_000):
        file, points = allocator().solve(budget)
        assert 0.9 * budget < len(file) <= budget
        losses.append(sum(p.predicted_kl for p in points))
    assert all(b < a for a, b in itertools.pairwise(losses))


def test_the_file_decodes_to_what_was_measured():
    one = allocator()
    file, points = one.solve(4_000)
    tensors = decode_artifact(*parse_artifact(file.data))
    for meter, point in zip(one.meters, points, strict=True):
        assert torch.equal(torch.from_numpy(tensors[meter.name]), meter.reconstruct(Setting(point.bits, point.setting)))


def test_the_smallest_size_is_a_budget_that_works_and_less_is_refused_with_it():
    smallest = allocator().smallest_bytes()
    assert 0.98 * smallest < len(allocator().solve(smallest)[0]) <= smallest
    with pytest.raises(BudgetError) as caught:
        allocator().solve(smallest - 1)
    assert caught.value.smallest_bytes == smallest


@pytest.mark.parametrize("more", [3, 20, 100])
def test_a_budget_just_above_the_smallest_size_works(more):
    smallest = allocator().smallest_bytes()
    file, points = allocator().solve(smallest + more)
    assert smallest <= len(file) <= smallest + more and len(points) == len(SHAPES)


def test_a_poor_first_choice_still_fills_the_budget(monkeypatch):
    for rounds in ("ESTIMATED_ROUNDS", "CORRECTED_ROUNDS"):
        monkeypatch.setattr(f"quantlab.methods.classic.allocation.{rounds}", 0)
    for budget in (2_800, 4_500):
        assert 0.85 * budget < len(allocator().solve(budget)[0]) <= budget


def test_progress_counts_up_to_its_total_also_after_the_smallest_size_was_asked_for():
    calls = []
    one = allocator(lambda *at: calls.append(at))
    one.smallest_bytes()
    one.solve(4_000)
    done = [at for at, _ in calls]
    assert len({total for _, total in calls}) == 1
    assert done == sorted(done) and done[0] == 1 and calls[-1][0] == calls[-1][1]


def test_bytes_are_those_of_the_file_where_it_was_coded_and_close_to_them_elsewhere():
    one = allocator()
    file, points = one.solve(6_000)
    stored = {t.name: t.code_bytes for t in file.layout.tensors}
    assert [p.bytes for p in points] == [stored[m.name] for m in one.meters]
    for meter in one.meters:
        estimated = {Setting(p.bits, p.setting): p.bytes for p in meter.points}
        for setting, guess in estimated.items():
            assert 0.8 * guess < len(meter.payload(setting).codes.stored) < 1.2 * guess + 40  # a head takes some 30 bytes


def test_the_same_problem_gives_the_same_bytes_whatever_the_workers(monkeypatch):
    files = []
    for workers in (1, 3):
        monkeypatch.setattr("quantlab.methods.workers.processors", lambda workers=workers: workers)
        files.append(allocator().solve(4_000)[0].data)
    assert files[0] == files[1]
