"""quantlab submission build: a folder out of recorded runs, whose script decodes every artifact, and which passes the check."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_samples import PIPELINE, write_pipeline

from quantlab.cli.main import run
from quantlab.errors import QuantlabError
from quantlab.pipeline.pipeline_text import pipeline_text
from quantlab.runs.store import read_store
from quantlab.share.findings import BROKEN, LOOK, NOTE
from quantlab.share.submission_check import check_submission
from quantlab.share.train_script import prove_decoding
from quantlab.share.wrapped_code import proved, unwrap, wrap

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["--author", "A. B.", "--github", "ab", "--runs", "runs"]


@pytest.fixture(scope="module")
def folder(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two seeds of one pipeline have run."""
    folder = tmp_path_factory.mktemp("build")
    write_pipeline(folder, tokenizer_file, PIPELINE + "[matrix]\ntrain.seed = [1, 2]\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run(["run", "p.toml", "--runs", "runs"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The submission of both seeds."""
    monkeypatch.chdir(folder)
    place = folder / "records" / "2026-12-01_Tiny"
    if not place.exists():
        assert run(["submission", "build", *runs(folder), "-o", "records/2026-12-01_Tiny", *NAMES]) == 0
    return place


def runs(folder: Path) -> list[str]:
    return [one.name for one in read_store(folder / "runs").runs if one.record.kind == "run"]


def test_the_folder_holds_what_a_record_needs(built: Path, folder: Path):
    assert sorted(path.name for path in built.iterdir()) == [
        *("README.md", "requirements.txt", "submission.json", "train_gpt.py", "train_seed1.log", "train_seed2.log"),
    ]
    claims = json.loads((built / "submission.json").read_text())
    scores = [one.record.evaluations[-1].val_bpb for one in read_store(folder / "runs").runs]
    assert claims["val_bpb"] == pytest.approx(sum(scores) / 2, abs=1e-8)
    assert claims["seeds"] == [1, 2]
    assert claims["bytes_code"] == (built / "train_gpt.py").stat().st_size
    sizes = [one.record.artifact.bytes for one in read_store(folder / "runs").runs]
    assert claims["bytes_total"] == claims["bytes_code"] + max(sizes)
    assert claims["compliance"]["whole_public_split"] is False
    log = (built / "train_seed1.log").read_text()
    assert f"Code size: {claims['bytes_code']} bytes" in log
    assert f"Total submission size quantized+qlab: {claims['bytes_code'] + sizes[0]} bytes" in log
    assert "stopping_early" not in log
    assert "step:6/6 val_loss:" in log


def test_the_shipped_bytes_are_a_wrapper_that_was_proved(built: Path):
    code = (built / "train_gpt.py").read_bytes()
    source = unwrap(code.decode())
    assert source == proved(code)
    assert source is not None
    assert len(code) < len(source.encode())
    assert source.rstrip("\n") in (built / "train_seed2.log").read_text()


def test_the_shipped_script_decodes_the_artifact_without_quantlab(built: Path, folder: Path, tmp_path: Path):
    artifact = folder / "p.out" / "cells" / "train.seed=1" / "model.qlab"
    command = [sys.executable, "-I", str(built / "train_gpt.py"), "decode", str(artifact), str(tmp_path / "state.pt")]
    subprocess.run(command, check=True, cwd=tmp_path)
    other = folder / "p.out" / "cells" / "train.seed=2" / "model.report.json"
    with pytest.raises(QuantlabError, match="to other tensors"):
        prove_decoding((built / "train_gpt.py").read_bytes(), artifact, json.loads(other.read_text())["tensors_sha256"])


def test_its_own_check_accuses_it_of_nothing(built: Path):
    checked = check_submission(built)
    assert [f for f in checked.findings if f.level == BROKEN] == []
    texts = [f"{f.check}: {f.text}" for f in checked.findings if f.level in (LOOK, NOTE)]
    assert all(text.startswith(("bytes: ", "split: ", "seeds: ")) for text in texts), texts  # two seeds on a text of 600 bytes
    assert any(text.startswith("claim: ") and "mean of final_qlab_roundtrip" in text for text in checked.passed)
    assert any(text == "code: train_seed1.log holds the shipped script" for text in checked.passed)


def test_the_pipeline_of_the_script_is_the_recorded_one(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    record = read_store(folder / "runs").runs[0].record
    text = pipeline_text(record.options)
    (folder / "again.toml").write_text(text)
    assert run(["run", "again.toml", "--out", "p.out", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["-o", "records/Tiny"], 2, "submission folder 'Tiny' must be named like 2026-12-01_Name"),
        (["-o", "records/2026-12-02_Tiny", "--cap", "20kB"], 3, "bytes, "),
        (["-o", "records/2026-12-02_Tiny", "--track", "best"], 2, "--track must be 10min_16mb or non_record_16mb, got 'best'"),
    ],
)
def test_what_cannot_be_built_is_one_line(folder: Path, words, code, expected, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run(["submission", "build", *runs(folder), *words, *NAMES]) == code
    assert expected in capsys.readouterr().err
    assert not (folder / "records" / "2026-12-02_Tiny").exists()


def test_runs_that_differ_or_repeat_a_seed_or_lost_their_artifact_are_refused(
    folder: Path, tmp_path: Path, monkeypatch, capsys
):
    work = Path(shutil.copytree(folder, tmp_path / "work"))
    monkeypatch.chdir(work)
    first, second = runs(work)
    build = ["submission", "build", "-o", "records/2026-12-03_Tiny", *NAMES]
    assert run([*build, first, first]) == 2
    assert "two runs have the same seed: 1, 1" in capsys.readouterr().err
    record = work / "runs" / second / "run.json"
    text = record.read_text()
    record.write_text(text.replace('"steps": 6', '"steps": 7'))
    assert run([*build, first, second]) == 2
    assert "differ in train.config.steps, not in the seed alone" in capsys.readouterr().err
    record.write_text(text)
    artifact = work / "p.out" / "cells" / "train.seed=2" / "model.qlab"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    assert run([*build, first, second]) == 1
    assert "has changed since" in capsys.readouterr().err


def test_a_wrapper_that_does_not_decode_is_refused():
    assert wrap("print('hello')\n" * 50).coder in ("lzma", "brotli")
    with pytest.raises(QuantlabError, match="the script is not Python"):
        wrap("def (")
    with pytest.raises(QuantlabError, match="the wrapper fails"):
        proved(b"exec(undefined)")
