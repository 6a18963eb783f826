"""What a model reads to score a stream of tokens, and which of its predictions count.

Letters: N tokens in the stream, W windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError, DataError

Mode = Literal["chunked", "sliding", "document"]
"""chunked: sequences that do not overlap, as the challenge's baseline; what does not fill the last one is not scored.
sliding: windows `stride` apart, each token with seq_len - stride tokens of context or more, the last token included.
document: sliding within each document alone; BOS, which nothing of its own document precedes, is read and not scored."""
MODES: tuple[Mode, ...] = get_args(Mode)
DEFAULT_STRIDE = 64
"""Tokens scored by each window but a document's or the stream's first."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Window i reads tokens start : start + length; its predictions of the tokens start + 1 + first : start + 1 + length count.

    In stream order, and so that each counted token is counted once: the ledger checks that.
    """

    start: NDArray[np.int64]
    """[W]."""
    length: NDArray[np.int64]
    """[W], tokens read, 1 to seq_len."""
    first: NDArray[np.int64]
    """[W], predictions that an earlier window made with as much context, 0 to length - 1."""

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, part: slice) -> "Windows":
        return Windows(self.start[part], self.length[part], self.first[part])

    @property
    def scored(self) -> int:
        """Tokens that count."""
        return int((self.length - self.first).sum())


def as_mode(text: str) -> Mode:
    """The mode of that name. ConfigError for any other."""
    if text not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {text!r}")
    return text


def stride_of(mode: Mode, seq_len: int, stride: int | None) -> int:
    """Tokens between windows: seq_len when chunked, else `stride` or the default. ConfigError for what does not fit."""
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
    """The stream without what no window reads: when chunked, what is left after the last whole sequence.

    Raises:
        DataError: fewer than two tokens, or too few for one whole sequence.
    """
    if mode != "chunked":
        if len(tokens) < 2:
            raise DataError(f"{len(tokens):,} tokens are too few: the first is never a target, so 2 are needed")
        return tokens
    if len(tokens) <= seq_len:
        raise DataError(f"{len(tokens):,} tokens are too few: one sequence of {seq_len:,} needs {seq_len + 1:,}")
    return tokens[: (len(tokens) - 1) // seq_len * seq_len + 1]


def windows_of(stream: NDArray[np.integer], mode: Mode, *, seq_len: int, stride: int, bos_id: int) -> Windows:
    """The windows over a stream that `scored_part` gave, in its order.

    Args:
        stream: ids, [N].
        stride: from `stride_of`.
    Raises:
        DataError: mode document, and the stream does not start with BOS or holds nothing else.
    """
    if mode != "document":
        return _sliding(np.array([0]), np.array([len(stream) - 1]), seq_len, stride)
    if stream[0] != bos_id:
        raise DataError(f"mode document needs BOS (id {bos_id}) before each document, the first token is {int(stream[0])}")
    start = np.flatnonzero(stream == bos_id)
    windows = _sliding(start, np.diff(start, append=len(stream)) - 1, seq_len, stride)
    if len(windows) == 0:
        raise DataError(f"the {len(start):,} documents hold no tokens but BOS")
    return windows


def batches(windows: Windows, batch_tokens: int) -> list[slice]:
    """Runs of windows that fit a batch: rows times the longest is at most batch_tokens, or it is one window.

    They do not depend on how many processes share them, so that each prediction is the same in every case.
    """
    return list(_batches(windows.length.tolist(), batch_tokens))


def share_of(parts: list[slice], rank: int, size: int) -> list[slice]:
    """The batches of one process of `size`: consecutive, about as many windows for each."""
    end = parts[-1].stop
    low, high = rank * end, (rank + 1) * end  # compared with middles of batches, times 2 * size
    return [part for part in parts if 2 * low <= size * (part.start + part.stop) < 2 * high]


def _sliding(start: NDArray[np.int64], targets: NDArray[np.int64], seq_len: int, stride: int) -> Windows:
    """Windows over spans, each with its number of targets: at 0, stride, ... while one reaches beyond the one before.

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
