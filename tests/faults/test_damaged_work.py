"""Files of a work folder that were damaged after a kill: what they held is computed anew, and the artifact is the same."""

import io
import pickle
import shutil

import numpy as np
import pytest
import torch
from fault_samples import NAMES, names, packed, unfinished, whole

from quantlab.jobs.workspace import Workspace, folder_of

KEY = {"checkpoint": "a"}


@pytest.fixture(autouse=True)
def _undisturbed():
    """Make what is compared before anything is taken away."""
    whole()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The folder of a packing with a time limit, which keeps a note too, that was stopped at the last moment."""
    return unfinished(tmp_path_factory.mktemp("work") / "m.qlab", time_limit=1e4)


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 4
    path.write_bytes(data)


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_changes_nothing(work, tmp_path, caplog):
    """In each file in turn; and in all that a packing keeps: statistics, note, codes, tuned tensors, and whose they are."""
    kept = sorted(names(work))
    assert {name.partition("-")[0] for name in kept} >= {"pack.json", "plan", "statistics", "tuned"}
    assert sum(name.endswith(".codes") for name in kept) > 20
    for number, name in enumerate(kept):
        output = tmp_path / str(number) / "m.qlab"
        shutil.copytree(work, folder_of(output))
        flip(folder_of(output) / name, at=number / len(kept))
        caplog.clear()
        assert packed(output, resume=True, time_limit=1e4) == whole(), name
        said = [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
        assert said and said[0].startswith(f"{folder_of(output) / name} is damaged"), name
        assert names(output.parent) == NAMES


def object_array():
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


def other_shape():
    file = io.BytesIO()
    np.save(file, np.zeros((3, 1, 5), np.int8))
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY\x01\x00", object_array(), other_shape(), pickle.dumps([1]), b"{}" * 1000],
    ids=["empty", "truncated", "objects", "other shape", "pickle", "text"],
)
def test_files_that_hold_something_else_change_nothing(data, work, tmp_path):
    output = tmp_path / "m.qlab"
    shutil.copytree(work, folder_of(output))
    for path in folder_of(output).iterdir():
        path.write_bytes(data)
    assert packed(output, resume=True, time_limit=1e4) == whole()
    assert names(tmp_path) == NAMES


def test_the_files_of_two_matrices_cannot_be_exchanged(work, tmp_path):
    output = tmp_path / "m.qlab"
    shutil.copytree(work, folder_of(output))
    first, *others = sorted(folder_of(output).glob("*.codes"))
    second = next(path for path in others if path.stat().st_size == first.stat().st_size)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    assert packed(output, resume=True, time_limit=1e4) == whole()


def codes(value):
    return lambda: np.full((4, 8), value, np.int16)


def tensors(value):
    return lambda: ({"module.gain": torch.full((3,), value)}, {"kl": "1"})


@pytest.fixture
def kept(tmp_path):
    """A work folder with one file of each kind but statistics."""
    workspace = Workspace(tmp_path / "work", KEY, resume=True)
    assert workspace.note("plan", lambda: {"states": 8}) == {"states": 8}
    workspace.codes(b"one", codes(1))
    workspace.codes(b"two", codes(300))
    workspace.tensors("refined-0", tensors(1.0))
    return workspace.folder


def resumed(folder, key=KEY, states=9):
    """Return what a resumed workspace holds: plan, codes, codes, tensor; what it does not know is 9."""
    workspace = Workspace(folder, key, resume=True)
    plan = workspace.note("plan", lambda: {"states": states})["states"]
    one, two = (int(workspace.codes(name, codes(9))[0, 0]) for name in (b"one", b"two"))
    (tensor,) = workspace.tensors("refined-0", tensors(9.0))[0].values()
    return [plan, one, two, int(tensor[0])]


def test_what_is_whole_is_taken_up_under_its_own_name(kept):
    assert resumed(kept) == [8, 1, 300, 1]
    assert list(Workspace(kept, KEY, resume=True).tensors("other", tensors(2.0))[0]) == ["module.gain"]


def test_each_damaged_file_is_computed_anew_and_said(kept, tmp_path, caplog):
    for number, name in enumerate(sorted(names(kept))):
        folder = tmp_path / f"copy{number}"
        shutil.copytree(kept, folder)
        flip(folder / name, at=number / 5)
        caplog.clear()
        found = resumed(folder, states=8)
        assert found.count(9) == (0 if name.endswith(".json") else 1)
        assert [r.getMessage().partition(" is damaged")[0] for r in caplog.records] == [str(folder / name)]
        assert resumed(folder, states=8) == found  # what was computed anew is kept


def test_after_another_plan_nothing_of_the_old_one_is_used(kept):
    flip(next(kept.glob("plan-*.json")))
    assert resumed(kept, states=9) == [9, 9, 9, 9]


def test_the_work_of_other_options_is_not_used_though_its_label_is_lost(kept):
    (kept / "pack.json").unlink()
    assert resumed(kept, key={"checkpoint": "b"}) == [9, 9, 9, 9]


def test_what_was_half_written_is_removed(kept):
    for name in (".refined-0.safetensors.abcdefgh.partial", "statistics.safetensors"):
        (kept / name).write_bytes(b"half")
    before = names(kept)
    Workspace(kept, KEY, resume=True)
    assert before - names(kept) == {".refined-0.safetensors.abcdefgh.partial", "statistics.safetensors"}
