"""Outputs are checked before work begins, are never inputs, and one process at a time writes one."""

import os
import subprocess
import sys

import pytest

from quantlab.errors import ConfigError, QuantlabError
from quantlab.outputs import check_outputs, claimed, is_same_file


def test_existing_outputs_need_force(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="exists") as caught:
        check_outputs([path], force=False)
    assert caught.value.hint is not None and "--force" in caught.value.hint
    check_outputs([path], force=True)
    with pytest.raises(ConfigError, match="folder .* does not exist"):
        check_outputs([tmp_path / "absent" / "a.bin"], force=True)


@pytest.mark.parametrize("name", ["", ".", "/", ".."])
def test_a_path_without_a_name_is_no_output(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="^output .* is (not a file name|a folder, but a file is written)$"):
        check_outputs([type(tmp_path)(name)], force=True)


def test_force_replaces_regular_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "null", "folder"):
        with pytest.raises(ConfigError, match=f"^output .*{name} is a (device, pipe or socket, not a file|folder, but)"):
            check_outputs([tmp_path / name], force=True)


def test_a_link_to_nothing_exists(tmp_path):
    (tmp_path / "link").symlink_to("absent")
    with pytest.raises(ConfigError, match="link exists"):
        check_outputs([tmp_path / "link"], force=False)
    check_outputs([tmp_path / "link"], force=True)


def test_no_output_is_an_input_under_whatever_name(tmp_path, monkeypatch):
    source, folder = tmp_path / "c.pt", tmp_path / "folder"
    source.write_bytes(b"weights")
    folder.symlink_to(tmp_path)
    (tmp_path / "symbolic").symlink_to(source)
    os.link(source, tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    for name in ("c.pt", "symbolic", "hard", "folder/c.pt", "./folder/c.pt", str(source)):
        with pytest.raises(ConfigError, match="is an input of the same command"):
            check_outputs([type(source)(name)], inputs=[source], force=True)
    check_outputs([tmp_path / "other"], inputs=[source], force=True)


def test_no_file_is_two_outputs(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is also another output"):
        check_outputs([tmp_path / "a", tmp_path / "b", tmp_path / "link" / "a"], force=True)
    assert not is_same_file(tmp_path / "a", tmp_path / "b")


def free(path):
    return lambda: check_outputs([path], force=False)


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path):
    path = tmp_path / "m.qlab"
    with claimed([path], free(path)):
        for other in (path, tmp_path / "." / "m.qlab"):
            with pytest.raises(ConfigError, match=r"^another process is writing .*m\.qlab$"), claimed([other], free(other)):
                pytest.fail("two hold one lock")
        with claimed([tmp_path / "n.qlab"], free(tmp_path / "n.qlab")):
            pass
    with claimed([path], free(path)):
        assert os.listdir(tmp_path) == [".m.qlab.lock"]
    assert os.listdir(tmp_path) == []


def test_outputs_are_checked_again_under_the_lock(tmp_path):
    """Another process may finish between the check and the lock."""
    path, calls = tmp_path / "m.qlab", []

    def check():
        check_outputs([path], force=False)
        calls.append(path.write_bytes(b"of another process"))

    with pytest.raises(ConfigError, match="exists"), claimed([path], check):
        pytest.fail("the other's file would be lost")
    assert len(calls) == 1 and os.listdir(tmp_path) == ["m.qlab"]


def test_the_lock_of_a_dead_process_does_not_hold(tmp_path):
    path = tmp_path / "m.qlab"
    program = (
        "import os, pathlib, sys; from quantlab.outputs import claimed\n"
        "with claimed([pathlib.Path(sys.argv[1])], lambda: None): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == 9
    (tmp_path / ".m.qlab.abcdefgh.partial").write_bytes(b"half a file")
    assert (tmp_path / ".m.qlab.lock").exists()
    with claimed([path], free(path)):
        assert os.listdir(tmp_path) == [".m.qlab.lock"]
    assert os.listdir(tmp_path) == []


def test_a_place_where_no_lock_can_be_is_one_line(tmp_path):
    (tmp_path / ".m.qlab.lock").mkdir()
    path = tmp_path / "m.qlab"
    with pytest.raises(QuantlabError, match=r"^cannot write .*m\.qlab: .*lock: Is a directory$"), claimed([path], free(path)):
        pytest.fail("there is no lock")
