"""Run records name no person, no machine and no secret, and `runs export` writes what may be published."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
from run_samples import packed, write

from quantlab.cli.main import run
from quantlab.runs import private
from quantlab.runs.origin import this_process
from quantlab.runs.private import Cleaner, allowed, cleaner
from quantlab.runs.recording import Recorder
from quantlab.runs.run_record import FileRef, read_record
from quantlab.runs.store import read_store, whereabouts

CLEAN = Cleaner("/home/alice/work", "/home/alice", ("alice", "gpubox7"))


def test_only_known_variables_with_plain_values_are_recorded():
    kept = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0,1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    names = ("CUDA_API_PASS", "NVIDIA_auth_token", "TORCH_hub_passwd", "NCCL_X_AUTH", "QUANTLAB_RUNS", "HOME")
    assert allowed(kept | dict.fromkeys(names, "1")) == kept
    assert allowed({"CUDA_VISIBLE_DEVICES": "/home/alice", "PYTHONHASHSEED": "a b"}) == {}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/alice/work/m.pt", "m.pt"),
        ("/home/alice/work", "."),
        ("/home/alice/data/m.pt", "~/data/m.pt"),
        ("/scratch/alice/m.pt", "../../../scratch/NAME/m.pt"),
        ("tokens:/home/alice/data/fineweb_val_*.bin", "tokens:~/data/fineweb_val_*.bin"),
        ("--out=/home/alice/work/out", "--out=out"),
        ("cannot read /home/alice/work/a/b.json: no space", "cannot read a/b.json: no space"),
        ("out/m.qlab has 5 bytes/token and/or more", "out/m.qlab has 5 bytes/token and/or more"),
        ("host gpubox7 and gpubox77, Alice", "host NAME and gpubox77, NAME"),
        ("s3://key:pass@bucket/x?X-Amz-Signature=abc", "s3://...@bucket/x?..."),
        ("HF_TOKEN=hf_abcdefghijkl", "HF_TOKEN=..."),
        ("pushed with hf_abcdefghijkl", "pushed with ..."),
        ("tokens=512, tokenizer=x.model, author=me", "tokens=512, tokenizer=x.model, author=me"),
    ],
)
def test_private_words_are_taken_out(text, wanted):
    assert CLEAN.text(text) == wanted and CLEAN.value({"a": [text, 3]}) == {"a": [wanted, 3]}
    assert CLEAN.text(wanted) == wanted


def test_what_follows_an_option_for_secrets_is_hidden():
    command = ["quantlab", "fetch", "--hf-token", "abc", "--tokens", "/home/alice/v.bin", "--tokenizer", "t.model"]
    assert CLEAN.command(command) == ("quantlab", "fetch", "--hf-token", "...", "--tokens", "~/v.bin", "--tokenizer", "t.model")


def test_common_names_are_words(monkeypatch):
    monkeypatch.setattr(private.getpass, "getuser", lambda: "root")
    monkeypatch.setattr(private.socket, "gethostname", lambda: "gpubox7.example.org")
    assert "root" not in cleaner().names and "gpubox7" in cleaner().names


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder `work` of the user alice at the machine gpubox7, with one run of everything that leaks."""
    place = tmp_path / "alice" / "work"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    monkeypatch.setattr(private.getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(private.socket, "gethostname", lambda: "gpubox7")
    report = {"artifact": str(place / "m.qlab"), "checkpoint": "/scratch/alice/m.pt", "kl": 0.5}
    (place / "m.report.json").write_text(json.dumps(report))
    (place / "train.log").write_text(f"reading {place}/x on gpubox7\n")
    (place / "page.html").write_text("<p>alice")
    (place / "m.qlab").write_bytes(b"abc")
    command = ("quantlab", "pack", str(place / "m.pt"), "--set", "api_key=sk-12345678")
    recorder = Recorder(folder=Path("runs"), command=command, environment={**os.environ, "CUDA_API_PASS": "hush"})
    options = {"output": place / "m.qlab", "calib": f"text:{tmp_path}/alice/t"}
    with pytest.raises(ValueError), recorder.run("pack", options) as writer:
        files = [place / "m.report.json", place / "train.log", place / "page.html"]
        writer.result(artifact=place / "m.qlab", metrics={"log": str(place)}, problems=[f"{place}/x is gone"], files=files)
        raise ValueError(f"cannot read {place}/x of alice")
    return place


LEAKS = re.compile(r"alice|gpubox7|hush|sk-1234")


def test_a_record_leaks_nothing_and_still_finds_its_files(recorded):
    (one,) = read_store(recorded / "runs").runs
    text = (one.folder / "run.json").read_text()
    assert not LEAKS.search(text) and not LEAKS.search("".join(one.record.command)) and socket.gethostname() not in text
    assert one.record.directory == "../.." and one.record.artifact is not None
    assert (one.record.artifact.path, whereabouts(one, one.record.artifact)) == ("m.qlab", "unchanged")
    assert one.record.options == {"output": "m.qlab", "calib": "text:~/t"} and one.record.metrics == {"log": "."}
    assert one.record.error == "ValueError: cannot read x of NAME" and one.record.problems == ("x is gone",)


def test_an_export_has_cleaned_copies_and_no_process(recorded, tmp_path, capsys):
    (one,) = read_store(recorded / "runs").runs
    export = ["runs", "export", one.name, "--runs", "runs", "-o"]
    assert run([*export, str(tmp_path / "public")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/public/{one.name}\n"
    place = tmp_path / "public" / one.name
    assert sorted(path.name for path in place.iterdir()) == ["m.report.json", "run.json", "train.log"]
    assert not any(LEAKS.search(path.read_text()) for path in place.iterdir())
    record = read_record(place / "run.json")
    assert (record.command, record.directory, record.process.host) == ((), "", "") and record.artifact == one.record.artifact
    assert json.loads((place / "m.report.json").read_text())["kl"] == 0.5
    (copied,) = read_store(tmp_path / "public").runs
    assert [whereabouts(copied, file)[:6] for file in copied.record.files] == ["copied", "copied", "its fo"]
    assert run([*export, str(tmp_path / "public")]) == 2
    assert run([*export, str(tmp_path / "public"), "--force"]) == 0
    before = (recorded / "runs" / one.name / "run.json").read_bytes()
    assert run([*export, "runs", "--force"]) == 2 and "is the recorded run itself" in capsys.readouterr().err
    assert (recorded / "runs" / one.name / "run.json").read_bytes() == before
    assert run([*export, str(tmp_path / "more"), one.name[-8:]]) == 2
    assert not (tmp_path / "more").exists()


def test_a_copy_that_names_another_folder_is_not_published(tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    file = FileRef(path="x", bytes=2, sha256="0" * 64, copy="../../secret.json")
    (name,) = write(tmp_path / "runs", packed(1, "a", files=(file,)))
    assert run(["runs", "export", name, "-o", str(tmp_path / "public"), "--runs", str(tmp_path / "runs")]) == 0
    assert [path.name for path in (tmp_path / "public" / name).iterdir()] == ["run.json"]


def test_a_machine_is_told_apart_without_its_name():
    host = this_process().host
    assert re.fullmatch("[0-9a-f]{16}", host) and socket.gethostname() not in host
