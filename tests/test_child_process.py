"""Child processes of a pipeline: their progress, their errors, and that they end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantlab import child_process as child
from quantlab.errors import ConfigError, QuantlabError
from quantlab.progress import silent

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import os, sys
from quantlab.progress import silent
from quantlab import child_process as child
child._follow = lambda stderr, progress: [print(stderr.readline(), end="", flush=True), stderr.read()]
sleeper = "import os, sys, time; print(os.getpid(), file=sys.stderr); time.sleep(60)"
child._run([sys.executable, "-c", sleeper], "x", silent, os.open(sys.argv[1], os.O_RDONLY))
"""


@pytest.fixture
def lock(tmp_path):
    (tmp_path / "lock").write_text("")
    descriptor = os.open(tmp_path / "lock", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_one_process_or_several_give_what_they_print(lock):
    assert child.run_quantlab(["--version"], processes=1, progress=silent, lock=lock).startswith("quantlab 0.")
    assert child.run_quantlab(["--version"], processes=2, progress=silent, lock=lock).count("quantlab 0.") == 2


def test_progress_lines_become_progress(lock):
    seen = []
    lines = "train 1/3 2.0 s  step 1, loss 3\\na warning\\na b 3/3 1.0 s"
    code = f"import sys; print('{lines}', file=sys.stderr); print(4)"
    said = child._run([sys.executable, "-c", code], "train", lambda *call: seen.append(call), lock)
    assert said == "4\n" and seen == [("train", 1, 3, "step 1, loss 3"), ("a b", 3, 3, "")]


def test_an_error_is_the_childs_own_line(lock):
    with pytest.raises(ConfigError, match="eval needs exactly one of --text and --tokens"):
        child.run_quantlab(["eval", "x.qlab", "--no-run"], processes=1, progress=silent, lock=lock)
    with pytest.raises(QuantlabError, match="quantlab pack ended with code 3: boom"):
        child._run([sys.executable, "-c", "import sys; print('boom', file=sys.stderr); sys.exit(3)"], "pack", silent, lock)
    with pytest.raises(QuantlabError, match="quantlab pack ended with code -9: no message"):
        child._run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "pack", silent, lock)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for it")
def test_a_child_ends_with_a_killed_parent(tmp_path):
    (tmp_path / "lock").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, str(tmp_path / "lock")]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
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
