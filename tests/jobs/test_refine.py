"""Packing with progressive rounding: within the budget, on to the same bytes, and what its stages bought is reported."""

import os
import subprocess
import sys

import pytest

from quantlab.artifact.reader import open_artifact
from quantlab.jobs.pack import pack
from quantlab.methods.trellis import refinement
from quantlab.report.pack_report import read_report

ENV = dict(os.environ)
CONFIG = {"calib_tokens": 2048, "calib_seq_len": 64, "tune": False}


@pytest.mark.parametrize("budget", [30_000, 50_000, 90_000])
def test_refined_files_fill_their_budget_and_report_every_stage(toy_checkpoint, tmp_path, budget):
    report = pack(toy_checkpoint, budget=budget, output=tmp_path / "m.qlab", refine_steps=2, **CONFIG)
    assert 0.995 * budget < report.total_bytes <= budget
    stages = report.refined
    assert 1 < len(stages) < refinement.GROUPS
    assert all(stage["accepted"] == (stage["kl_after"] < stage["kl_before"]) for stage in stages)
    assert stages[-1]["kl_before"] > stages[0]["kl_before"] > 0
    assert read_report(tmp_path / "m.report.json").refined == stages


def test_what_stages_learned_is_in_the_file(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "RATE", 0.05)
    plain = pack(toy_checkpoint, budget=50_000, output=tmp_path / "plain.qlab", **CONFIG)
    refined = pack(toy_checkpoint, budget=50_000, output=tmp_path / "m.qlab", refine_steps=12, **CONFIG)
    assert plain.refined == () and any(stage["accepted"] for stage in refined.refined)
    before, after = (open_artifact(tmp_path / name).tensors() for name in ("plain.qlab", "m.qlab"))
    assert any((before[name] != after[name]).any() for name in before)


def test_the_number_of_threads_changes_no_byte(toy_checkpoint, tmp_path):
    for threads in ("1", "2"):
        command = [sys.executable, "-m", "quantlab", "pack", toy_checkpoint, "-o", tmp_path / f"{threads}.qlab"]
        command += ["--budget", "50kB", "--effort", "best", "--calib-tokens", "2048", "--calib-seq-len", "64", "--states", "8"]
        subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, env={**ENV, "OMP_NUM_THREADS": threads}
        )
    assert (tmp_path / "1.qlab").read_bytes() == (tmp_path / "2.qlab").read_bytes()
