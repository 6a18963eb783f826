"""Triangular factors of a matrix's Kronecker-factored Fisher information: what error feedback on both sides needs.

An error E of W costs ½ tr(G E H Eᵀ) nats per token. With H = (1 + U_H) D_H² (1 + U_H)ᵀ, U_H strictly lower triangular, and the
same for G, the predicted KL of rounding is ½ Σ (d_O[i] · d_I[j] · (target - rounded)[i, j])², where the target of a weight is
the weight plus all errors made so far, carried over by both U (Tseng et al. 2025, arXiv 2505.22988; formula in feedback.py).

Feedback computes most of its sums as matrix products, block by block, and reads both U in panels that are laid out for these.

Legend: O rows (outputs), I columns (inputs), N either of them, B edge of a block, D distance of two places; d_O and d_I are the
diagonals of D_G and D_H.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.array_file import ArrayFile
from quantlab.calib.fisher import Use, column_hessian
from quantlab.errors import StatisticsError
from quantlab.format_rules import PATH_BLOCK

COLUMN_DAMPING = 0.01
ROW_DAMPING = 0.05
"""G is damped more than H: it is estimated from as many vectors, but gradients are far noisier than inputs."""
ROW_FLOOR = 1e-3
"""Without row feedback a row's sensitivity is at least this share of the mean, so rows that the sample hardly saw stay safe."""


@dataclass(frozen=True, slots=True)
class Panels:
    """The triangle Uᵀ [n, n] of one side, strictly upper, in the order in which feedback.py reads it.

    [i, k] for k > i is the share of the error of row or column k in the target of row or column i. The panels are padded with
    zeros to whole blocks of B = PATH_BLOCK.
    """

    n: int
    """Rows or columns of the matrix."""
    far: NDArray[np.float32]
    """One panel for each block of B targets after the other, turned: [places after the block, B]; float32, flat."""
    near_DN: NDArray[np.float32]
    """Shares within a block: [distance k - i, i], 0 where k is in another block; float32 [B, n rounded up]."""

    @classmethod
    def of(cls, triangle_NN: NDArray[np.float32]) -> "Panels":
        """Return the panels of a triangle; what stands on and below the diagonal is not read."""
        n, B = len(triangle_NN), PATH_BLOCK
        size = -(-n // B) * B
        padded = np.zeros((size, size + B), np.float32)
        padded[:n, :n] = triangle_NN
        far = np.zeros(size * (size - B) // 2 if n else 0, np.float32)
        parts = np.split(far, np.cumsum([B * (size - at - B) for at in range(0, size, B)]))
        for at, part in zip(range(0, size, B), parts, strict=False):
            part[:] = padded[at : at + B, at + B : size].T.ravel()
        place, distance = np.arange(size), np.arange(B)[:, None]
        near_DN = np.where((distance > 0) & (place % B + distance < B), padded[place, place + distance], np.float32(0))
        return cls(n, far, near_DN)

    def triangle(self) -> NDArray[np.float32]:
        """Return the triangle float32 [n, n], with zeros on and below the diagonal."""
        B, size = PATH_BLOCK, self.near_DN.shape[1]
        whole, start = np.zeros((size, size), np.float32), 0
        for at in range(0, size, B):
            count = (size - at - B) * B
            whole[at : at + B, at + B :] = self.far[start : start + count].reshape(-1, B).T
            start += count
        distance, place = np.nonzero(self.near_DN)
        whole[place, place + distance] = self.near_DN[distance, place]
        return whole[: self.n, : self.n]


@dataclass(frozen=True, slots=True)
class Factors:
    """Factors of both sides of one matrix."""

    columns: Panels
    """U_Hᵀ: the share of the error of column k in the target of column j."""
    rows: Panels | None
    """U_Gᵀ: the share of the error of row k in the target of row i; None without feedback between rows."""
    d_I: Tensor
    """Square root of each column's sensitivity that is left after feedback, float64 [I]."""
    d_O: Tensor
    """Square root of each row's sensitivity that is left after feedback, float64 [O]."""


def factors(name: str, uses: tuple[Use, ...], *, row_feedback: bool = True) -> Factors:
    """Return the factors of both sides, computed in float64.

    Args:
        name: name of the tensor, for the error.
        uses: every way in which the model uses the matrix; with several, or with a diagonal G, rows get no feedback.
        row_feedback: False leaves out feedback between rows.
    Raises:
        StatisticsError: a side is zero, not finite, or not positive definite after damping.
    """
    if not all(bool(torch.isfinite(use.g_O).all()) and float(use.diagonal_O.mean()) > 0 for use in uses):
        raise StatisticsError(f"tensor {name}: its output gradient is zero or not finite")
    columns, d_I = _factor(name, "Hessian", damped(column_hessian(uses), COLUMN_DAMPING))
    if row_feedback and len(uses) == 1 and uses[0].g_O.ndim == 2:
        G_OO = uses[0].g_O.double()
        shrunk = G_OO * (1 - ROW_DAMPING)
        rows, d_O = _factor(name, "output gradient", damped(shrunk, ROW_DAMPING / (1 - ROW_DAMPING)))
        return Factors(columns, rows, d_I, d_O)
    return Factors(columns, None, d_I, row_sensitivity(uses).sqrt())


def stored(parts: Factors, file: ArrayFile) -> Callable[[], Factors]:
    """Put what is large of some factors into a file, and return a function that reads them. QuantlabError for a full disk."""
    columns, rows = parts.columns, parts.rows
    far_columns, far_rows = file.put(columns.far), None if rows is None else file.put(rows.far)
    empty = np.zeros(0, np.float32)
    rest = replace(parts, columns=replace(columns, far=empty), rows=None if rows is None else replace(rows, far=empty))

    def read() -> Factors:
        whole = replace(rest, columns=replace(rest.columns, far=far_columns()))
        return whole if rest.rows is None or far_rows is None else replace(whole, rows=replace(rest.rows, far=far_rows()))

    return read


def row_sensitivity(uses: tuple[Use, ...]) -> Tensor:
    """Return what an error in each row costs relative to the shared column Hessian, float64 [O]; one use gives its own g.

    Each is at least ROW_FLOOR of the mean.
    """
    traces = [float(u.H_II.double().diagonal().sum() if u.H_II.ndim == 2 else u.H_II.double().sum()) for u in uses]
    total_O = sum((u.diagonal_O * t for u, t in zip(uses, traces, strict=True)), torch.zeros_like(uses[0].diagonal_O))
    rho_O = total_O / float(column_hessian(uses).diagonal().sum())
    return rho_O.clamp_min(ROW_FLOOR * float(rho_O.mean()))


def damped(matrix_NN: Tensor, share: float) -> Tensor:
    """Return the matrix with a share of the mean of its diagonal added to the diagonal."""
    result = matrix_NN.clone()
    result.diagonal().add_(share * float(matrix_NN.diagonal().mean()))
    return result


def _factor(name: str, side: str, matrix: Tensor) -> tuple[Panels, Tensor]:
    """Return Uᵀ and the diagonal d of the lower Cholesky factor (1 + U) diag(d)."""
    if not matrix.diagonal().mean() > 0:
        raise StatisticsError(f"tensor {name}: its {side} is zero or not finite")
    lower, info = torch.linalg.cholesky_ex(matrix)
    if info.item():
        raise StatisticsError(f"tensor {name}: its damped {side} is not positive definite (minor {info.item()})")
    d = lower.diagonal().clone()
    return Panels.of((lower / d).mT.float().numpy()), d
