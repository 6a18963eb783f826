"""Token shards of the Parameter Golf challenge: 256 little-endian int32 of header, then uint16 tokens."""

import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import DataError
from quantlab.files import write_whole

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
SIDECAR_MARK = "_bytes_"
"""Files with this in their name hold byte counts in the shard format; the challenge's own glob matches them too."""


def read_shard(path: str | Path) -> NDArray[np.uint16]:
    """Read one token shard.

    Returns:
        uint16 [N], N >= 1.
    Raises:
        DataError: file missing, wrong magic or version, count below 1, or size other than 1024 + 2 N bytes.
    Source: openai/parameter-golf train_gpt.py, load_data_shard.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            count = _token_count(path, file.read(HEADER_BYTES), size)
            tokens = np.fromfile(file, dtype="<u2", count=count)
    except OSError as error:
        raise DataError(f"cannot read token shard {path}: {error.strerror}") from error
    if len(tokens) != count:
        raise DataError(f"token shard {path}: changed while it was read, got {len(tokens):,} of {count:,} tokens")
    return tokens.astype(np.uint16, copy=False)


def write_shard(path: str | Path, tokens: NDArray[np.integer]) -> None:
    """Write one token shard, whole or not at all.

    Args:
        tokens: any integer dtype, [N], N from 1 to 2**31 - 1, ids 0 to 65535.
    Raises:
        DataError: not a vector of integers, empty, too many, or an id that uint16 cannot hold.
        QuantlabError: the file cannot be written.
    """
    path, tokens = Path(path), np.asarray(tokens)
    _check_tokens(path, tokens)
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    write_whole(path, header.tobytes() + tokens.astype("<u2").tobytes())


def read_shards(pattern: str) -> NDArray[np.uint16]:
    """Read every shard that the glob pattern matches, in the order of their names, as one stream.

    The challenge's byte sidecars (`fineweb_val_bytes_000000.bin`) match its token globs; they are left out.

    Returns:
        uint16 [N].
    Raises:
        DataError: no token shard matches, or one is damaged.
    """
    paths = [path for path in sorted(glob.glob(pattern)) if SIDECAR_MARK not in Path(path).name]
    if not paths:
        raise DataError(f"no token shard matches {pattern!r} (files with {SIDECAR_MARK!r} in the name are not tokens)")
    return np.concatenate([read_shard(path) for path in paths])


def _token_count(path: Path, header: bytes, size: int) -> int:
    """Number of tokens, checked against the file size before anything is allocated for them."""
    if len(header) < HEADER_BYTES:
        raise DataError(f"token shard {path}: {size:,} bytes, shorter than its header of {HEADER_BYTES:,}")
    magic, version, count = (int(value) for value in np.frombuffer(header, dtype="<i4", count=3))
    if magic != MAGIC:
        raise DataError(f"token shard {path}: magic {magic}, must be {MAGIC}")
    if version != VERSION:
        raise DataError(f"token shard {path}: version {version}, only {VERSION} is known")
    if count < 1:
        raise DataError(f"token shard {path}: {count} tokens, must be 1 or more")
    expected = HEADER_BYTES + 2 * count
    if size != expected:
        raise DataError(f"token shard {path}: {size:,} bytes, must be {expected:,} for its {count:,} tokens")
    return count


def _check_tokens(path: Path, tokens: NDArray[np.integer]) -> None:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"token shard {path}: tokens must be a vector of integers, got {tokens.dtype} {tokens.shape}")
    if not 1 <= len(tokens) < 2**31:
        raise DataError(f"token shard {path}: {len(tokens):,} tokens, must be 1 to 2**31 - 1")
    for token in (int(tokens.min()), int(tokens.max())):
        if not 0 <= token < 2**16:
            raise DataError(f"token shard {path}: token id {token}, must be 0 to 65535")
