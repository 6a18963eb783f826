"""Token shards of the Parameter Golf challenge: read, streamed from disk, and written.

A shard is a header of 256 little-endian int32 (magic, version, number of tokens, zeros) and then its tokens, little-endian:
uint16 in version 1, which is the challenge's, and uint32 in version 2, for vocabularies above 65,536.
"""

import glob
import operator
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from quantlab.errors import ConfigError, DataError, QuantlabError
from quantlab.files import open_regular, write_whole

MAGIC = 20240520
VERSIONS: dict[int, np.dtype[Any]] = {1: np.dtype("<u2"), 2: np.dtype("<u4")}
"""Types of the tokens on disk, by version."""
HEADER_BYTES = 256 * 4
SIDECAR_MARK = "_bytes_"
"""Files with this in their name hold byte counts in the shard format; the challenge's own globs match them too."""
OPEN_SHARDS = 128
"""Shards that a stream keeps mapped. Each takes a file descriptor, and a process often has only 1,024."""
MAX_SHARDS = 10**6
"""Most shards of one split: their numbers have six digits, and a seventh would sort wrong."""


def read_shard(path: str | Path) -> NDArray[Any]:
    """Return the tokens of one shard.

    Returns:
        uint16 [N] or uint32 [N] by the shard's version, N >= 1.
    Raises:
        DataError: the file is missing, has another magic or version, a count below 1, or a size other than 1024 + 2 N bytes
            (version 1) or 1024 + 4 N (version 2).
    Source: openai/parameter-golf train_gpt.py, load_data_shard.
    """
    path = Path(path)
    count, dtype = read_header(path)
    try:
        tokens = np.fromfile(path, dtype=dtype, count=count, offset=HEADER_BYTES)
    except OSError as error:
        raise DataError(f"cannot read token shard {path}: {error.strerror}") from error
    if len(tokens) != count:
        raise DataError(f"token shard {path} changed while it was read: got {len(tokens):,} of {count:,} tokens")
    return tokens.astype(dtype.newbyteorder("="), copy=False)


def write_shard(path: str | Path, tokens: NDArray[np.integer]) -> None:
    """Write one token shard, whole or not at all.

    Args:
        tokens: uint32 [N] for a shard of version 2; for one of version 1 ids from 0 to 65535 of any other integer dtype, [N].
            N is from 1 to 2**31 - 1.
    Raises:
        DataError: tokens is not a vector of integers, is empty or too long, or has an id that the version cannot hold.
        QuantlabError: the file cannot be written.
    """
    path, tokens = Path(path), np.asarray(tokens)
    _check_tokens(path, tokens)
    version = version_of(tokens.dtype)
    write_whole(path, shard_header(len(tokens), version) + tokens.astype(VERSIONS[version]).tobytes())


def version_of(dtype: np.dtype[Any]) -> int:
    """Return the version of the shards that hold tokens of an integer type: 2 for uint32, 1 for any other."""
    return 2 if dtype == np.uint32 else 1


def shard_header(count: int, version: int = 1) -> bytes:
    """Return the header of a shard of `count` tokens, 1,024 bytes."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, version, count
    return header.tobytes()


def read_header(path: Path) -> tuple[int, np.dtype[Any]]:
    """Return the number of tokens in a shard's header, checked against the file's size, and their type on disk.

    Raises:
        DataError: as for `read_shard`.
    """
    with open_regular(path, DataError, "token shard") as file:
        return _checked_header(path, file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size)


def read_shards(pattern: str) -> NDArray[Any]:
    """Return the tokens of every shard that the glob pattern matches, in the order of their names, as one stream.

    The challenge's byte sidecars (`fineweb_val_bytes_000000.bin`), which match its token globs too, are left out.

    Returns:
        uint16 [N], or uint32 [N] if any shard has version 2.
    Raises:
        DataError: no token shard matches, or one is damaged.
    """
    return np.concatenate([read_shard(path) for path in match_shards(pattern)])


def sidecar_of(shard: Path) -> Path:
    """Return where the byte counts of a shard's tokens are kept: NAME_bytes_000000.bin beside NAME_000000.bin."""
    stem, _, number = shard.stem.rpartition("_")
    return shard.with_name(f"{stem}{SIDECAR_MARK}{number}{shard.suffix}")


def read_sidecars(pattern: str) -> NDArray[np.uint16] | None:
    """Return how many bytes of the original text each token stands for, [N], as the sidecars beside the shards say.

    Returns:
        As many counts as `read_shards` returns tokens; None where no shard has a sidecar.
    Raises:
        DataError: some shards have one and others not, or a sidecar is damaged or has another number of counts than tokens.
    """
    shards = match_shards(pattern)
    missing = [shard for shard in shards if not sidecar_of(shard).exists()]
    if len(missing) == len(shards):
        return None
    if missing:
        raise DataError(f"byte counts {sidecar_of(missing[0])} are missing, other shards of {pattern!r} have theirs")
    parts = []
    for shard in shards:
        counts = read_shard(sidecar_of(shard))
        if counts.dtype != np.uint16 or len(counts) != read_header(shard)[0]:
            what = f"{len(counts):,} of {counts.dtype} for {read_header(shard)[0]:,} tokens"
            raise DataError(f"byte counts {sidecar_of(shard)}: {what}, must be one uint16 a token")
        parts.append(counts)
    return np.concatenate(parts)


def open_shards(pattern: str) -> "ShardStream":
    """Return every shard that the glob pattern matches, in the order of their names, as one stream that stays on disk.

    Headers and sizes are checked here. Byte sidecars are left out, as in `read_shards`.

    Raises:
        DataError: no token shard matches, or one is damaged.
    """
    return ShardStream(match_shards(pattern))


def match_shards(pattern: str) -> list[Path]:
    """Return the token shards that the glob pattern matches, sorted by name, without sidecars. DataError if there are none."""
    paths = [path for path in map(Path, sorted(glob.glob(pattern))) if SIDECAR_MARK not in path.name]
    if not paths:
        raise DataError(f"no token shard matches {pattern!r} (files with {SIDECAR_MARK!r} in the name are not tokens)")
    return paths


class ShardStream:
    """Token shards on disk as one vector, uint16 [N] or, if any has version 2, uint32 [N].

    Only the pages that a slice covers are read.

    Threads may share a stream. A pickle holds only the file names, and unpickling checks the headers again.
    """

    ndim = 1

    def __init__(self, paths: Sequence[Path]) -> None:
        """Check every header, in order. DataError as for `read_shard`."""
        self.paths = tuple(paths)
        headers = [read_header(path) for path in self.paths]
        self._ends = list(accumulate(count for count, _ in headers))
        self._types = [dtype for _, dtype in headers]
        self.dtype: np.dtype[Any] = max(self._types, key=lambda dtype: dtype.itemsize).newbyteorder("=")
        self._map = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        self._max: int | None = None

    def __reduce__(self) -> tuple[type["ShardStream"], tuple[Sequence[Path]]]:
        return ShardStream, (self.paths,)

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, key: slice) -> NDArray[Any]: ...

    @overload
    def __getitem__(self, key: int) -> np.unsignedinteger[Any]: ...

    def __getitem__(self, key: slice | int) -> Any:
        """Return one token, or a copy of a slice, which ends at the stream's end as in numpy.

        Raises:
            IndexError: an index or bound is negative, a step is not 1, or an index is past the end.
            DataError: a shard has changed or gone since it was checked.
        """
        if isinstance(key, slice):
            return self._slice(key)
        index = operator.index(key)
        if not 0 <= index < len(self):
            raise IndexError(f"token {index}, the stream has 0 to {len(self) - 1}")
        return self._slice(slice(index, index + 1))[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all tokens in memory; without this method np.asarray would fetch them one by one."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def max(self) -> int:
        """Return the largest token id; the first call reads every shard."""
        if self._max is None:
            self._max = max(int(self._map(shard).max()) for shard in range(len(self.paths)))
        return self._max

    def _slice(self, key: slice) -> NDArray[Any]:
        start = 0 if key.start is None else operator.index(key.start)
        stop = len(self) if key.stop is None else min(operator.index(key.stop), len(self))
        if start < 0 or stop < 0 or key.step not in (None, 1):
            raise IndexError(f"slice {key.start}:{key.stop}:{key.step} of tokens, bounds must be 0 or more and the step 1")
        parts = []
        while start < stop:
            shard = bisect_right(self._ends, start)
            first = self._ends[shard - 1] if shard else 0
            parts.append(self._map(shard)[start - first : stop - first])
            start = self._ends[shard]
        return np.concatenate(parts, dtype=self.dtype) if parts else np.empty(0, dtype=self.dtype)

    def _open(self, shard: int) -> NDArray[Any]:
        path = self.paths[shard]
        try:
            tokens = np.memmap(path, dtype=self._types[shard], mode="r", offset=HEADER_BYTES)
        except (OSError, ValueError) as error:  # ValueError: the file is shorter than its header by now
            raise DataError(f"token shard {path} changed since it was checked: {error}") from error
        expected = self._ends[shard] - (self._ends[shard - 1] if shard else 0)
        if len(tokens) != expected:
            raise DataError(f"token shard {path} changed since it was checked: it has {len(tokens):,} of {expected:,} tokens")
        return tokens.view(np.ndarray)


class ShardWriter:
    """Cuts a stream of tokens into PREFIX_000000.bin, PREFIX_000001.bin and so on; all but the last are full.

    This is a context manager, and leaving it completes the last shard. A shard gets its header when it is complete, so readers
    refuse what an error left behind.
    """

    def __init__(self, prefix: Path, shard_tokens: int, dtype: DTypeLike = np.uint16) -> None:
        """Write no file yet.

        Args:
            prefix: folder and beginning of the file names.
            shard_tokens: tokens in each full shard, 1 to 2**31 - 1.
            dtype: uint16 for shards of version 1, uint32 for version 2.
        """
        if not 1 <= shard_tokens < 2**31:
            raise ConfigError(f"shard tokens must be 1 to 2**31 - 1, got {shard_tokens:,}")
        self.prefix, self.shard_tokens = prefix, shard_tokens
        self._version = version_of(np.dtype(dtype))
        self.files = 0
        """Number of shards begun so far."""
        self.tokens = 0
        """Number of tokens written so far, in all shards."""
        self._file: BinaryIO | None = None
        self._filled = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file and kind is None:
            self._complete(self._file)
        elif self._file:
            with suppress(OSError):  # a full disk fails again when the buffer is flushed
                self._file.close()

    def write(self, tokens: NDArray[Any]) -> None:
        """Append tokens [N] of the writer's type.

        Raises:
            DataError: they are of another type, whose ids might not fit.
            QuantlabError: the disk is full or the folder is gone.
        """
        dtype = VERSIONS[self._version]
        if not np.can_cast(tokens.dtype, dtype, "safe"):
            raise DataError(f"token shards {self.prefix}: tokens are {tokens.dtype}, these shards hold {dtype}")
        self.tokens += len(tokens)
        while len(tokens):
            file = self._file or self._begin()
            part, tokens = np.split(tokens, [self.shard_tokens - self._filled])
            with self._naming_errors():
                file.write(part.astype(dtype, copy=False).tobytes())
            self._filled += len(part)
            if self._filled == self.shard_tokens:
                self._complete(file)

    def _begin(self) -> BinaryIO:
        if self.files == MAX_SHARDS:
            raise ConfigError(
                f"the tokens need more than {MAX_SHARDS:,} shards of {self.shard_tokens:,}", hint="raise --shard-tokens"
            )
        self.files += 1
        with self._naming_errors():
            self._file = self._path.open("wb")
            self._file.write(bytes(HEADER_BYTES))
        return self._file

    def _complete(self, file: BinaryIO) -> None:
        with self._naming_errors(), file:
            file.seek(0)
            file.write(shard_header(self._filled, self._version))
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


def _checked_header(path: Path, header: bytes, size: int) -> tuple[int, np.dtype[Any]]:
    """Return number and type of the tokens, checked against the file's size before anything is allocated for them."""
    if len(header) < HEADER_BYTES:
        raise DataError(f"token shard {path}: {size:,} bytes, shorter than its header of {HEADER_BYTES:,}")
    magic, version, count = (int(value) for value in np.frombuffer(header, dtype="<i4", count=3))
    if magic != MAGIC:
        raise DataError(f"token shard {path}: magic {magic}, must be {MAGIC}")
    if version not in VERSIONS:
        raise DataError(f"token shard {path}: version {version}, only {' and '.join(map(str, VERSIONS))} are known")
    if count < 1:
        raise DataError(f"token shard {path}: {count} tokens, must be 1 or more")
    dtype = VERSIONS[version]
    expected = HEADER_BYTES + dtype.itemsize * count
    if size != expected:
        raise DataError(f"token shard {path}: {size:,} bytes, must be {expected:,} for its {count:,} tokens")
    return count, dtype


def _check_tokens(path: Path, tokens: NDArray[np.integer]) -> None:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"token shard {path}: tokens must be a vector of integers, got {tokens.dtype} {list(tokens.shape)}")
    if not 1 <= len(tokens) < 2**31:
        raise DataError(f"token shard {path}: {len(tokens):,} tokens, must be 1 to 2**31 - 1")
    limit = 2 ** (8 * VERSIONS[version_of(tokens.dtype)].itemsize)
    for token in (int(tokens.min()), int(tokens.max())):
        if not 0 <= token < limit:
            raise DataError(f"token shard {path}: token id {token}, must be 0 to {limit - 1}")
