"""Symmetric matrices of which only the upper triangle is held: sums of x xᵀ over tokens, and the packed form in files.

Legend: N size of the matrix, T tokens.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantlab.errors import QuantlabError, StatisticsError

RECENT_TOKENS = 2048
"""Tokens that are summed in float32, within the products; adding each batch to float64 is a pass over all sums of its own."""
BLOCK = 128
"""Rows of a block. Narrower blocks save more of the work, wider ones run nearer the rate of a full matrix product."""


class GramSum:
    """A sum over tokens of x xᵀ [N, N], float64. Of each block of rows it holds the columns from the block's first row on.

    The latest tokens are summed in float32, in a triangle of their own.
    """

    def __init__(self, size: int, device: torch.device, scratch: Path | None = None) -> None:
        """Begin with zeros.

        Args:
            device: where the sum lives.
            scratch: folder of a file without a name that holds a sum of the CPU, so that the system can page it out.
        Raises:
            QuantlabError: the disk of `scratch` is full.
        """
        shapes = [(min(BLOCK, size - first), size - first) for first in range(0, size, BLOCK)]
        counts = [rows * columns for rows, columns in shapes]
        self.size, self.device, self.scratch = size, device, scratch
        self._flat = mapped_zeros(sum(counts), torch.float64, scratch if device.type == "cpu" else None, device)
        self.blocks = [part.view(shape) for part, shape in zip(torch.split(self._flat, counts), shapes, strict=True)]
        self._recent = mapped_zeros(sum(counts), torch.float32, scratch if device.type == "cpu" else None, device)
        self._recent_blocks = [p.view(shape) for p, shape in zip(torch.split(self._recent, counts), shapes, strict=True)]
        self._recent_tokens = 0

    @classmethod
    def mean(cls, sums: Sequence["GramSum"]) -> "GramSum":
        """Return the mean of sums of one size."""
        first = sums[0]
        mean = cls(first.size, first.device, first.scratch)
        for one in sums:
            mean._flat += one.flat / len(sums)
        return mean

    def add(self, x_TN: Tensor) -> None:
        """Add xᵀ x, x float32 [T, N]: in float32 for about RECENT_TOKENS tokens, then in float64."""
        for n, block in enumerate(self._recent_blocks):
            first = n * BLOCK
            block.addmm_(x_TN[:, first : first + BLOCK].T, x_TN[:, first:])
        self._count(len(x_TN))

    def add_blocks(self, grams: Sequence[Tensor], tokens: int) -> None:
        """Add what `gram_blocks` gave for so many tokens."""
        for block, gram in zip(self._recent_blocks, grams, strict=True):
            block += gram
        self._count(tokens)

    def _count(self, tokens: int) -> None:
        self._recent_tokens += tokens
        if self._recent_tokens >= RECENT_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Add what is in float32 to the sum."""
        if self._recent_tokens:
            self._flat += self._recent
            self._recent.zero_()
            self._recent_tokens = 0

    @property
    def flat(self) -> Tensor:
        """All blocks one after another, float64."""
        self.flush()
        return self._flat

    @property
    def trace(self) -> float:
        """The sum of the diagonal."""
        self.flush()
        return float(sum(block.diagonal().sum() for block in self.blocks))

    def full(self, scale: float) -> Tensor:
        """Return the sum times `scale` as a symmetric matrix float32 [N, N] on the CPU."""
        self.flush()
        full_NN = torch.empty(self.size, self.size)
        for n, block in enumerate(self.blocks):
            part, first = (block * scale).float().cpu(), n * BLOCK
            square = part[:, : len(part)]
            part[:, : len(part)] = square.triu() + square.triu(1).T
            full_NN[first : first + len(part), first:] = part
            full_NN[first:, first : first + len(part)] = part.T
        return full_NN


def gram_blocks(x_TN: Tensor) -> Iterator[Tensor]:
    """Yield the blocks of the upper triangle of xᵀ x, float32 [BLOCK or less, N - first row]; about half the work of xᵀ x."""
    for first in range(0, x_TN.shape[1], BLOCK):
        yield x_TN[:, first : first + BLOCK].T @ x_TN[:, first:]


def gram_ref(x_TN: Tensor) -> Tensor:
    """Return xᵀ x in float64 [N, N]: the reference of `gram_blocks` and `GramSum`."""
    return x_TN.double().T @ x_TN.double()


def pack_triangle(full_NN: Tensor) -> Tensor:
    """Return the upper triangle row by row, [N (N + 1) / 2]."""
    return torch.cat([row[n:] for n, row in enumerate(full_NN)])


def unpack_triangle(packed: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix [N, N] of `pack_triangle`. StatisticsError if `packed` has another length."""
    if size < 0 or packed.shape != (triangle_size(size),):
        raise StatisticsError(f"a triangle of {size} rows has {triangle_size(size)} values, got {list(packed.shape)}")
    values, full_NN = packed.numpy(), np.empty((size, size), np.float32)
    at = 0
    for n in range(size):
        full_NN[n, n:] = values[at : at + size - n]
        at += size - n
    for first in range(0, size, BLOCK):  # blocks, so that both sides of a copy stay in the cache
        last = min(first + BLOCK, size)
        square = np.triu(full_NN[first:last, first:last])
        full_NN[first:last, first:last] = square + np.triu(square, 1).T
        full_NN[last:, first:last] = full_NN[first:last, last:].T
    return torch.from_numpy(full_NN)


def triangle_size(size: int) -> int:
    """Return the number of values in the upper triangle of a matrix with `size` rows."""
    return size * (size + 1) // 2


def mapped_zeros(
    count: int,
    dtype: torch.dtype,
    scratch: Path | None,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Tensor:
    """Return zeros [count] that a nameless file in the folder `scratch` holds, so that the system can page them out.

    Without a folder they are in the memory of `device`.

    Raises:
        QuantlabError: the disk of `scratch` is full.
    """
    if scratch is None or not count:
        return torch.zeros(count, dtype=dtype, device=device)
    size = dtype.itemsize * count
    try:
        with tempfile.NamedTemporaryFile(dir=scratch, prefix=".scratch.") as file:  # the mapping outlives the name
            if hasattr(os, "posix_fallocate"):  # a full disk would otherwise end the process at some later write
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype)
    except OSError as error:
        raise QuantlabError(f"cannot keep {size} bytes of matrices in {scratch}: {error.strerror or error}") from error
