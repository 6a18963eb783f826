import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.errors import ConfigError, DataError, QuantlabError
from quantlab.text import shards as shard_writer
from quantlab.text.shards import ShardWriter, read_shard, read_shards, write_shard


@settings(deadline=None, max_examples=60)  # it waits for the disk
@given(pieces=st.lists(st.lists(st.integers(0, 65535), max_size=9), max_size=6), shard_tokens=st.integers(1, 8))
def test_pieces_of_any_size_give_the_shards_that_write_shard_gives(tmp_path_factory, pieces, shard_tokens):
    folder = tmp_path_factory.mktemp("w")
    tokens = np.array([token for piece in pieces for token in piece], dtype=np.uint16)
    with ShardWriter(folder / "t", shard_tokens) as writer:
        for piece in pieces:
            writer.write(np.array(piece, dtype=np.uint16))
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"t_{number:06d}.bin" for number in range(-(-len(tokens) // shard_tokens))]
    assert (writer.files, writer.tokens) == (len(names), len(tokens))
    for number, name in enumerate(names):
        write_shard(folder / "expected", tokens[number * shard_tokens : (number + 1) * shard_tokens])
        assert (folder / name).read_bytes() == (folder / "expected").read_bytes()
    if names:
        assert read_shards(f"{folder}/t_*.bin").tolist() == tokens.tolist()


def test_a_shard_that_was_not_completed_is_no_shard(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "t", 3) as writer:
        writer.write(np.arange(5, dtype=np.uint16))
        raise KeyboardInterrupt
    assert read_shard(tmp_path / "t_000000.bin").tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"t_000001\.bin"):
        read_shard(tmp_path / "t_000001.bin")


def test_a_full_disk_names_the_shard(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(QuantlabError, match=r"cannot write .*t_000000\.bin: No space left"),
        ShardWriter(tmp_path / "t", 3) as w,
    ):
        w.write(np.arange(3, dtype=np.uint16))


def test_limits(tmp_path, monkeypatch):
    for shard_tokens in (0, 2**31):
        with pytest.raises(ConfigError, match=r"must be 1 to 2\*\*31 - 1"):
            ShardWriter(tmp_path / "t", shard_tokens)
    monkeypatch.setattr(shard_writer, "MAX_SHARDS", 2)
    with pytest.raises(ConfigError, match="more than 2 shards"), ShardWriter(tmp_path / "t", 1) as writer:
        writer.write(np.arange(3, dtype=np.uint16))
