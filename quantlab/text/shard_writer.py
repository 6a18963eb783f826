"""Shards of a token stream that is longer than memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError, QuantlabError
from quantlab.text.shards import HEADER_BYTES, shard_header

MAX_SHARDS = 10**6
"""Their numbers have six digits; a seventh would sort wrong."""


class ShardWriter:
    """Cuts a stream of tokens into PREFIX_000000.bin, PREFIX_000001.bin and so on, each full but the last.

    A context manager; leaving it completes the last shard. A shard gets its header when it is complete, so one that an
    error left behind is no token shard to any reader.
    """

    def __init__(self, prefix: Path, shard_tokens: int) -> None:
        """`prefix`: folder and the start of the names. `shard_tokens`: of each shard, 1 to 2**31 - 1."""
        if not 1 <= shard_tokens < 2**31:
            raise ConfigError(f"shard tokens must be 1 to 2**31 - 1, got {shard_tokens:,}")
        self.prefix, self.shard_tokens = prefix, shard_tokens
        self.files = 0
        """Shards begun so far."""
        self.tokens = 0
        """Tokens written so far, in all shards."""
        self._file: BinaryIO | None = None
        self._filled = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file and kind is None:
            self._complete(self._file)
        elif self._file:
            with suppress(OSError):  # a full disk says so again when the buffer is flushed
                self._file.close()

    def write(self, tokens: NDArray[np.uint16]) -> None:
        """Append tokens, uint16 [N]. Raises QuantlabError when the disk is full or the folder gone."""
        self.tokens += len(tokens)
        while len(tokens):
            file = self._file or self._begin()
            part, tokens = np.split(tokens, [self.shard_tokens - self._filled])
            with self._naming_errors():
                file.write(part.astype("<u2", copy=False).tobytes())
            self._filled += len(part)
            if self._filled == self.shard_tokens:
                self._complete(file)

    def _begin(self) -> BinaryIO:
        if self.files == MAX_SHARDS:
            raise ConfigError(f"more than {MAX_SHARDS:,} shards of {self.shard_tokens:,} tokens", hint="raise --shard-tokens")
        self.files += 1
        with self._naming_errors():
            self._file = self._path.open("wb")
            self._file.write(bytes(HEADER_BYTES))
        return self._file

    def _complete(self, file: BinaryIO) -> None:
        with self._naming_errors(), file:
            file.seek(0)
            file.write(shard_header(self._filled))
            file.flush()
            os.fsync(file.fileno())
        self._file, self._filled = None, 0

    @property
    def _path(self) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}_{self.files - 1:06d}.bin")

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise QuantlabError(f"cannot write {self._path}: {error.strerror or error}") from error
