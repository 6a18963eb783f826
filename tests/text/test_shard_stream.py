"""Shards on disk as one vector: equal to the same shards in memory, however it is sliced."""

import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.text.shards import open_shards, read_shards, shard_header, write_shard


def write_shards(folder: Path, lengths: list[int]) -> str:
    """Shards of these lengths; token i of the stream is i + 1. Returns their glob."""
    start = 1
    for number, length in enumerate(lengths):
        write_shard(folder / f"t_{number:06d}.bin", np.arange(start, start + length) % 65536)
        start += length
    return f"{folder}/t_*.bin"


BOUNDS = st.none() | st.integers(0, 40)


@settings(deadline=None, max_examples=60)  # it waits for the disk
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), start=BOUNDS, stop=BOUNDS)
def test_any_slice_is_that_of_the_shards_in_memory(tmp_path_factory, lengths, start, stop):
    pattern = write_shards(tmp_path_factory.mktemp("s"), lengths)
    stream, whole = open_shards(pattern), read_shards(pattern)
    part = stream[start:stop]
    assert part.dtype == np.uint16 == stream.dtype and type(part) is np.ndarray
    assert part.tolist() == whole[start:stop].tolist()
    assert len(stream) == len(whole) and stream.ndim == whole.ndim and stream.max() == whole.max()
    assert [int(token) for token in stream] == whole.tolist()
    assert np.asarray(stream).dtype == np.uint16 and np.array_equal(stream, whole)


def test_a_slice_is_a_copy_that_may_be_written(tmp_path):
    stream = open_shards(write_shards(tmp_path, [5]))
    stream[1:3][:] = 9
    assert stream[0:5].tolist() == [1, 2, 3, 4, 5]
    assert stream[np.int64(4)] == 5


@pytest.mark.parametrize("key", [-1, 9, slice(-2, None), slice(0, -1), slice(0, 4, 2), slice(None, None, -1)])
def test_what_a_stream_does_not_offer_is_an_index_error(tmp_path, key):
    with pytest.raises(IndexError):
        open_shards(write_shards(tmp_path, [4, 5]))[key]


def test_order_sidecars_and_damage_are_those_of_read_shards(tmp_path):
    for name, token in (("val_000001", 3), ("val_000000", 2), ("val_bytes_000000", 9)):
        write_shard(tmp_path / f"{name}.bin", np.array([1, token]))
    stream = open_shards(f"{tmp_path}/val_*.bin")
    assert stream[:].tolist() == [1, 2, 1, 3]
    assert [path.name for path in stream.paths] == ["val_000000.bin", "val_000001.bin"]
    with pytest.raises(DataError, match=r"no token shard matches .*none"):
        open_shards(f"{tmp_path}/none_*.bin")
    (tmp_path / "val_000002.bin").write_bytes(shard_header(3) + b"\1\0\2\0")
    with pytest.raises(DataError, match=r"val_000002\.bin: 1,028 bytes, must be 1,030"):
        open_shards(f"{tmp_path}/val_*.bin")


def test_a_pickle_is_names_and_checks_the_shards_again(tmp_path):
    stream = open_shards(write_shards(tmp_path, [3, 50_000]))
    data = pickle.dumps(stream)
    assert len(data) < 2000
    assert pickle.loads(data)[2:5].tolist() == stream[2:5].tolist() == [3, 4, 5]
    (tmp_path / "t_000001.bin").write_bytes(b"")
    with pytest.raises(DataError, match="t_000001"):
        pickle.loads(data)


def test_a_shard_that_shrinks_after_the_check_is_an_error_and_no_crash(tmp_path):
    stream = open_shards(write_shards(tmp_path, [3, 50]))
    with (tmp_path / "t_000001.bin").open("r+b") as file:
        file.truncate(1034)
    assert stream[0:3].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"t_000001\.bin changed since it was checked: it has 5 of 50 tokens"):
        stream[2:4]
    (tmp_path / "t_000001.bin").unlink()
    with pytest.raises(DataError, match=r"t_000001\.bin changed since it was checked"):
        stream.max()


def test_threads_share_more_shards_than_a_process_may_open_files(tmp_path):
    lengths = [7] * 300
    stream = open_shards(write_shards(tmp_path, lengths))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with ThreadPoolExecutor(8) as pool:
            starts = np.random.default_rng(0).integers(0, len(stream) - 20, 2000)
            parts = list(pool.map(lambda start: stream[int(start) : int(start) + 20], starts))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(part.tolist() == list(range(start + 1, start + 21)) for start, part in zip(starts, parts, strict=True))


def test_a_shard_larger_than_memory_can_be_sliced(tmp_path):
    path = tmp_path / "t_0.bin"
    count = 2**31 - 1
    with path.open("wb") as file:  # a hole, no blocks on the disk
        file.write(shard_header(count))
        file.truncate(1024 + 2 * count)
    stream = open_shards(str(path))
    assert len(stream) == count
    assert stream[count - 3 : count + 9].tolist() == [0, 0, 0]
