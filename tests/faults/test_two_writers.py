"""Two commands that write one output: one of them works, and the other ends with one line before it has done anything."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_samples import NAMES, SMALL, checkpoint, names, packed, whole

from quantlab.cli.main import run
from quantlab.errors import ConfigError
from quantlab.jobs import packer
from quantlab.jobs.calibrate import calibrate
from quantlab.jobs.unpack import unpack
from quantlab.models.loading import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _undisturbed():
    """Make what is compared before anything is taken away."""
    whole()


def test_what_writes_to_the_output_of_a_running_packing_is_refused(tmp_path, monkeypatch):
    output, real, refused = tmp_path / "m.safetensors", packer.measure_statistics, []
    artifact = tmp_path / "other.qlab"
    packed(artifact)

    def measure(*arguments, **options):
        for other in (
            lambda: packed(output, report=tmp_path / "r.json"),
            lambda: packed(output, resume=True, report=tmp_path / "r.json"),
            lambda: packed(tmp_path / "n.qlab", report=tmp_path / "m.report.json"),
            lambda: unpack(artifact, output, force=True),
            lambda: calibrate(checkpoint(), output=output, force=True),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(packer, "measure_statistics", None)
                with pytest.raises(ConfigError, match="^another process is writing ") as error:
                    other()
            refused.append(Path(str(error.value).rpartition(" ")[2]).name)
        return real(*arguments, **options)

    monkeypatch.setattr(packer, "measure_statistics", measure)
    assert packed(output) == whole()
    assert refused == ["m.safetensors"] * 2 + ["m.report.json"] + ["m.safetensors"] * 2
    assert names(tmp_path) == {"m.safetensors", "m.report.json", "other.qlab", "other.report.json"}


@pytest.mark.slow
def test_of_two_packings_at_once_one_writes(tmp_path):
    command = [sys.executable, "-m", "quantlab", "pack", str(checkpoint()), "-o", str(tmp_path / "m.qlab")]
    command += ["--budget", str(SMALL["budget"]), "--calib-tokens", "1024", "--calib-seq-len", "32"]
    command += ["--option", "tune_steps=2"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / ".m.qlab.lock").exists() and first.poll() is None:
        time.sleep(0.001)
    first_held = first.poll() is None
    second = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    said = [process.communicate()[1] for process in (first, second)]
    assert first_held and sorted([first.returncode, second.returncode]) == [0, 2]
    loser = said[[first.returncode, second.returncode].index(2)]
    errors = [line for line in loser.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].endswith(("m.qlab", "exists")) and "Traceback" not in loser
    assert (tmp_path / "m.qlab").read_bytes() == whole() and names(tmp_path) == NAMES


def copy_of(source, path):
    path.write_bytes(source.read_bytes())
    return path


def refused(capsys, *arguments):
    """Return the error line of a command that is misused."""
    assert run([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    assert out == ""
    return line.removeprefix("error: ")


def test_an_input_is_never_replaced_even_by_force(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quantlab.models.loading.load", None)  # all are refused before any work
    packed(tmp_path / "a.qlab")
    inputs = {name: copy_of(checkpoint(), tmp_path / name) for name in ("c.pt", "code.py", "stats", "token", "text")}
    (tmp_path / "link").symlink_to("c.pt")
    os.link("c.pt", "hard")
    (tmp_path / "c").mkdir()
    copy_of(checkpoint(), tmp_path / "c" / "model.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pack = ("pack", "c.pt", "--budget", "30kB", "--force", "-o")
    for arguments in (
        (*pack, "c.pt"),
        (*pack, "link"),
        (*pack, "hard"),
        (*pack, inputs["c.pt"]),
        (*pack, "code.py", "--code", "code.py"),
        (*pack, "stats", "--stats", "stats"),
        (*pack, "token", "--tokenizer", "token"),
        (*pack, "text", "--calib", "text:text", "--tokenizer", "token"),
        (*pack, "text", "--calib", "tokens:t*t"),
        (*pack, "m.qlab", "--report", "c.pt"),
        (*pack, "m.qlab", "--report", "stats", "--stats", "stats"),
        (*pack, "m.qlab", "--emit-decoder", "c.pt"),
        ("pack", "c", "--budget", "30kB", "--force", "-o", "c/model.safetensors"),
        ("calibrate", "c.pt", "--force", "-o", "c.pt"),
        ("calibrate", "c.pt", "--force", "-o", "text", "--calib", "text:text", "--tokenizer", "token"),
        ("compare", "a.qlab", "--force", "--html", "a.qlab"),
        ("compare", "a.qlab", "--force", "--html", "a.report.json"),
        ("card", "a.qlab", "--force", "-o", "a.report.json"),
    ):
        assert " is an input of the same command" in refused(capsys, *arguments), arguments
    copy_of(tmp_path / "a.qlab", tmp_path / "a.safetensors")
    assert refused(capsys, "unpack", "a.safetensors", "-o", "a.safetensors", "--force").endswith(
        "is an input of the same command"
    )
    assert "is also another output" in refused(capsys, *pack, "m.qlab", "--report", "m.qlab")
    assert "has the name of a run's record" in refused(capsys, *pack, "m.qlab", "--report", "run.json")
    assert {path: path.read_bytes() for path in before} == before
    assert names(tmp_path) == {*(path.name for path in before if path.parent == tmp_path), "c", "a.safetensors"}


def test_a_folder_that_is_read_is_not_replaced_as_a_whole(tmp_path, capsys):
    like, artifact = tmp_path / "like", tmp_path / "like" / "model.safetensors"
    like.mkdir()
    (like / "config.json").write_text("{}")
    packed(tmp_path / "a.qlab")
    copy_of(tmp_path / "a.qlab", artifact)
    for output, source in ((like, tmp_path / "a.qlab"), (tmp_path / "like" / ".." / "like", tmp_path / "a.qlab")):
        line = refused(capsys, "unpack", source, "-o", output, "--like", like, "--force")
        assert line.startswith(f"output {output} is or holds {like}")
    (tmp_path / "other").mkdir()
    line = refused(capsys, "unpack", artifact, "-o", like, "--like", tmp_path / "other", "--force")
    assert line.startswith(f"output {like} is or holds {artifact}")


def test_force_replaces_no_device_pipe_or_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packed(tmp_path / "a.qlab")
    os.mkfifo("pipe.pt")
    os.symlink("/dev/null", "null.pt")
    os.mkdir("folder.pt")
    for name in ("pipe.pt", "null.pt", "folder.pt"):
        for command in (("unpack", "a.qlab"), ("pack", checkpoint(), "--budget", "30kB"), ("calibrate", checkpoint())):
            assert refused(capsys, *command, "-o", name, "--force").startswith(f"output {name} is a ")
        pack = ("pack", checkpoint(), "--budget", "30kB", "-o", "m.qlab", "--force")
        assert refused(capsys, *pack, "--report", name).startswith(f"output {name} is a ")
        assert refused(capsys, *pack, "--emit-decoder", name).startswith(f"output {name} is a ")
    assert Path("pipe.pt").is_fifo() and os.readlink("null.pt") == "/dev/null" and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["", ".", "/", "..", "absent/m.pt"])
def test_an_output_without_a_name_is_one_line(name, tmp_path, capsys, monkeypatch):
    packed(tmp_path / "a.qlab")
    monkeypatch.chdir(tmp_path)
    for command in (("unpack", "a.qlab"), ("pack", checkpoint(), "--budget", "30kB"), ("calibrate", checkpoint())):
        assert refused(capsys, *command, "-o", name).startswith("output ")


def test_a_report_without_its_artifact_does_not_stop_a_resumed_packing(tmp_path):
    (tmp_path / "m.report.json").touch()
    with pytest.raises(ConfigError, match="exists"):
        packed(tmp_path / "m.qlab", force=False)
    (tmp_path / "notes.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.json exists"):  # not left by a packing: there is no work of one
        packed(tmp_path / "m.qlab", force=False, resume=True, report=tmp_path / "notes.json")
    assert packed(tmp_path / "m.qlab", force=False, resume=True) == whole()
    with pytest.raises(ConfigError, match=r"m\.qlab exists"):
        packed(tmp_path / "m.qlab", force=False, resume=True)
    assert load(tmp_path / "m.qlab").name and names(tmp_path) == {*NAMES, "notes.json"}
