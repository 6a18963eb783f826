"""Packing with progressive rounding: within the budget, on to the same bytes, and what its stages bought is reported."""

import os
import subprocess
import sys

import pytest
import torch

from quantlab.artifact.reader import open_artifact
from quantlab.jobs.pack import pack
from quantlab.methods.trellis import refinement
from quantlab.methods.trellis.slope_search import SlopePlanner
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


def test_a_model_of_one_matrix_or_with_few_sequences_is_packed_as_without_refinement(toy_checkpoint, tmp_path, caplog):
    few = {"calib_tokens": 256, "calib_seq_len": 64, "tune": False, "budget": 50_000}
    plain = pack(toy_checkpoint, output=tmp_path / "plain.qlab", **few)
    report = pack(toy_checkpoint, output=tmp_path / "m.qlab", refine_steps=2, **few)
    assert report.refined == () and "no refinement: of 4 calibration sequences none can be held out" in caplog.text
    assert report.tensors_sha256 == plain.tensors_sha256
    module = Table()
    for budget in (2000, 2100, 2200):
        alone = pack(module, budget=budget, output=tmp_path / f"{budget}.qlab", refine_steps=2, **CONFIG | {"calib": "random"})
        assert alone.refined == () and alone.total_bytes <= budget


class Table(torch.nn.Module):
    """Logits straight from an embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(64, 64)

    def forward(self, ids):
        return self.table(ids)


class Mixture(torch.nn.Module):
    """A stack of three matrices, all of them in use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(64, 64)
        self.w = torch.nn.Parameter(torch.randn(3, 64, 64) / 8)

    def forward(self, ids):
        x = self.table(ids)
        for w in self.w:
            x = x + torch.tanh(x @ w.T)
        return x


def test_a_stack_of_which_a_matrix_is_kept_is_refined(tmp_path):
    options = CONFIG | {"calib": "random", "keep": "w.0", "refine_steps": 2}
    report = pack(Mixture(), budget=20_000, output=tmp_path / "m.qlab", **options)
    assert len(report.refined) == 2 and report.total_bytes <= 20_000


def test_the_last_group_alone_is_rounded_again_to_fill_the_file(toy_checkpoint, tmp_path, monkeypatch):
    seen, refill = [], SlopePlanner.refill

    def watched(self, budget_bytes, payloads, c):
        file, after = refill(self, budget_bytes, payloads, c)
        same = {n for n, (p, q) in enumerate(zip(payloads, after, strict=True)) if (p.codes_OI == q.codes_OI).all()}
        seen.append((self.free, same, len(payloads)))
        return file, after

    monkeypatch.setattr(SlopePlanner, "refill", watched)
    pack(toy_checkpoint, budget=50_000, output=tmp_path / "m.qlab", refine_steps=2, **CONFIG)
    ((free, same, count),) = seen
    assert 0 < len(free) < count and same >= set(range(count)) - free
