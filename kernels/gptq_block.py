"""The inner loop of GPTQ: round one block of columns, and push the error of each column into the later ones of the block.

Legend: N matrices, O rows (outputs), B columns of the block. Blocks are held transposed, [B, O]: a column is contiguous.
"""

import torch
from torch import Tensor

from quantlab.errors import ConfigError, ShapeError
from quantlab.kernels.fake_quant import round_half_even
from quantlab.kernels.launch import configs, jit, on_kernel, tl

__all__ = ["gptq_block", "gptq_block_ref", "gptq_block_triton"]

LARGEST_BLOCK = 128
"""Largest number of columns in a block: a program of the kernel holds them in registers."""
(_CONFIG,) = configs("gptq_block")


def gptq_block_ref(w_BO: Tensor, steps_BO: Tensor, limit: int, U_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `gptq_block` returns for one matrix; the reference implementation."""
    w_BO = w_BO.clone()
    inverse_BO = torch.where(steps_BO > 0, 1 / steps_BO, 0.0)
    codes_BO, errors_BO = torch.empty_like(w_BO), torch.empty_like(w_BO)
    diagonal = U_BB.diagonal().tolist()
    for j, u_jj in enumerate(diagonal):
        torch.mul(w_BO[j], inverse_BO[j], out=codes_BO[j]).round_().clamp_(-limit, limit)
        torch.addcmul(w_BO[j], codes_BO[j], steps_BO[j], value=-1, out=errors_BO[j]).div_(u_jj)
        w_BO[j + 1 :].addr_(U_BB[j, j + 1 :], errors_BO[j], alpha=-1)
    return codes_BO.to(torch.int8), errors_BO


@jit
def _gptq_block_kernel(  # type: ignore[no-untyped-def]
    p_w, p_steps, p_U, p_codes, p_errors, limit, B, O, BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr
):
    """Round all columns of a block of rows of one matrix, which stays in registers from the first column to the last."""
    o_o = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.program_id(1).to(tl.int64)
    o_b = tl.arange(0, BLOCK_B)
    m_o, m_b = o_o < O, o_b < B
    p_U += n * B * B
    offsets = n * B * O + o_o
    b_w = tl.load(p_w + offsets[None, :] + o_b[:, None] * O, mask=m_b[:, None] & m_o[None, :], other=0.0)
    for j in range(B):
        b_column = tl.sum(tl.where(o_b[:, None] == j, b_w, 0.0), axis=0)
        b_step = tl.load(p_steps + offsets + j * O, mask=m_o, other=0.0)
        b_inverse = tl.where(b_step > 0, tl.div_rn(1.0, tl.where(b_step > 0, b_step, 1.0)), 0.0)
        b_q = round_half_even(b_column * b_inverse)
        b_q = tl.where(b_q > limit, limit, tl.where(b_q < -limit, -limit, b_q))
        b_error = tl.div_rn(b_column - b_q * b_step, tl.load(p_U + j * (B + 1)))
        tl.store(p_codes + offsets + j * O, b_q.to(tl.int8), mask=m_o)
        tl.store(p_errors + offsets + j * O, b_error, mask=m_o)
        b_U = tl.load(p_U + j * B + o_b, mask=m_b, other=0.0)
        b_w -= b_U[:, None] * b_error[None, :]  # columns up to j change too, and are not read again


def gptq_block_triton(w_NBO: Tensor, steps_NBO: Tensor, limit: int, U_NBB: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel of `gptq_block` on a batch of matrices at once."""
    w_NBO, steps_NBO, U_NBB = w_NBO.contiguous(), steps_NBO.contiguous(), U_NBB.contiguous()
    N, B, O = w_NBO.shape
    codes_NBO, errors_NBO = torch.empty_like(w_NBO, dtype=torch.int8), torch.empty_like(w_NBO)
    grid = (-(-O // _CONFIG["BLOCK_O"]), N)
    block = max(16, 1 << (B - 1).bit_length())
    _gptq_block_kernel[grid](w_NBO, steps_NBO, U_NBB, codes_NBO, errors_NBO, limit, B, O, BLOCK_B=block, **_CONFIG)
    return codes_NBO, errors_NBO


def gptq_block(w_BO: Tensor, steps_BO: Tensor, limit: int, U_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scaled errors of one block (Frantar et al. 2022, arXiv 2210.17323, algorithm 1, inner loop).

    On a CPU a matrix has the same bits alone and in a batch. On a GPU sums are rounded in another order: a weight that lies
    within rounding errors of the middle between two codes may get the other code.

    Args:
        w_BO: weights with the feedback of all earlier blocks already added, float32 [B, O], B 1 to 128, or [N, B, O] for N
            matrices; left untouched.
        steps_BO: grid step of each weight, float32, in the shape of w; 0 gives code 0.
        limit: codes lie within ±limit, 1 to 127.
        U_BB: diagonal block of the upper Cholesky factor of the inverse Hessian, float32 [B, B], or [N, B, B].
    Returns:
        Codes int8, and errors float32, (w - code · step) / U_jj, which the caller pushes into later blocks; both in the shape
        of w.
    Raises:
        ShapeError: a shape or dtype that does not fit.
        ConfigError: limit out of range, or tensors on different devices.
    """
    _check(w_BO, steps_BO, limit, U_BB)
    is_batch, is_kernel = w_BO.ndim == 3, on_kernel(w_BO, steps_BO, U_BB)
    if not (is_batch or is_kernel):
        return gptq_block_ref(w_BO, steps_BO, limit, U_BB)
    batch = (w_BO, steps_BO, U_BB) if is_batch else (w_BO[None], steps_BO[None], U_BB[None])
    codes, errors = (gptq_block_triton if is_kernel else _one_by_one)(batch[0], batch[1], limit, batch[2])
    return (codes, errors) if is_batch else (codes[0], errors[0])


def _one_by_one(w_NBO: Tensor, steps_NBO: Tensor, limit: int, U_NBB: Tensor) -> tuple[Tensor, Tensor]:
    codes_NBO, errors_NBO = torch.empty_like(w_NBO, dtype=torch.int8), torch.empty_like(w_NBO)
    for n, U_BB in enumerate(U_NBB):
        codes_NBO[n], errors_NBO[n] = gptq_block_ref(w_NBO[n], steps_NBO[n], limit, U_BB)
    return codes_NBO, errors_NBO


def _check(w_BO: Tensor, steps_BO: Tensor, limit: int, U_BB: Tensor) -> None:
    B = w_BO.shape[-2] if w_BO.ndim in (2, 3) else 0
    if not 1 <= B <= LARGEST_BLOCK or w_BO.dtype != torch.float32:
        raise ShapeError(f"weights must be float32 [B, O] or [N, B, O], B 1 to 128, got {w_BO.dtype} {list(w_BO.shape)}")
    for name, t, shape in (("steps", steps_BO, w_BO.shape), ("U", U_BB, (*w_BO.shape[:-1], B))):
        if t.shape != shape or t.dtype != torch.float32:
            raise ShapeError(f"{name} must be float32 {list(shape)}, got {t.dtype} {list(t.shape)}")
        if t.device != w_BO.device:
            raise ConfigError(f"{name} must be on {w_BO.device} like the weights, got {t.device}")
    if not 1 <= limit <= 127:
        raise ConfigError(f"limit must be 1 to 127, got {limit}")
