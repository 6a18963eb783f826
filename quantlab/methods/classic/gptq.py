"""GPTQ: round column by column, each error pushed into the columns still to come (Frantar et al. 2022, arXiv 2210.17323).

Legend: O rows (outputs), I columns (inputs). H [I, I] is the mean over calibration tokens of x xᵀ of the layer's input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.errors import StatisticsError
from quantlab.format_rules import code_limit
from quantlab.kernels.gptq_block import gptq_block
from quantlab.methods.classic.row_grid import RowGrid

DAMPING = 0.01
"""Fraction of the mean diagonal of H that is added to its diagonal."""
BLOCK = 128
"""Columns that the reference implementation rounds before their errors reach the columns after them."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """The Hessian as GPTQ uses it, computed once for every grid."""

    shares_II: Tensor
    """Uᵀ: transposed upper Cholesky factor of the inverse of the damped H, columns in `order`, float32, contiguous."""
    order: Tensor
    """Columns by decreasing diagonal of H (act-order), int64 [I]."""
    dead: Tensor
    """Columns whose input is always zero, bool [I]: their weights become zero."""


def feedback(name: str, H_II: Tensor, *, damping: float = DAMPING) -> Feedback:
    """Return the factor of the damped Hessian, computed in float64.

    Args:
        name: name of the tensor, for the error.
        H_II: symmetric positive semi-definite, [I, I].
        damping: fraction of mean(diag H) added to diag H.
    Raises:
        StatisticsError: H is zero or not positive definite after damping.
    """
    H_II = H_II.double()
    dead = H_II.diagonal() == 0
    mean = H_II.diagonal().mean()
    if not mean > 0:
        raise StatisticsError(f"tensor {name}: its Hessian is zero or not finite")
    H_II = H_II + torch.diag(torch.where(dead, 1.0, 0.0) + damping * mean)
    order = torch.argsort(H_II.diagonal(), descending=True, stable=True)
    inverse = torch.cholesky_inverse(_cholesky(name, H_II[order][:, order]))
    return Feedback(_cholesky(name, inverse).float().contiguous(), order, dead)


def gptq(w_OI: Tensor, grid: RowGrid, fb: Feedback) -> Tensor:
    """Return the codes int8 [O, I] of float32 weights [O, I] on `grid`, with error feedback along `fb.order`.

    Matrix products take the threads that scipy's BLAS has (methods.workers).
    """
    from quantlab.methods.classic.columns import round_columns  # numba takes a second to load

    w_IO = w_OI.masked_fill(fb.dead, 0.0)[:, fb.order].T.contiguous()
    step_O = grid.steps_OI[:, 0].contiguous()
    codes_IO = round_columns(w_IO.numpy(), step_O.numpy(), code_limit(grid.bits), fb.shares_II.numpy())
    return _in_place_order(torch.from_numpy(codes_IO), fb)


def gptq_ref(w_OI: Tensor, grid: RowGrid, fb: Feedback) -> Tensor:
    """Return what `gptq` returns; the reference implementation in torch.

    A weight within rounding errors of the middle between two codes may get the other code, and those after it others.
    """
    w_IO = w_OI.masked_fill(fb.dead, 0.0)[:, fb.order].T.contiguous()
    codes_IO = torch.empty_like(w_IO, dtype=torch.int8)
    steps_IO = grid.steps_OI.expand_as(w_OI).T.contiguous()
    limit, U_II = code_limit(grid.bits), fb.shares_II.T
    for lo in range(0, len(w_IO), BLOCK):
        hi = min(lo + BLOCK, len(w_IO))
        codes_IO[lo:hi], errors_BO = gptq_block(w_IO[lo:hi], steps_IO[lo:hi], limit, U_II[lo:hi, lo:hi])
        w_IO[hi:].addmm_(U_II[lo:hi, hi:].T, errors_BO, alpha=-1)
    return _in_place_order(codes_IO, fb)


def _in_place_order(codes_IO: Tensor, fb: Feedback) -> Tensor:
    """Return codes int8 [O, I] in the order of the matrix."""
    codes_OI = torch.empty(codes_IO.shape[1], codes_IO.shape[0], dtype=torch.int8)
    codes_OI[:, fb.order] = codes_IO.T
    return codes_OI


def _cholesky(name: str, matrix: Tensor) -> Tensor:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.item():
        raise StatisticsError(f"tensor {name}: its damped Hessian is not positive definite (minor {info.item()})")
    return factor
