"""pack --dry-run: what a packing would give and take, held beside the packing; and nothing is written."""

import json

import pytest

import quantlab
from quantlab.cli.main import run

CALIB = ["--calib-tokens", "2048", "--calib-seq-len", "64"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def packs(capsys, *arguments, code=0):
    assert run(["pack", *map(str, arguments)]) == code
    return capsys.readouterr()


def test_it_is_near_what_the_packing_then_gives_and_writes_nothing(toy_checkpoint, place, capsys):
    quantlab.calibrate(toy_checkpoint, output=place / "s.safetensors", calib_tokens=2048, calib_seq_len=64)
    before = sorted(place.rglob("*"))
    asked = [toy_checkpoint, "--budget", "60kB", "-o", "m.qlab", "--stats", "s.safetensors", "--no-tune"]
    found = json.loads(packs(capsys, *asked, "--dry-run", "--json").out)
    assert sorted(place.rglob("*")) == before
    report = json.loads(packs(capsys, *asked, "--json").out)
    assert found["point"]["total_bytes"] == found["budget_bytes"] == 60_000 > found["smallest_bytes"]
    assert found["point"]["predicted_kl"] == pytest.approx(report["predicted_kl"], rel=0.25)
    assert found["total_s"] == pytest.approx(sum(found["stages_s"].values()), abs=0.1) and found["peak_memory_bytes"] > 10**8
    assert found["stages_s"].keys() == report["forecast"]["stages_s"].keys()
    assert found["outputs"] == ["m.qlab", "m.report.json"] and found["calibration_tokens"] == found["packing_tokens"]


def test_without_statistics_a_part_of_the_tokens_is_measured_and_said(toy_checkpoint, place, capsys, monkeypatch):
    monkeypatch.setattr("quantlab.jobs.dry_run.SAMPLE_TOKENS", 1024)
    out = packs(capsys, toy_checkpoint, "--budget", "60kB", "-o", "m.qlab", *CALIB, "--dry-run").out
    assert "(from 1,024 calibration tokens; the packing takes 2,048)" in out and out.endswith("nothing was written\n")
    assert "size    at most 60 kB: an artifact of 60 kB" in out and "KL " in out and "time " in out and "memory " in out
    assert max(map(len, out.splitlines())) <= 128 and list(place.iterdir()) == []


def test_what_packing_would_refuse_is_refused(toy_checkpoint, place, capsys):
    code = place / "code.py"
    code.write_text("x = 1\n")
    asked = [toy_checkpoint, "-o", "m.qlab", *CALIB, "--dry-run"]
    assert "did you mean 250KB?" in packs(capsys, *asked, "--budget", "250", code=3).err
    tiny = packs(capsys, *asked, "--budget", "5kB", "--code", code, code=3).err
    assert "is below the smallest reachable size" in tiny and "code 6" in tiny
    (place / "m.qlab").write_bytes(b"old")
    assert "exists" in packs(capsys, *asked, "--budget", "60kB", code=2).err
    assert (
        "matches none of the tensors" in packs(capsys, *asked, "--force", "--budget", "60kB", "--keep", "nothing.*", code=2).err
    )
