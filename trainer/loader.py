"""Load the batches of training tokens, and check and fingerprint the tokens.

The tokens of a step are a pure function of (seed, step), so a resumed training sees the same batches as an unbroken one.
"""

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.errors import DataError
from quantlab.trainer.train_config import TrainConfig

FINGERPRINT_TOKENS = 1 << 20
"""Number of tokens that `fingerprint` hashes."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64 [sequences, seq_len]."""


class TokenSource(Protocol):
    """A long vector of uint16 or uint32 token ids, in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> Any: ...


def check_tokens(tokens: Any, config: TrainConfig) -> None:
    """Raise DataError unless `tokens` is uint16 or uint32 [N], N above seq_len, with ids below the vocabulary size."""
    if tokens.dtype not in (np.uint16, np.uint32) or tokens.ndim != 1:
        raise DataError(f"training tokens must be uint16 or uint32 [N], got {tokens.dtype} {list(tokens.shape)}")
    if len(tokens) <= config.seq_len:
        raise DataError(f"training needs more than seq_len = {config.seq_len} tokens, got {len(tokens)}")
    largest = int(tokens.max())
    if largest >= config.model.vocab_size:
        raise DataError(f"training tokens hold id {largest}, the model's vocab_size is {config.model.vocab_size}")


def fingerprint(tokens: Any) -> str:
    """Return the number of tokens and a hash of the first million: enough to notice other data, and quick on a memory map."""
    head = np.ascontiguousarray(tokens[:FINGERPRINT_TOKENS])
    return f"{len(tokens)} tokens, sha256 {hashlib.sha256(head.tobytes()).hexdigest()[:16]}"


class Loader:
    """The batches of one process, which gets a share of consecutive sequences of each global batch."""

    def __init__(
        self,
        tokens: TokenSource,
        *,
        seq_len: int,
        sequences: int,
        order: str = "random",
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
        pin: bool = False,
    ) -> None:
        """Prepare to read `tokens`; nothing is read yet.

        Args:
            sequences: number of sequences in a global batch, a multiple of `size`.
            order: see `TrainConfig.order`.
            rank, size: this process and the number of processes.
            pin: whether batches are put into pinned memory, from which copies to a GPU are fast.
        """
        self.tokens, self.seq_len, self.sequences = tokens, seq_len, sequences
        self.share = slice(rank * sequences // size, (rank + 1) * sequences // size)
        self.offsets = _RULES[order](len(tokens), seq_len, seed)
        self.pin = pin
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        """Return this process' share of a step's batch; the next step's is read in the background."""
        ready = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._pool.submit(self._read, step + 1))
        return ready

    def sample(self, step: int, count: int) -> Tensor:
        """Return at most `count` of the first input sequences of a step's global batch, the same in all processes."""
        return self._sequences(self.offsets(step, self.sequences)[:count])[:, :-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Batch:
        spans = self._sequences(self.offsets(step, self.sequences)[self.share])
        x, y = spans[:, :-1].contiguous(), spans[:, 1:].contiguous()
        return (x.pin_memory(), y.pin_memory()) if self.pin else (x, y)

    def _sequences(self, offsets: NDArray[np.int64]) -> Tensor:
        spans = [self.tokens[int(o) : int(o) + self.seq_len + 1] for o in offsets]
        return torch.from_numpy(np.stack(spans).astype(np.int64))


Offsets = Callable[[int, int], NDArray[np.int64]]
"""Maps a step and a number of sequences to the tokens at which these start."""


def _random(length: int, seq_len: int, seed: int) -> Offsets:
    """Return offsets that are drawn anew for each step."""
    return lambda step, n: np.random.default_rng([seed, step]).integers(0, length - seq_len, size=n)


def _sequential(length: int, seq_len: int, seed: int) -> Offsets:
    """Return offsets from the first token to the last, again and again, as the challenge's baseline reads."""
    whole = (length - 1) // seq_len
    return lambda step, n: seq_len * (np.arange(step * n, (step + 1) * n) % whole)


def _epochs(
    length: int, seq_len: int, seed: int, *, arrange: Callable[[np.random.Generator, int], NDArray[np.int64]]
) -> Offsets:
    """Return offsets with each sequence once an epoch; each epoch cuts the tokens at another phase and rearranges them."""
    per_epoch = max(1, (length - 1) // seq_len - 1)

    @lru_cache(maxsize=2)  # a batch may extend into the next epoch
    def epoch(number: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([seed, number])
        phase = int(rng.integers(0, min(seq_len, max(1, length - per_epoch * seq_len))))
        return phase + seq_len * arrange(rng, per_epoch)

    def offsets(step: int, n: int) -> NDArray[np.int64]:
        places = np.arange(step * n, (step + 1) * n)
        return np.array([epoch(int(at) // per_epoch)[int(at) % per_epoch] for at in places])

    return offsets


def _shuffled(length: int, seq_len: int, seed: int) -> Offsets:
    return _epochs(length, seq_len, seed, arrange=lambda rng, count: rng.permutation(count))


def _stride(length: int, seq_len: int, seed: int) -> Offsets:
    """Return offsets at which sequences of one batch lie far apart: the stride is near the golden section of their number."""

    def arrange(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        stride = max(1, round(0.618 * count))
        while math.gcd(stride, count) > 1:
            stride += 1
        return (int(rng.integers(0, count)) + stride * np.arange(count)) % count

    return _epochs(length, seq_len, seed, arrange=arrange)


_RULES: dict[str, Callable[[int, int, int], Offsets]] = {
    "random": _random,
    "sequential": _sequential,
    "shuffled": _shuffled,
    "stride": _stride,
}
