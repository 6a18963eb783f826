"""Two processes pack one file: they share sampling, statistics and tuning, and stop together."""

import os
import subprocess
import sys

import pytest

import quantlab
from quantlab.jobs.crew import MainProcess
from quantlab.jobs.pack import plan_pack
from quantlab.jobs.packer import _work_key
from quantlab.report.pack_report import read_report
from quantlab.trainer.world import World

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "quantlab", "pack"]
CALIBRATION = ["--calib-tokens", "1024", "--calib-seq-len", "64", "--device", "cpu", "--no-run", "--option", "tune_steps=4"]


def pack_with_two(checkpoint, output, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*LAUNCH, str(checkpoint), "-o", str(output), *CALIBRATION, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )


def test_two_processes_pack_what_one_does_but_for_rounding_of_sums(tmp_path, toy_checkpoint):
    done = pack_with_two(toy_checkpoint, tmp_path / "two.qlab", "--budget", "60KB")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote ") == 1  # by the main process alone
    again = pack_with_two(toy_checkpoint, tmp_path / "again.qlab", "--budget", "60KB")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "two.qlab").read_bytes() == (tmp_path / "again.qlab").read_bytes()
    about = {"budget": "60KB", "calib_tokens": 1024, "calib_seq_len": 64, "device": "cpu", "tune_steps": 4}
    one = quantlab.pack(toy_checkpoint, output=tmp_path / "one.qlab", **about)
    report = read_report(tmp_path / "two.report.json")
    assert report.artifact_bytes <= 60_000
    assert report.calibration["processes"] == 2
    assert report.predicted_kl == pytest.approx(one.predicted_kl, rel=0.05)  # other last digits, other codes
    assert report.calibration["tokens_sha256"] == one.calibration["tokens_sha256"]


def test_all_stop_where_the_main_process_fails(tmp_path, toy_checkpoint):
    done = pack_with_two(toy_checkpoint, tmp_path / "m.qlab", "--budget", "12KB")
    assert done.returncode != 0
    assert "is below the smallest reachable size" in done.stderr
    assert not list(tmp_path.glob("*.qlab"))


def test_the_work_of_another_number_of_processes_is_not_taken_up(tmp_path, toy_checkpoint):
    """Their statistics have other last digits, so codes that were kept are those of another file."""
    loaded, config = quantlab.load(toy_checkpoint), plan_pack(budget="60KB", output=tmp_path / "m.qlab").config
    one, two, three = (
        _work_key(loaded, config, None, {}, crew) for crew in (None, *(MainProcess(World(0, size), loaded) for size in (2, 3)))
    )
    assert two == one | {"processes": 2} and three == one | {"processes": 3}
