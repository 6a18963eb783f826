"""A full disk, a folder that cannot be written or too little memory: one line, and the finished work stays."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from fault_samples import NAMES, SMALL, checkpoint, names, packed, unfinished, whole

from quantlab.errors import FormatError, QuantlabError
from quantlab.files import PARTIAL
from quantlab.jobs import packer
from quantlab.jobs.workspace import folder_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _undisturbed():
    """Make what is compared before anything is taken away."""
    whole()


def full_after(patch, count):
    """Let the disk be full from the `count`-th file on that is written."""
    calls, real = [0], os.fsync

    def fsync(descriptor):
        calls[0] += 1
        if calls[0] > count:
            raise OSError(28, "No space left on device")
        real(descriptor)

    patch.setattr(os, "fsync", fsync)
    return calls


def test_a_disk_that_is_full_at_any_file_loses_no_work(tmp_path, monkeypatch):
    """Every attempt may write four files more than the one before; each but the first begins with what was finished."""
    output, kept = tmp_path / "m.qlab", [0]
    while not output.exists():
        with monkeypatch.context() as patch:
            full_after(patch, 4)
            try:
                packed(output, resume=True)
            except QuantlabError as error:
                assert "No space left on device" in str(error) and "--resume" in str(error.hint)
                kept.append(len(names(folder_of(output))))
                assert names(tmp_path) <= {folder_of(output).name, "m.report.json"}  # neither lock nor anything half-written
    assert len(kept) > 5 and all(before < after for before, after in pairwise(kept[:-1]))
    assert output.read_bytes() == whole() and names(tmp_path) == NAMES


@pytest.mark.parametrize("step", ["codes", "artifact", "report", "decoder"])
def test_a_disk_that_is_full_at_one_file_leaves_the_old_outputs(step, tmp_path, monkeypatch):
    output, decoder = tmp_path / "m.qlab", tmp_path / "d.py"
    packed(output, budget=40_000, emit_decoder=decoder)
    old = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    shown = {"codes": ".codes.", "artifact": ".m.qlab.", "report": ".m.report.json.", "decoder": ".d.py."}[step]
    real = os.fsync

    def fsync(descriptor):
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        if shown in name and name.endswith(PARTIAL):
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(QuantlabError, match="No space left on device"):
            packed(output, emit_decoder=decoder)
    assert folder_of(output).is_dir()
    changed = {name for name in old if (tmp_path / name).read_bytes() != old[name]}
    assert "m.qlab" not in changed and names(tmp_path) == {*old, folder_of(output).name}
    with monkeypatch.context() as patch:
        patch.setattr(packer, "measure_statistics", None)  # it would fail: the work was kept
        assert packed(output, emit_decoder=decoder, resume=True) == whole()
    assert names(tmp_path) == {*NAMES, "d.py"}


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), QuantlabError("killed"), FormatError("x")])
def test_errors_of_the_machine_keep_the_work(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(packer, "_verify", fail)
        with pytest.raises((type(error), QuantlabError)):
            packed(tmp_path / "m.qlab")
    assert names(tmp_path) == {".m.qlab.work"}
    monkeypatch.setattr(packer, "measure_statistics", None)
    assert packed(tmp_path / "m.qlab", resume=True) == whole()


def test_the_work_stays_until_the_artifact_has_its_name(tmp_path, monkeypatch):
    def replace(self, target):
        if Path(target).name == "m.qlab":
            assert (folder_of(Path(target)) / "pack.json").is_file() and (tmp_path / "m.report.json").is_file()
            raise KeyboardInterrupt
        os.replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            packed(tmp_path / "m.qlab", force=False)
    assert names(tmp_path) == {".m.qlab.work", "m.report.json"}
    assert packed(tmp_path / "m.qlab", resume=True, force=False) == whole()  # the report does not stand in the way
    assert names(tmp_path) == NAMES


def test_the_orphans_of_a_kill_are_removed_by_the_next_run(tmp_path):
    unfinished(tmp_path / "m.qlab")
    for name in (".m.qlab.1234.trial", ".m.qlab.abcdefgh.partial", ".m.qlab.lock", ".m.report.json.abcdefgh.partial"):
        (tmp_path / name).write_bytes(b"half")
    assert packed(tmp_path / "m.qlab", resume=True) == whole()
    assert names(tmp_path) == NAMES


PACK = ["pack", "--budget", str(SMALL["budget"]), "--calib-tokens", "1024", "--calib-seq-len", "32", "--option", "tune_steps=2"]
IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-eu", "-c"]
CAN_MOUNT = os.path.exists("/usr/bin/unshare") and not subprocess.run([*IN_A_NAMESPACE, "mount -t tmpfs none /mnt"]).returncode
"""Whether a file system can be mounted for one command alone."""


def in_a_namespace(script, *arguments):
    """Run a shell script that may mount; "$@" in it is a command line that packs the small checkpoint."""
    command = [sys.executable, "-m", "quantlab", *PACK, str(checkpoint()), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "QUANTLAB_RUNS": ""}
    done = subprocess.run([*IN_A_NAMESPACE, script, "sh", *command], env=variables, capture_output=True, text=True)
    return done, [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]


@pytest.mark.skipif(not CAN_MOUNT, reason="file systems cannot be mounted here")
def test_a_small_disk_fills_and_is_emptied(tmp_path):
    """On a real file system: the disk has room for some of the files, then for all."""
    output = tmp_path / "disk" / "m.qlab"
    script = f"""
        mkdir {output.parent}; mount -t tmpfs -o size=20m,nr_inodes=40 none {output.parent}
        "$@" && exit 9
        ls -A {output.parent}; ls {folder_of(output)} | wc -l
        mount -o remount,nr_inodes=1000 {output.parent}
        "$@" --resume; ls -A {output.parent}; cp {output} {tmp_path}
    """
    done, said = in_a_namespace(script, "-o", str(output))
    assert done.returncode == 0, done.stderr
    listed = done.stdout.split("\n")
    assert said[0].endswith("No space left on device") and "--resume" in said[1] and len(said) == 2
    assert listed[0] == ".m.qlab.work" and int(listed[1]) > 1
    assert {"m.qlab", "m.report.json"} <= set(listed) and ".m.qlab.work" not in listed[2:]
    assert (tmp_path / "m.qlab").read_bytes() == whole()


@pytest.mark.skipif(not CAN_MOUNT, reason="file systems cannot be mounted here")
def test_a_read_only_folder_is_one_line_before_any_work(tmp_path):
    (tmp_path / "disk").mkdir()
    script = f'mount -t tmpfs -o ro none {tmp_path}/disk; "$@"'
    done, said = in_a_namespace(script, "-o", f"{tmp_path}/disk/m.qlab")
    assert done.returncode == 1 and len(said) == 1
    assert said[0].startswith(f"error: cannot write {tmp_path}/disk/m.qlab: ") and said[0].endswith("Read-only file system")
    assert "calibration" not in done.stderr and "forecast" not in done.stderr
