"""What this process may still take, and statistics that do not fit into it."""

import logging
import resource

import pytest
import torch

import quantlab
from quantlab.calib.passes import SUM_BYTES, sum_entries
from quantlab.calib.sources import CalibrationConfig
from quantlab.jobs import memory
from quantlab.jobs.forecast import Forecast, plan_effort
from quantlab.jobs.memory import free_bytes, pass_bytes, passes_of, room_for_sums
from quantlab.jobs.problem import matrix_shapes
from quantlab.methods.method import method_options

QUICK = {"calib": "random", "calib_tokens": 1024, "calib_seq_len": 64, "device": "cpu"}
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_least_of_all_limits_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_machine", lambda: 7000)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, 0))
    assert free_bytes() == 7000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert free_bytes() == 7000
    (tmp_path / "memory.max").write_text("5100\n")
    assert free_bytes() == 5000
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("100\n")
    for limit, left in ((9223372036854771712, 5000), (1100, 1000), (50, 0)):
        (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{limit}\n")
        assert free_bytes() == left


@pytest.mark.skipif(not memory._fields(memory.Path("/proc/self/status")), reason="needs /proc")
def test_a_limit_of_the_address_space_counts(monkeypatch):
    used = memory._fields(memory.Path("/proc/self/status"))["VmSize"]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + (1 << 20), 0))
    assert 0 <= free_bytes() <= 1 << 20


def test_sums_take_a_share_of_what_a_pass_leaves(monkeypatch):
    model, shapes = torch.nn.Linear(4, 3), {"weight": (3, 4), "head": (1000, 4)}
    kept, again = pass_bytes(shapes, 1000), pass_bytes(shapes, 1000, blocks=7)
    assert (kept, again) == (512 * 4 * (4 * 1000 + 2 * 7), 512 * 4 * (4 * 1000 + 2))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    assert room_for_sums(model, kept) == int(0.6 * (10**9 - kept))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    assert room_for_sums(model, kept) == 1


def test_passes_are_as_few_as_activations_that_are_not_kept_allow(toy_checkpoint, monkeypatch):
    loaded = quantlab.load(toy_checkpoint)
    shapes, blocks = matrix_shapes(loaded), len(loaded.model.blocks)
    sums = sum(SUM_BYTES * sum_entries(shape, plain=False) for shape in shapes.values())
    kept, again = (pass_bytes(shapes, loaded.vocab_size, blocks=n) for n in (1, blocks))
    for free, passes in ((kept + 2 * sums, 1), (again + sums, 2), (again + sums / 4, 5)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        groups = passes_of(loaded.model, shapes, loaded.vocab_size, plain=False)
        assert (len(groups) == 1) == (passes == 1) and abs(len(groups) - passes) <= 3, (free, len(groups))
        assert {name: shape for group in groups for name, shape in group.items()} == shapes


def test_a_packing_whose_statistics_do_not_fit_gives_the_same_bytes(toy_checkpoint, tmp_path, monkeypatch, caplog):
    options = QUICK | {"effort": "fast", "budget": 80_000}
    quantlab.pack(toy_checkpoint, output=tmp_path / "one.qlab", **options)
    monkeypatch.setattr(memory, "room_for_sums", lambda *_: 400_000)
    with caplog.at_level(logging.INFO):
        report = quantlab.pack(toy_checkpoint, output=tmp_path / "several.qlab", **options)
    assert (tmp_path / "one.qlab").read_bytes() == (tmp_path / "several.qlab").read_bytes()
    passes = report.forecast["passes"]
    assert passes > 1 and f"statistics in {passes} passes" in caplog.text
    assert f"do not fit into memory together: {passes} passes over the tokens" in caplog.text


def test_a_forecast_beyond_the_memory_says_so(toy_checkpoint, monkeypatch):
    monkeypatch.setattr("quantlab.jobs.forecast.free_bytes", lambda: 1000)
    config = CalibrationConfig(source="random", tokens=1024, seq_len=64)
    forecast = plan_effort(quantlab.load(toy_checkpoint), method_options("trellis", {}), config, plain=False).forecast
    assert forecast.warning() == (
        f"memory may not be enough: about {forecast.peak_bytes / 1e9:.1f} GB of {forecast.limit_bytes / 1e9:.1f} GB"
    )
    assert Forecast(peak_bytes=5, limit_bytes=None).warning() is Forecast(peak_bytes=5, limit_bytes=5).warning() is None
