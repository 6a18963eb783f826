"""Shards of version 2: the same header, uint32 tokens for vocabularies above 65,536."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.text.shards import ShardWriter, open_shards, read_shard, read_shards, write_shard


@settings(deadline=None, max_examples=60)  # it waits for the disk
@given(tokens=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_a_wide_shard_gives_back_its_tokens_and_has_the_stated_size(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, np.array(tokens, dtype=np.uint32))
    result = read_shard(path)
    assert result.dtype == np.uint32 and result.tolist() == tokens
    assert path.stat().st_size == 1024 + 4 * len(tokens)


def test_layout_of_version_2_byte_for_byte(tmp_path):
    write_shard(tmp_path / "a.bin", np.array([1, 70_000], dtype=np.uint32))
    header = struct.pack("<3i", 20240520, 2, 2).ljust(1024, b"\0")
    assert (tmp_path / "a.bin").read_bytes() == header + struct.pack("<2I", 1, 70_000)


def test_a_wide_shard_cut_anywhere_or_too_long_is_refused(tmp_path):
    path = tmp_path / "cut.bin"
    write_shard(path, np.array([1, 2, 3], dtype=np.uint32))
    whole = path.read_bytes()
    for cut in [whole[:size] for size in range(1020, len(whole))] + [whole + b"\0\0"]:
        path.write_bytes(cut)
        with pytest.raises(DataError, match=r"cut\.bin: [\d,]+ bytes"):
            read_shard(path)


def test_a_stream_of_both_versions_is_uint32(tmp_path):
    write_shard(tmp_path / "t_0.bin", np.array([1, 2]))
    assert open_shards(f"{tmp_path}/t_*.bin").dtype == np.uint16
    write_shard(tmp_path / "t_1.bin", np.array([70_000, 4], dtype=np.uint32))
    stream, whole = open_shards(f"{tmp_path}/t_*.bin"), read_shards(f"{tmp_path}/t_*.bin")
    assert stream.dtype == whole.dtype == np.uint32
    assert stream[:].tolist() == whole.tolist() == [1, 2, 70_000, 4]
    assert stream[0:2].dtype == np.uint32 and stream.max() == 70_000 and stream[2:2].dtype == np.uint32


def test_the_writer_gives_the_shards_that_write_shard_gives(tmp_path):
    tokens = np.arange(69_998, 70_005, dtype=np.uint32)
    with ShardWriter(tmp_path / "t", 4, np.uint32) as writer:
        writer.write(tokens)
    for number in range(2):
        write_shard(tmp_path / "expected", tokens[4 * number : 4 * number + 4])
        assert (tmp_path / f"t_{number:06d}.bin").read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_writer_of_uint16_refuses_wide_tokens(tmp_path):
    with (
        pytest.raises(DataError, match="tokens are uint32, these shards hold uint16"),
        ShardWriter(tmp_path / "t", 4) as writer,
    ):
        writer.write(np.array([70_000], dtype=np.uint32))
    assert list(tmp_path.iterdir()) == []
