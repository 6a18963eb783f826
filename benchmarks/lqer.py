"""LQER as the challenge's records have it: the largest errors of quantization get a correction of low rank.

After `_lqer_pack_asym` of parameter-golf #1855: the error E = W - Wq of the matrices with the largest norm, its four largest
singular values, A = U S in 2 bits with one scale, B = Vᵀ in 4 bits with a scale for each 64 values. No statistics weigh it.

O: rows, I: columns, R: rank, G: groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RANK = 4
GROUP = 64
"""Values of B, row by row, that share a scale; the last group may have fewer."""
A_RANGE, B_RANGE = (-2, 1), (-8, 7)
"""Codes of 2 and 4 bits; half a step beyond the smaller end stands for the largest value."""
SMALLEST = 1e-10
"""Largest value that a scale is made for, at least: a matrix without an error has a scale too."""


@dataclass(frozen=True, slots=True)
class Correction:
    """One product of two small matrices, as a file holds it."""

    a_OR: NDArray[np.int8]
    a_scale: NDArray[np.float16]
    """One value, [1]."""
    b_RI: NDArray[np.int8]
    b_scale_G: NDArray[np.float16]

    @property
    def product_OI(self) -> Tensor:
        """What is added to the matrix, float32 [O, I]."""
        a_OR = torch.from_numpy(self.a_OR.astype(np.float32) * self.a_scale.astype(np.float32))
        scale = np.repeat(self.b_scale_G.astype(np.float32), GROUP)[: self.b_RI.size].reshape(self.b_RI.shape)
        return a_OR @ torch.from_numpy(self.b_RI.astype(np.float32) * scale)

    def to_bytes(self) -> bytes:
        """Return scales, then codes in a byte each; the compressor behind them finds their few values."""
        return b"".join(part.tobytes() for part in (self.a_scale, self.b_scale_G, self.a_OR, self.b_RI))

    @classmethod
    def from_bytes(cls, raw: bytes, rows: int, columns: int) -> tuple["Correction", int]:
        """Return the correction of a matrix [rows, columns] from the bytes that begin with it, and how many they are."""
        rank = min(RANK, rows, columns)
        groups = -(-rank * columns // GROUP)
        scales = np.frombuffer(raw, np.float16, 1 + groups)
        codes = np.frombuffer(raw, np.int8, rank * (rows + columns), scales.nbytes)
        a_OR, b_RI = codes[: rows * rank].reshape(rows, rank), codes[rows * rank :].reshape(rank, columns)
        return cls(a_OR, scales[:1], b_RI, scales[1:]), scales.nbytes + codes.nbytes


def largest_errors(errors: Mapping[str, Tensor], count: int) -> list[str]:
    """Return the names of the matrices whose errors have the largest Frobenius norms, largest first; at most `count`."""
    return sorted(errors, key=lambda name: (-float(errors[name].norm()), name))[:count]


def correction_of(error_OI: Tensor) -> Correction:
    """Return the correction of an error, float32 [O, I]."""
    u, s, vt = torch.linalg.svd(error_OI, full_matrices=False)
    a_OR, b_RI = (u[:, :RANK] * s[:RANK]).numpy(), vt[:RANK].numpy()
    a_scale = _scales(np.abs(a_OR).max(keepdims=True).reshape(1), A_RANGE)
    groups = np.pad(b_RI.reshape(-1), (0, -b_RI.size % GROUP)).reshape(-1, GROUP)
    b_scale_G = _scales(np.abs(groups).max(1), B_RANGE)
    b_codes = _codes(groups, b_scale_G[:, None], B_RANGE).reshape(-1)[: b_RI.size]
    return Correction(_codes(a_OR, a_scale, A_RANGE), a_scale, b_codes.reshape(b_RI.shape), b_scale_G)


def _scales(largest: NDArray[np.float32], limits: tuple[int, int]) -> NDArray[np.float16]:
    return (np.maximum(largest, SMALLEST) / (limits[1] + 0.5)).astype(np.float16)


def _codes(values: NDArray[np.float32], scale: NDArray[np.float16], limits: tuple[int, int]) -> NDArray[np.int8]:
    step = np.maximum(scale.astype(np.float32), np.finfo(np.float32).tiny)  # a scale may round to zero
    return np.rint(values / step).clip(*limits).astype(np.int8)
