"""Cut a stream of tokens into the windows that a model reads, and choose which of its predictions count.

Letters: N tokens in the stream, W windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError, DataError

Mode = Literal["chunked", "sliding", "document"]
"""chunked: sequences do not overlap, as in the challenge's baseline; tokens after the last whole sequence are not scored.
sliding: windows are `stride` apart, and each token, the last included, has seq_len - stride tokens of context or more.
document: windows slide within each document alone; BOS, which nothing of its own document precedes, is read but not scored."""
MODES: tuple[Mode, ...] = get_args(Mode)
DEFAULT_STRIDE = 64
"""Tokens that each window scores, except the first window of a document or of the stream."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows in stream order.

    Window i reads tokens start : start + length, and its predictions of tokens start + 1 + first : start + 1 + length count.
    Each counted token is counted once, which the ledger checks.
    """

    start: NDArray[np.int64]
    """First token that each window reads, [W]."""
    length: NDArray[np.int64]
    """Number of tokens that each window reads, 1 to seq_len, [W]."""
    first: NDArray[np.int64]
    """Number of predictions that an earlier window made with as much context, 0 to length - 1, [W]."""

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, part: slice) -> "Windows":
        return Windows(self.start[part], self.length[part], self.first[part])

    @property
    def scored(self) -> int:
        """Number of predictions that count."""
        return int((self.length - self.first).sum())


def as_mode(text: str) -> Mode:
    """Return the mode of this name. ConfigError if there is none."""
    if text not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {text!r}")
    return text


def stride_of(mode: Mode, seq_len: int, stride: int | None) -> int:
    """Return the number of tokens between windows: seq_len when chunked, else `stride`, or the default for None.

    Raises:
        ConfigError: seq_len or stride is out of range, or a stride is given for mode chunked.
    """
    if seq_len < 1:
        raise ConfigError(f"seq_len must be 1 or more, got {seq_len}")
    if mode == "chunked":
        if stride is not None:
            raise ConfigError(f"stride {stride} needs mode sliding or document: chunked sequences do not overlap")
        return seq_len
    stride = DEFAULT_STRIDE if stride is None else stride
    if not 1 <= stride <= seq_len:
        raise ConfigError(f"stride must be 1 to seq_len {seq_len}, got {stride}")
    return stride


def scored_part(tokens: NDArray[np.integer], mode: Mode, seq_len: int) -> NDArray[np.integer]:
    """Return the part of the stream that windows read: when chunked, without the tokens after the last whole sequence.

    Raises:
        DataError: there are fewer than two tokens, or, when chunked, too few for one whole sequence.
    """
    if mode != "chunked":
        if len(tokens) < 2:
            raise DataError(f"{len(tokens):,} tokens are too few: the first is never a target, so 2 are needed")
        return tokens
    if len(tokens) <= seq_len:
        raise DataError(f"{len(tokens):,} tokens are too few: one sequence of {seq_len:,} needs {seq_len + 1:,}")
    return tokens[: (len(tokens) - 1) // seq_len * seq_len + 1]


def windows_of(stream: NDArray[np.integer], mode: Mode, *, seq_len: int, stride: int, bos_id: int) -> Windows:
    """Return the windows over a stream that `scored_part` returned, in stream order.

    Args:
        stream: token ids, [N].
        stride: tokens between windows, from `stride_of`.
    Raises:
        DataError: in mode document, the stream does not start with BOS or holds nothing else.
    """
    if mode != "document":
        return _sliding(np.array([0]), np.array([len(stream) - 1]), seq_len, stride)
    if stream[0] != bos_id:
        raise DataError(f"mode document needs BOS (id {bos_id}) before each document, but the first token is {int(stream[0])}")
    start = np.flatnonzero(stream == bos_id)
    windows = _sliding(start, np.diff(start, append=len(stream)) - 1, seq_len, stride)
    if len(windows) == 0:
        raise DataError(f"the {len(start):,} documents hold no tokens but BOS, so there is nothing to score")
    return windows


def read_windows(
    stream: NDArray[np.integer], windows: Windows
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return what a model reads in one call, and which of its predictions count.

    Returns:
        ids: int64 [B, T], zeros after short windows.
        positions: places in the stream of the tokens that are scored, [n].
        rows: the flat places among the B * T predictions that predict them, [n].
    """
    column_T = np.arange(windows.length.max())
    position_BT = windows.start[:, None] + column_T
    is_read_BT = column_T < windows.length[:, None]
    ids_BT = np.where(is_read_BT, stream[np.minimum(position_BT, len(stream) - 1)], 0).astype(np.int64)
    is_scored_BT = is_read_BT & (column_T >= windows.first[:, None])
    return ids_BT, position_BT[is_scored_BT] + 1, np.flatnonzero(is_scored_BT)


def batches(windows: Windows, batch_tokens: int) -> list[slice]:
    """Return consecutive slices of windows, each one batch: rows times the longest window is at most batch_tokens.

    A window that is longer than batch_tokens is a batch of its own. The batches do not depend on the number of processes that
    share them, so each prediction is the same for any number.
    """
    return list(_batches(windows.length.tolist(), batch_tokens))


def share_of(parts: list[slice], rank: int, size: int) -> list[slice]:
    """Return the consecutive batches of process `rank` of `size`; all processes have about the same number of windows."""
    end = parts[-1].stop
    low, high = rank * end, (rank + 1) * end  # compared with the middles of batches, both times 2 * size
    return [part for part in parts if 2 * low <= size * (part.start + part.stop) < 2 * high]


def _sliding(start: NDArray[np.int64], targets: NDArray[np.int64], seq_len: int, stride: int) -> Windows:
    """Return windows over spans with these numbers of targets, at 0, stride, ... as long as one reaches beyond the last.

    Window w > 0 of a span is needed while w * stride + seq_len - stride < targets. Source: openai/parameter-golf, record of
    PR 1218; the condition of earlier records scored up to seq_len - stride tokens at the end of the stream again.
    """
    count = np.where(targets > 0, 1 + np.maximum(0, -((seq_len - targets) // stride)), 0)
    which = np.repeat(np.arange(len(start)), count)
    number = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    offset = number * stride
    length = np.minimum(seq_len, targets[which] - offset)
    return Windows(start[which] + offset, length, np.where(number > 0, seq_len - stride, 0))


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[slice]:
    start = longest = 0
    for at, length in enumerate(lengths):
        longest = max(longest, length)
        if at > start and (at + 1 - start) * longest > batch_tokens:
            yield slice(start, at)
            start, longest = at, length
    if lengths:
        yield slice(start, len(lengths))
