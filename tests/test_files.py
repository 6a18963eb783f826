"""Files appear whole or not at all, outputs are checked before work begins, and one process holds a lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantlab.errors import ConfigError, DataError, QuantlabError
from quantlab.files import check_regular, hash_file, hold_lock, read_regular, remove_leftovers, write_whole


def test_write_replaces_the_old_content_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_whole(path, b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QuantlabError, match=r"cannot write .*a\.bin: No space left on device"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(QuantlabError, match="cannot write"):
        write_whole(tmp_path / "absent" / "a.bin", b"")


def test_a_pipe_and_a_folder_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a device, pipe or socket"), ("link", "a device, pipe or socket"), ("folder", "a folder")):
        with pytest.raises(ConfigError, match=f"^output .*{name} is {kind}"):
            write_whole(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    own = [".m.qlab.ab_d3fgh.partial", ".m.qlab.123.trial"]
    foreign = [".m.qlab.settings", ".other.qlab.abcdefgh.partial", "m.qlab.abcdefgh.partial", ".m.qlab.abc.partial", ".m.qlab"]
    for name in own + foreign:
        (tmp_path / name).touch()
    (tmp_path / ".m.qlab.abcdefgh.partial").mkdir()  # a folder is no file that is written
    remove_leftovers(tmp_path / "m.qlab")
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, ".m.qlab.abcdefgh.partial"])


def test_a_writer_that_dies_leaves_a_file_that_is_recognized(tmp_path):
    program = (
        "import os, pathlib, sys; from quantlab.files import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as file: file.write(b'x'); file.flush(); os._exit(9)"
    )
    path = tmp_path / "a[1].bin"
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 9
    assert len(os.listdir(tmp_path)) == 1 and not path.exists()
    remove_leftovers(path)
    assert os.listdir(tmp_path) == []


def test_one_descriptor_at_a_time_holds_the_lock_of_a_file(tmp_path):
    path = tmp_path / "a.lock"
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert hold_lock(first) and not hold_lock(second)
    os.close(first)
    assert hold_lock(second)
    os.close(second)


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "link", DataError, most=3) == b"abc"
    for name, message in (("absent", "No such file"), (".", "Is a directory"), ("pipe", "it is a pipe"), ("zero\0", "null")):
        for read in (read_regular, check_regular):
            with pytest.raises(DataError, match=f"cannot read shard .*{message}"):
                read(tmp_path / name, DataError, "shard")
    with pytest.raises(QuantlabError, match="cannot read /dev/zero: it is a device, a regular file is needed"):
        hash_file(Path("/dev/zero"))
    with pytest.raises(DataError, match="file has 3 bytes, at most 2 are read"):
        read_regular(tmp_path / "file", DataError, most=2)
