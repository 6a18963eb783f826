"""Run folders while they are written: whole at every moment, whatever ends the run, and never a reason to fail."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_samples import packing, score

from quantlab.cli.options import recorder_of
from quantlab.errors import BudgetError, ConfigError
from quantlab.runs.origin import is_gone, this_process
from quantlab.runs.recording import MOST_COPIED_BYTES, Recorder, open_mirror
from quantlab.runs.run_record import FileRef, Process, plain, read_record
from quantlab.runs.store import MOST_FILES, read_store, whereabouts

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-pack-[0-9a-f]{8}")


def only(folder):
    """Return the record of the only run in a folder."""
    (run,) = read_store(folder).runs
    return run.record


def test_a_run_says_where_it_comes_from_and_what_it_made(tmp_path):
    (tmp_path / "m.qlab").write_bytes(b"abc")
    (tmp_path / "report.json").write_text("{}")
    environment = {"OMP_NUM_THREADS": "1", "HOME": "/root", "QUANTLAB_TOKEN": "secret"}
    recorder = Recorder(folder=tmp_path / "runs", command=("quantlab", "pack"), environment=environment)
    with recorder.run("pack", {"output": tmp_path / "m.qlab", "widths": (5, 6)}, seeds={"seed": 3}) as run:
        assert run.is_recorded and only(tmp_path / "runs").status == "running"
        run.result(artifact=tmp_path / "m.qlab", packing=packing("x"), files=[tmp_path / "report.json", tmp_path / "absent"])
        run.result(evaluation=score("x", 1.5), metrics={"a": 1}, problems=["too slow"])
        run.result(metrics={"b": float("nan")})
    (folder,) = (tmp_path / "runs").iterdir()
    found = read_record(folder / "run.json")
    assert NAME.fullmatch(folder.name) and folder.name[:8] == found.started[:10].replace("-", "")
    assert (found.status, found.exit_code, found.error) == ("done", 0, "") and found.ended > found.started
    assert found.options == {"output": os.path.relpath(tmp_path / "m.qlab"), "widths": [5, 6]} and found.seeds == {"seed": 3}
    assert found.environment == {"OMP_NUM_THREADS": "1"} and {"quantlab", "torch", "python"} <= found.versions.keys()
    assert found.git is not None and len(found.git.commit) == 40  # the tests run in a checkout
    assert found.artifact is not None and found.artifact.bytes == 3 and found.artifact.sha256.startswith("ba7816bf")
    assert found.metrics == {"a": 1, "b": "nan"} and found.packing == packing("x") and found.evaluations == (score("x", 1.5),)
    assert [f.copy for f in found.files] == ["report.json"] and (folder / "report.json").read_text() == "{}"
    assert found.problems == ("too slow",) and sorted(f.name for f in folder.iterdir()) == ["report.json", "run.json"]


def test_a_large_file_is_named_and_not_copied(tmp_path):
    with (tmp_path / "big.jsonl").open("wb") as file:
        file.truncate(MOST_COPIED_BYTES + 1)
    with Recorder(folder=tmp_path / "runs").run("train", {}) as run:
        run.result(files=[tmp_path / "big.jsonl"])
    (run,) = read_store(tmp_path / "runs").runs
    (file,) = run.record.files
    assert file.copy == "" and file.bytes == MOST_COPIED_BYTES + 1 and whereabouts(run, file) == "unchanged"
    (tmp_path / "big.jsonl").write_bytes(b"")
    assert whereabouts(run, file) == "changed since"
    (tmp_path / "big.jsonl").unlink()
    assert whereabouts(run, file) == "not here"


def test_a_record_may_name_anything_and_is_still_shown_at_once(tmp_path):
    """A device is never read, a folder of many files not walked, a file of another size not hashed."""
    many, few = tmp_path / "many", tmp_path / "few"
    for folder, count in ((many, MOST_FILES + 1), (few, 2)):
        folder.mkdir()
        for n in range(count):
            (folder / f"f{n}").write_bytes(b"ab")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(tmp_path / "pipe")
    with Recorder(folder=tmp_path / "runs").run("train", {}) as run:
        run.result(artifact=few)
    (run,) = read_store(tmp_path / "runs").runs
    artifact = run.record.artifact
    assert artifact is not None and whereabouts(run, artifact) == "unchanged"
    for place, said in (
        ("/dev/zero", "not a file"),
        (tmp_path / "pipe", "not a file"),
        (many, "not a file"),
        (tmp_path / "sparse", "changed since"),
        (tmp_path / "zero\0", "not readable: ValueError: embedded null byte"),
        (tmp_path / "absent", "not here"),
    ):
        assert whereabouts(run, FileRef(path=str(place), bytes=4, sha256=artifact.sha256)) == said
    (few / "f0").write_bytes(b"xy")
    assert whereabouts(run, artifact) == "changed since"


def test_a_record_that_is_a_pipe_is_broken_and_not_waited_for(tmp_path):
    folder = tmp_path / "20260724T101501.000000Z-train-00000001"
    folder.mkdir()
    os.mkfifo(folder / "run.json")
    (line,) = read_store(tmp_path).broken
    assert line.endswith("run.json: it is a pipe, a regular file is needed")


@pytest.mark.parametrize(
    ("error", "status", "line", "code"),
    [
        (BudgetError("budget 10 bytes\nis below 20"), "failed", "budget 10 bytes is below 20", 3),
        (ConfigError("seq_len must be 2 or more, got 1"), "failed", "seq_len must be 2 or more, got 1", 2),
        (ValueError("first\nsecond"), "failed", "ValueError: first", 1),
        (KeyboardInterrupt(), "interrupted", "interrupted", 1),
    ],
)
def test_a_failure_is_recorded_with_its_error_line_and_goes_on(tmp_path, error, status, line, code):
    with pytest.raises(type(error)), Recorder(folder=tmp_path).run("pack", {}) as run:
        run.result(metrics={"steps": 3})
        raise error
    found = only(tmp_path)
    assert (found.status, found.error, found.exit_code, found.metrics) == (status, line, code, {"steps": 3})


def test_names_never_collide_and_sort_by_time(tmp_path):
    names = []
    for _ in range(50):
        with Recorder(folder=tmp_path).run("eval", {}) as run:
            names.append(run.folder.name)
    assert names == sorted(set(names)) and len(list(tmp_path.iterdir())) == 50


WAITS = """
import sys, time
from pathlib import Path
from quantlab.runs.recording import Recorder
with Recorder(folder=Path(sys.argv[1])).run("train", {"steps": 5}) as run:
    run.result(metrics={"steps": 2})
    print("ready", flush=True)
    time.sleep(60)
"""


def test_kill_9_leaves_an_interrupted_run_with_its_results(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WAITS, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert [run.status for run in read_store(tmp_path).runs] == ["running"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = read_store(tmp_path).runs
    assert (run.status, run.record.status, run.record.metrics) == ("interrupted", "running", {"steps": 2})


def test_a_process_is_gone_when_its_pid_is_free_or_another_ones():
    here = this_process()
    assert not is_gone(here) and is_gone(Process(host=here.host, pid=2**22 + 1))
    assert is_gone(Process(host=here.host, pid=2**80))
    assert not is_gone(Process(host="elsewhere", pid=2**22 + 1))
    if here.birth is not None:
        assert is_gone(Process(host=here.host, pid=here.pid, birth=here.birth - 1))


def test_a_folder_that_cannot_be_written_is_an_error_only_where_it_was_asked_for(tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    with Recorder(folder=tmp_path / "file").run("pack", {}) as run:
        run.result(metrics={"a": 1})
        assert not run.is_recorded
    assert "this run is not recorded: cannot write" in caplog.text
    with pytest.raises(ConfigError, match="cannot write"), Recorder(folder=tmp_path / "file", is_required=True).run("pack", {}):
        raise AssertionError("the block must not begin")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_record_that_cannot_be_written_any_more_does_not_fail_the_work(tmp_path, caplog):
    with Recorder(folder=tmp_path / "runs").run("pack", {}) as run:
        assert run.folder is not None
        run.folder.rename(tmp_path / "moved")
        run.result(metrics={"a": 1})
    assert "a result of this run is not recorded" in caplog.text and "the end of this run is not recorded" in caplog.text


def test_without_a_folder_nothing_is_written_or_hashed(tmp_path):
    with Recorder().run("pack", {"a": 1}) as run:
        run.result(artifact=tmp_path / "absent.qlab", files=[tmp_path / "absent.json"])
    assert not run.is_recorded and not list(tmp_path.iterdir())


def test_options_before_variables_before_the_default(monkeypatch):
    assert recorder_of(None, False, None).folder is None  # the tests' own setting: an empty QUANTLAB_RUNS
    assert recorder_of("there", False, None) == Recorder(
        folder=Path("there"), is_required=True, command=recorder_of("there", False, None).command, environment=os.environ
    )
    monkeypatch.setenv("QUANTLAB_RUNS", "elsewhere")
    assert recorder_of(None, False, None).folder == Path("elsewhere") and recorder_of(None, True, None).folder is None
    monkeypatch.setenv("RANK", "1")
    assert recorder_of("there", False, None).folder is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("QUANTLAB_RUNS")
    default = recorder_of(None, False, None)
    assert default.folder == Path("runs") and not default.is_required
    with pytest.raises(ConfigError, match="--no-run turns recording off, --runs there asks for it"):
        recorder_of("there", True, None)
    with pytest.raises(ConfigError, match="--mirror trackio sends what a recorded run says"):
        recorder_of(None, True, "trackio")


FAKE = """
calls = []
def init(**options): calls.append(("init", options))
def log(values): calls.append(("log", values))
def finish(): calls.append(("finish",))
"""


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_a_mirror_gets_config_and_results_at_the_end(tmp_path, tracker, monkeypatch):
    (tmp_path / f"{tracker}.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, tracker, raising=False)
    recorder = Recorder(folder=tmp_path / "runs", mirror=open_mirror(f"{tracker}:lab"))
    with recorder.run("pack", {"method": "trellis"}) as run:
        run.result(packing=packing("x", 800, code=50), evaluation=score("x", 1.25), metrics={"weights": "packed"})
    (_, options), (_, values), end = sys.modules[tracker].calls
    assert (options["project"], options["name"]) == ("lab", run.folder.name) and end == ("finish",)
    assert options["config"]["options"] == {"method": "trellis"} and options["config"]["status"] == "done"
    assert values["val_bpb"] == 1.25 and values["total_bytes"] == 850 and "weights" not in values
    json.dumps(options["config"])


def test_a_mirror_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "wandb.py").write_text("def init(**options): raise OSError('no network')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with Recorder(folder=tmp_path / "runs", mirror=open_mirror("wandb")).run("pack", {}):
        pass
    assert only(tmp_path / "runs").status == "done" and "mirror wandb failed: OSError: no network" in caplog.text


def test_a_mirror_that_is_unknown_or_not_installed_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="mirror wandb: the package wandb is not installed"):
        recorder_of("there", False, "wandb")
    with pytest.raises(ConfigError, match="mirror must be one of trackio, wandb, got 'mlflow'"):
        recorder_of("there", False, "mlflow")
    monkeypatch.setenv("QUANTLAB_MIRROR", "trackio")
    with pytest.raises(ConfigError, match="package trackio"):
        recorder_of("there", False, None)
    assert recorder_of(None, True, None).mirror is None  # the variable alone asks for nothing where runs are off


def test_everything_becomes_json():
    value = {"path": Path("a"), 3: (1, 2.5, float("inf")), "set": {"b", "a"}, "none": None, "process": Process(host="h", pid=1)}
    expected = {"path": "a", "3": [1, 2.5, "inf"], "set": ["a", "b"], "none": None}
    assert plain(value) == expected | {"process": {"host": "h", "pid": 1, "birth": None}}
