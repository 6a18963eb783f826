"""A packing that is killed goes on from its finished work and writes the bytes of one that was not."""

import subprocess
import sys
import time

import pytest

from quantlab.errors import BudgetError, ConfigError
from quantlab.jobs import packer
from quantlab.jobs.pack import pack
from quantlab.jobs.workspace import folder_of
from quantlab.methods.trellis import effort, refinement, rounder
from quantlab.methods.trellis.solver import TrellisSolver
from quantlab.models.loading import load

CONFIG = {"budget": 50_000, "calib_tokens": 2048, "calib_seq_len": 64, "tune_steps": 2}


def packed(checkpoint, path, config=CONFIG, **options):
    pack(checkpoint, output=path, force=True, **config, **options)
    return path.read_bytes()


def stop_after(monkeypatch, count):
    """Make the packing die at its `count`-th tensor."""
    effort._weight_seconds(8)  # the forecast rounds on trial, once in a process
    calls, real = [0], rounder.round_with_feedback

    def dying(*args, **options):
        calls[0] += 1
        if calls[0] > count:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(rounder, "round_with_feedback", dying)
    return calls


@pytest.mark.parametrize("count", [0, 5, 20, 40])
def test_a_stopped_packing_goes_on_to_the_same_bytes(toy_checkpoint, tmp_path, monkeypatch, count):
    whole = packed(toy_checkpoint, tmp_path / "whole.qlab")
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(KeyboardInterrupt):
            packed(toy_checkpoint, tmp_path / "m.qlab")
    assert not (tmp_path / "m.qlab").exists() and folder_of(tmp_path / "m.qlab").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(packer, "measure_statistics", None)  # they were kept: measuring again would fail
        calls = stop_after(patch, 10_000)
        assert packed(toy_checkpoint, tmp_path / "m.qlab", resume=True) == whole
    everything = stop_after(monkeypatch, 10_000)
    packed(toy_checkpoint, tmp_path / "again.qlab")
    assert calls[0] == everything[0] - count  # finished tensors were not rounded again
    assert not folder_of(tmp_path / "m.qlab").exists()


@pytest.mark.parametrize("count", [45, 52, 60])
def test_a_packing_stopped_while_it_refines_goes_on_to_the_same_bytes(toy_checkpoint, tmp_path, monkeypatch, count):
    config = CONFIG | {"refine_steps": 2}
    whole = packed(toy_checkpoint, tmp_path / "whole.qlab", config)
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        with pytest.raises(KeyboardInterrupt):
            packed(toy_checkpoint, tmp_path / "m.qlab", config)
    assert packed(toy_checkpoint, tmp_path / "m.qlab", config, resume=True) == whole


def test_the_work_folder_is_bounded_and_what_it_forgot_is_rounded_again(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(packer, "KEPT_CODES", 1)
    whole = packed(toy_checkpoint, tmp_path / "whole.qlab")
    with monkeypatch.context() as patch:
        stop_after(patch, 35)
        with pytest.raises(KeyboardInterrupt):
            packed(toy_checkpoint, tmp_path / "m.qlab")
    weights = sum(tensor.numel() for tensor in load(toy_checkpoint).state.values())
    assert sum(p.stat().st_size for p in folder_of(tmp_path / "m.qlab").glob("*.codes")) <= weights
    assert packed(toy_checkpoint, tmp_path / "m.qlab", resume=True) == whole


def test_a_killed_process_leaves_work_that_resume_finishes(toy_checkpoint, tmp_path):
    command = [sys.executable, "-m", "quantlab", "pack", toy_checkpoint, "--budget", "50kB", "-o", tmp_path / "m.qlab"]
    command = [str(part) for part in [*command, "--calib-tokens", "2048", "--calib-seq-len", "64"]]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    work, deadline = folder_of(tmp_path / "m.qlab"), time.monotonic() + 120
    while len(list(work.glob("*.codes"))) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = len(list(work.glob("*.codes")))
    assert kept >= 7 and not (tmp_path / "m.qlab").exists()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    command[command.index(str(tmp_path / "m.qlab"))] = str(tmp_path / "whole.qlab")
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "m.qlab").read_bytes() == (tmp_path / "whole.qlab").read_bytes()


def test_resume_refuses_work_of_other_options(toy_checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            packed(toy_checkpoint, tmp_path / "m.qlab")
    other = CONFIG | {"budget": 51_000}
    with pytest.raises(ConfigError, match="left by another checkpoint, budget or options"):
        packed(toy_checkpoint, tmp_path / "m.qlab", other, resume=True)
    packed(toy_checkpoint, tmp_path / "m.qlab", other)  # without --resume it begins anew


def test_an_impossible_budget_leaves_nothing(toy_checkpoint, tmp_path):
    with pytest.raises(BudgetError):
        packed(toy_checkpoint, tmp_path / "m.qlab", CONFIG | {"budget": 3000})
    assert list(tmp_path.iterdir()) == []


def test_stages_of_refinement_that_did_not_help_are_kept_too(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "RATE", -0.05)  # uphill
    config = CONFIG | {"refine_steps": 2}
    report = pack(toy_checkpoint, output=tmp_path / "whole.qlab", **config)
    assert report.refined and not any(stage["accepted"] for stage in report.refined)
    with monkeypatch.context() as patch:
        patch.setattr(TrellisSolver, "_tune", lambda *args: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            packed(toy_checkpoint, tmp_path / "m.qlab", config)
    monkeypatch.setattr(refinement.Refinement, "_learn", None)  # learning again would fail
    assert packed(toy_checkpoint, tmp_path / "m.qlab", config, resume=True) == (tmp_path / "whole.qlab").read_bytes()
