"""Arrays in a nameless file: read as they were put, by any threads, outside the address space."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from quantlab import array_file
from quantlab.array_file import ArrayFile
from quantlab.errors import QuantlabError


def test_threads_read_what_they_put(tmp_path, monkeypatch):
    monkeypatch.setattr(array_file, "MOST_AT_ONCE", 100)  # several calls for an array
    file, rng = ArrayFile(tmp_path), np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in (0, 7, (40, 3)) for dtype in (np.float32, np.int16)] * 5
    with ThreadPoolExecutor(4) as pool:
        reads = list(pool.map(file.put, arrays))
        found = list(pool.map(lambda read: read(), reads))
    for array, copy in zip(arrays, found, strict=True):
        assert copy.dtype == array.dtype and np.array_equal(copy, array)
    assert reads[0]() is not reads[0]() and not list(tmp_path.iterdir())
    assert sys.platform != "linux" or str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_view_is_stored_in_its_own_order(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert np.array_equal(ArrayFile(tmp_path).put(array)(), array)


def test_a_full_disk_and_a_missing_folder_are_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    with pytest.raises(QuantlabError, match="cannot keep matrices in .*absent: No such file"):
        ArrayFile(tmp_path / "absent")
    file = ArrayFile(tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(QuantlabError, match=f"cannot keep 40 bytes of matrices in {tmp_path}: No space left on device"):
        file.put(np.zeros(10, np.float32))
