"""Work in a fresh process: its answer, its progress, its errors, and that it ends with the process that started it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantlab.child_process import run_child
from quantlab.errors import BudgetError, ConfigError, FormatError, QuantlabError

ROOT = Path(__file__).resolve().parents[1]
WORKER = '''
"""Does what its request names."""

import os, signal, sys, time

from quantlab.child_process import serve
from quantlab.errors import BudgetError, ConfigError, ExpansionError, QuantlabError

ERRORS = {
    "config": ConfigError("bits must be 2 to 8, got 9", hint="try 8"),
    "budget": BudgetError("the budget is too small", smallest_bytes=7),
    "expansion": ExpansionError("it expands", least_bytes=7),
}


def work(request, progress):
    task = request["task"]
    if task in ERRORS:
        raise ERRORS[task]
    if task == "steps":
        progress("train", 1, 3, "loss 3")
        progress("a b", 3, 3)
    if task == "print":
        print('{"result": "printed"}')
        os.write(1, b'{"error": {}}\\n')
        print("not json", file=sys.stderr, flush=True)
    if task == "crash":
        print("a warning", file=sys.stderr)
        1 / 0
    if task == "leave":
        print("boom", file=sys.stderr, flush=True)
        os._exit(3)
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "sleep":
        progress(str(os.getpid()), 0, 1)
        time.sleep(60)
    if task == "fail on one" and os.environ["RANK"] == "1":
        raise ConfigError("rank 1 fails")
    if task == "ranks":
        progress("of rank " + os.environ["RANK"], 1, 1)
    if task == "lock":
        return [os.fstat(request["lock"]).st_ino, request]
    return {"rank": os.environ.get("RANK"), "size": os.environ.get("WORLD_SIZE")}


if __name__ == "__main__":
    serve(work)
'''
SPEAKER = """
import json
for step in ("a line for people", [1], 2, {"result": 5}):
    print(json.dumps(step), flush=True)
print("{ not json")
"""
PARENT = """
import sys
from quantlab.child_process import run_child
run_child("worker", {"task": "sleep"}, progress=lambda stage, *rest: print(stage, flush=True))
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Two modules that a child can run, worker and speaker."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "speaker.py").write_text(SPEAKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_child_answers_and_tells_its_progress():
    seen = []
    answer = run_child("worker", {"task": "steps"}, progress=lambda *call: seen.append(call))
    assert answer == {"rank": None, "size": None}
    assert seen == [("train", 1, 3, "loss 3"), ("a b", 3, 3, "")]


def test_of_several_processes_the_first_speaks():
    seen = []
    answer = run_child("worker", {"task": "ranks"}, processes=2, progress=lambda *call: seen.append(call))
    assert answer == {"rank": "0", "size": "2"} and seen == [("of rank 0", 1, 1, "")]


def test_the_error_of_any_of_several_processes_is_raised():
    with pytest.raises(ConfigError, match="^rank 1 fails$"):
        run_child("worker", {"task": "fail on one"}, processes=2)


def test_what_a_child_prints_does_not_disturb_its_answer():
    assert run_child("worker", {"task": "print"}) == {"rank": None, "size": None}


def test_lines_that_are_no_step_are_passed_over():
    assert run_child("speaker", {}) == 5


def test_a_child_holds_the_lock_that_it_is_given(tmp_path):
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    try:
        request = {"task": "lock", "lock": lock}
        assert run_child("worker", request, lock=lock) == [os.fstat(lock).st_ino, request]
    finally:
        os.close(lock)


@pytest.mark.parametrize(
    ("task", "kind", "message", "hint"),
    [
        ("config", ConfigError, "bits must be 2 to 8, got 9", "try 8"),
        ("budget", BudgetError, "the budget is too small", None),
        ("expansion", FormatError, "it expands", None),
    ],
)
def test_an_error_of_a_child_is_raised_with_its_kind_and_hint(task, kind, message, hint):
    with pytest.raises(QuantlabError) as caught:
        run_child("worker", {"task": task})
    assert type(caught.value) is kind and str(caught.value) == message and caught.value.hint == hint


@pytest.mark.parametrize(("task", "code", "answer"), [("steps", 0, "result"), ("config", 2, "error"), ("budget", 3, "error")])
def test_a_child_ends_with_the_exit_code_of_its_error(task, code, answer):
    done = subprocess.run(
        [sys.executable, "-m", "worker", json.dumps({"task": task})],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code and list(json.loads(done.stdout.splitlines()[-1])) == [answer]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("crash", "worker ended with exit code 1: ZeroDivisionError: division by zero"),
        ("leave", "worker ended with exit code 3: boom"),
        ("die", "worker ended with exit code -9: no message"),
    ],
)
def test_a_child_that_dies_without_an_answer_is_an_error_with_its_last_line(task, message):
    with pytest.raises(QuantlabError) as caught:
        run_child("worker", {"task": task})
    assert str(caught.value) == message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for it")
def test_a_child_ends_with_its_killed_parent(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(pid)


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
