"""A kill at any moment: what it leaves is the old file or the new one, and a resumed packing writes the same bytes.

A killed process leaves the files as they are between two of its system calls. So the folder is copied before every call that
changes a name in it, and a packing goes on in a copy; a few real kills show that nothing but these files matters.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fault_samples import NAMES, SMALL, checkpoint, names, packed, whole

from quantlab.jobs.workspace import folder_of

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("FUZZ_SEED", "0"))
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "8"))
"""Number of moments that are tried, besides the last."""
KILLS = int(os.environ.get("FAULT_KILLS", "2"))
"""Number of real kills, each of which takes as long as the command needs to load."""


def moments(folder, monkeypatch, **options):
    """Pack to m.qlab in `folder`; return copies of it at the moments before a file was synced, renamed or removed."""
    copies = folder.with_name(f"{folder.name}-moments")
    copies.mkdir()

    def watched(call):
        def before(*arguments, **named):
            with suppress(shutil.Error):  # another thread renamed a file meanwhile: no moment of one process
                shutil.copytree(folder, copies / str(len(names(copies))))
            return call(*arguments, **named)

        return before

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
            patch.setattr(os, name, watched(getattr(os, name)))
        patch.setattr("quantlab.methods.workers.processors", lambda: 1)
        packed(folder / "m.qlab", **options)
    return sorted(copies.iterdir(), key=lambda copy: int(copy.name))


def old_or_new(folder, old):
    """Return whether an artifact lies in the folder that is the old one, the new one, or none where there was none."""
    path = folder / "m.qlab"
    return path.read_bytes() in (old, whole()) if path.exists() else old is None


@pytest.mark.slow
@pytest.mark.parametrize("is_replaced", [False, True], ids=["new", "replaced"])
def test_a_packing_goes_on_from_whatever_a_kill_left(is_replaced, tmp_path, monkeypatch):
    folder, old = tmp_path / "folder", None
    folder.mkdir()
    if is_replaced:
        old = packed(folder / "m.qlab", budget=40_000)
    found = moments(folder, monkeypatch, force=is_replaced)
    assert len(found) > 60 and all(old_or_new(moment, old) for moment in found)
    last_calls = found[-12:]  # report, artifact, work folder, locks
    for moment in [*random.Random(SEED).sample(found[:-12], ROUNDS), *last_calls[:: max(1, 24 // ROUNDS)]]:
        must_force = (moment / "m.qlab").exists()
        assert packed(moment / "m.qlab", resume=True, force=must_force) == whole(), moment.name
        assert names(moment) == NAMES


@pytest.mark.slow
def test_real_kills_of_one_packing_after_another(tmp_path):
    output, rng = tmp_path / "m.qlab", random.Random(SEED)
    command = [sys.executable, "-m", "quantlab", "pack", str(checkpoint()), "-o", str(output), "--budget", str(SMALL["budget"])]
    command += ["--calib-tokens", "1024", "--calib-seq-len", "32", "--option", "tune_steps=2", "--resume"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    for kill in range(KILLS):
        process = subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL)
        wanted, deadline = len(list(folder_of(output).glob("*"))) + rng.randint(1, 8), time.monotonic() + 120
        while len(list(folder_of(output).glob("*"))) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0), kill
        if output.exists():  # it was faster than this process
            break
        assert {".m.qlab.lock", ".m.qlab.work"} <= names(tmp_path)
    else:
        subprocess.run(command, env=variables, check=True, capture_output=True)
    assert output.read_bytes() == whole() and names(tmp_path) == NAMES
