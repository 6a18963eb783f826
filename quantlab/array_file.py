"""Arrays that wait in a file until they are needed again: a file is read and written, not mapped.

Mapped files count towards the address space that `ulimit -v` limits, and towards the memory of a control group while they are
in use; arrays in such a file count towards neither.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import QuantlabError

MOST_AT_ONCE = 1 << 26
"""Bytes that one call reads or writes; systems refuse more than 2**31."""


class ArrayFile:
    """A nameless file in a folder; any threads may put arrays into it and read them."""

    def __init__(self, folder: Path) -> None:
        """Open the file. QuantlabError if the folder is missing or not writable."""
        self._folder, self._lock, self._end = folder, Lock(), 0
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=".scratch.", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise QuantlabError(f"cannot keep matrices in {folder}: {error.strerror or error}") from error

    def put(self, array: NDArray[Any]) -> Callable[[], NDArray[Any]]:
        """Write an array, and return a function that reads it. QuantlabError if the disk is full."""
        data, dtype, shape = np.ascontiguousarray(array), array.dtype, array.shape
        with self._lock:
            start, self._end = self._end, self._end + data.nbytes
        try:
            _write(self._file, data, start)
        except OSError as error:
            problem = f"cannot keep {data.nbytes} bytes of matrices in {self._folder}: {error.strerror or error}"
            raise QuantlabError(problem) from error

        def read() -> NDArray[Any]:
            copy = np.empty(shape, dtype)
            read_array(self._file, copy, start)
            return copy

        return read


def read_array(file: IO[bytes], array: NDArray[Any], start: int) -> None:
    """Fill a contiguous array with the bytes of a file from `start` on. EOFError if the file ends before."""
    left = memoryview(array.reshape(-1).view(np.uint8).data)
    while left.nbytes:
        data = os.pread(file.fileno(), min(left.nbytes, MOST_AT_ONCE), start)  # no position: several threads may read at once
        if not data:
            raise EOFError(f"the file ends {left.nbytes} bytes before the array")
        left[: len(data)] = data
        left, start = left[len(data) :], start + len(data)


def _write(file: IO[bytes], array: NDArray[Any], start: int) -> None:
    left = memoryview(array.reshape(-1).view(np.uint8).data)
    while left.nbytes:
        written = os.pwrite(file.fileno(), left[:MOST_AT_ONCE], start)
        left, start = left[written:], start + written
