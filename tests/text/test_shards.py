import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.errors import DataError, QuantlabError
from quantlab.text.shards import read_shard, read_shards, write_shard


def shard_bytes(*, magic: int = 20240520, version: int = 1, count: int = 3, body: bytes = b"\1\0\0\2\xff\xff") -> bytes:
    return struct.pack("<3i", magic, version, count).ljust(1024, b"\0") + body


@given(tokens=st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_a_shard_gives_back_its_tokens_and_has_the_stated_size(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, np.array(tokens, dtype=np.int64))
    result = read_shard(path)
    assert result.dtype == np.uint16
    assert result.tolist() == tokens
    assert path.stat().st_size == 1024 + 2 * len(tokens)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_layout_is_the_challenges_byte_for_byte(tmp_path):
    write_shard(tmp_path / "a.bin", np.array([1, 512, 65535], dtype=np.uint16))
    assert (tmp_path / "a.bin").read_bytes() == shard_bytes()


def test_a_shard_cut_anywhere_or_one_byte_too_long_is_refused(tmp_path):
    path, whole = tmp_path / "cut.bin", shard_bytes()
    for cut in [whole[:size] for size in range(len(whole))] + [whole + b"\0"]:
        path.write_bytes(cut)
        with pytest.raises(DataError, match=r"cut\.bin: [\d,]+ bytes"):
            read_shard(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (shard_bytes(magic=20240521), "magic 20240521, must be 20240520"),
        (shard_bytes(version=2), "1,030 bytes, must be 1,036"),
        (shard_bytes(version=3), "version 3, only 1 and 2"),
        (shard_bytes(count=0, body=b""), "0 tokens, must be 1 or more"),
        (shard_bytes(count=-1), "-1 tokens, must be 1 or more"),
        (shard_bytes(count=2**31 - 1), "1,030 bytes, must be 4,294,968,318"),
    ],
)
def test_a_wrong_header_is_refused_with_the_value_and_what_is_allowed(tmp_path, content, message):
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_shard(tmp_path / "bad.bin")
    assert str(tmp_path / "bad.bin") in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([5, 65536]), "token id 65536"),
        (np.array([-1, 5]), "token id -1"),
        (np.array([], dtype=np.uint16), "0 tokens"),
        (np.array([1.5]), "float64"),
        (np.array([[1, 2]]), r"\[1, 2\]"),
    ],
)
def test_what_a_shard_cannot_hold_is_not_written(tmp_path, tokens, message):
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path / "a.bin", tokens)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_shard(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_shard(tmp_path / "a.bin", np.array([7]))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(QuantlabError, match="No space left"):
        write_shard(tmp_path / "a.bin", np.array([8]))
    assert read_shard(tmp_path / "a.bin").tolist() == [7]
    assert len(list(tmp_path.iterdir())) == 1


def test_many_shards_are_one_stream_in_name_order_without_byte_sidecars(tmp_path: Path):
    for name, token in (("val_000001", 3), ("val_000000", 2), ("val_bytes_000000", 9), ("train_000000", 8)):
        write_shard(tmp_path / f"{name}.bin", np.array([1, token]))
    assert read_shards(f"{tmp_path}/val_*.bin").tolist() == [1, 2, 1, 3]
    for pattern in ("none_*.bin", "val_bytes_*.bin"):
        with pytest.raises(DataError, match=r"no token shard matches .*bin"):
            read_shards(f"{tmp_path}/{pattern}")


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.bin: No such file"):
        read_shard(tmp_path / "nowhere.bin")
