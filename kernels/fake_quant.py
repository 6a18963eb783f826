"""Weights in the forward pass as they will be after packing: the nearest points of a grid with row and column scales.

Legend: O rows (outputs), I columns (inputs), P blocks of the backward kernel along the other side.
"""

import math
from typing import Any

import torch
from torch import Tensor

from quantlab.errors import ConfigError, ShapeError
from quantlab.kernels.launch import configs, jit, on_kernel, tl

__all__ = ["fake_quant", "fake_quant_grad_ref", "fake_quant_grad_triton", "fake_quant_ref", "fake_quant_triton"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
(_FORWARD,), (_BACKWARD,) = configs("fake_quant"), configs("fake_quant_grad")


def fake_quant_ref(w_OI: Tensor, row_scale_O: Tensor, column_scale_I: Tensor, limit: int | None = None) -> Tensor:
    """Return what `fake_quant` returns, without a gradient; the reference implementation, in the dtype of the scales."""
    step_OI, v_OI = _in_steps(w_OI, row_scale_O, column_scale_I)
    reach = math.inf if limit is None else limit
    return (v_OI.round().clamp(-reach, reach) * step_OI).to(w_OI.dtype)


def fake_quant_grad_ref(
    grad_OI: Tensor, w_OI: Tensor, row_scale_O: Tensor, column_scale_I: Tensor, limit: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of weights, row scales and column scales, given that of the result (see `fake_quant`)."""
    step_OI, v_OI = _in_steps(w_OI, row_scale_O, column_scale_I)
    reach = math.inf if limit is None else limit
    is_inside_OI = v_OI.abs() < reach
    slope_OI = torch.where(is_inside_OI, v_OI.round() - v_OI, v_OI.sign() * reach)
    grad_step_OI = torch.where(step_OI > 0, slope_OI * grad_OI, 0.0)
    grad_row_O, grad_column_I = (grad_step_OI * column_scale_I).sum(1), (grad_step_OI * row_scale_O[:, None]).sum(0)
    return torch.where(is_inside_OI, grad_OI, 0.0), grad_row_O, grad_column_I


def _in_steps(w_OI: Tensor, row_scale_O: Tensor, column_scale_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return steps, and weights in units of steps; 0 where the step is not positive."""
    step_OI = row_scale_O[:, None] * column_scale_I
    return step_OI, torch.where(step_OI > 0, w_OI.to(step_OI.dtype) / step_OI, 0.0)


@jit
def round_half_even(v):  # type: ignore[no-untyped-def]
    """Round float32 as torch.round does, compiled and interpreted.

    Above 2**23 every float32 is a whole number; below, adding 2**23 rounds to one.
    """
    magnitude = tl.abs(v)
    rounded = (magnitude + 8388608.0) - 8388608.0
    return tl.where(magnitude < 8388608.0, tl.where(v < 0, -rounded, rounded), v)


@jit
def _fake_quant_kernel(  # type: ignore[no-untyped-def]
    p_w, p_row, p_column, p_out, O, I, LIMIT: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr
):
    """Round one block of weights; LIMIT 0 is no limit."""
    o_o = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_i = tl.program_id(1).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    m_o, m_i = o_o < O, o_i < I
    offsets, mask = o_o[:, None] * I + o_i[None, :], m_o[:, None] & m_i[None, :]
    b_row = tl.load(p_row + o_o, mask=m_o, other=0.0)
    b_column = tl.load(p_column + o_i, mask=m_i, other=0.0)
    b_w = tl.load(p_w + offsets, mask=mask, other=0.0).to(tl.float32)
    b_step = b_row[:, None] * b_column[None, :]
    # div_rn: a plain / is off by 2 units in the last place once compiled, which moves weights that are near a tie
    b_v = tl.where(b_step > 0, tl.div_rn(b_w, tl.where(b_step > 0, b_step, 1.0)), 0.0)
    b_q = round_half_even(b_v)
    if LIMIT > 0:  # by comparison, as tl.clamp may turn NaN into a limit
        b_q = tl.where(b_q > LIMIT, LIMIT, tl.where(b_q < -LIMIT, -LIMIT, b_q))
    tl.store(p_out + offsets, (b_q * b_step).to(p_out.dtype.element_ty), mask=mask)


@jit
def _fake_quant_grad_kernel(  # type: ignore[no-untyped-def]
    p_grad,
    p_w,
    p_row,
    p_column,
    p_grad_w,
    p_grad_row,
    p_grad_column,
    O,
    I,
    LIMIT: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Compute one block of gradients, and its part of each row's and column's sum: a cell of [P, O] and of [P, I]."""
    at_o, at_i = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_o, o_i = at_o * BLOCK_O + tl.arange(0, BLOCK_O), at_i * BLOCK_I + tl.arange(0, BLOCK_I)
    m_o, m_i = o_o < O, o_i < I
    offsets, mask = o_o[:, None] * I + o_i[None, :], m_o[:, None] & m_i[None, :]
    b_row = tl.load(p_row + o_o, mask=m_o, other=0.0)
    b_column = tl.load(p_column + o_i, mask=m_i, other=0.0)
    b_w = tl.load(p_w + offsets, mask=mask, other=0.0).to(tl.float32)
    b_grad = tl.load(p_grad + offsets, mask=mask, other=0.0).to(tl.float32)
    b_step = b_row[:, None] * b_column[None, :]
    b_v = tl.where(b_step > 0, tl.div_rn(b_w, tl.where(b_step > 0, b_step, 1.0)), 0.0)
    b_slope = round_half_even(b_v) - b_v
    b_grad_w = b_grad
    if LIMIT > 0:
        b_slope = tl.where(b_v >= LIMIT, LIMIT, tl.where(b_v <= -LIMIT, -LIMIT, b_slope))
        b_grad_w = tl.where(tl.abs(b_v) < LIMIT, b_grad, 0.0)
    tl.store(p_grad_w + offsets, b_grad_w.to(p_grad_w.dtype.element_ty), mask=mask)
    if HAS_SCALES:
        b_grad_step = tl.where(b_step > 0, b_slope * b_grad, 0.0)
        tl.store(p_grad_row + at_i * O + o_o, tl.sum(b_grad_step * b_column[None, :], axis=1), mask=m_o)
        tl.store(p_grad_column + at_o * I + o_i, tl.sum(b_grad_step * b_row[:, None], axis=0), mask=m_i)


def fake_quant_triton(w_OI: Tensor, row_scale_O: Tensor, column_scale_I: Tensor, limit: int | None = None) -> Tensor:
    """Run the forward kernel: it reads the weights once and writes once."""
    w_OI = w_OI.contiguous()
    O, I = w_OI.shape
    out_OI = torch.empty_like(w_OI)
    grid = _blocks(O, I, _FORWARD)
    _fake_quant_kernel[grid](
        w_OI, row_scale_O.contiguous(), column_scale_I.contiguous(), out_OI, O, I, LIMIT=limit or 0, **_FORWARD
    )
    return out_OI


def fake_quant_grad_triton(
    grad_OI: Tensor,
    w_OI: Tensor,
    row_scale_O: Tensor,
    column_scale_I: Tensor,
    limit: int | None = None,
    *,
    has_scales: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward kernel (see `fake_quant_grad_ref`): it reads gradient and weights once; sums have a fixed order.

    Without `has_scales` the gradients of the scales are not computed: they are all 0.
    """
    grad_OI, w_OI = grad_OI.contiguous(), w_OI.contiguous()
    O, I = w_OI.shape
    grid = _blocks(O, I, _BACKWARD)
    grad_w_OI = torch.empty_like(w_OI)
    grad_row_PO = w_OI.new_empty((grid[1] if has_scales else 0, O), dtype=torch.float32)
    grad_column_PI = w_OI.new_empty((grid[0] if has_scales else 0, I), dtype=torch.float32)
    _fake_quant_grad_kernel[grid](
        grad_OI,
        w_OI,
        row_scale_O.contiguous(),
        column_scale_I.contiguous(),
        grad_w_OI,
        grad_row_PO,
        grad_column_PI,
        O,
        I,
        LIMIT=limit or 0,
        HAS_SCALES=has_scales,
        **_BACKWARD,
    )
    return grad_w_OI, grad_row_PO.sum(0), grad_column_PI.sum(0)


class FakeQuant(torch.autograd.Function):
    """`fake_quant` with its gradient, by the kernels or by the reference implementations."""

    @staticmethod
    def forward(
        ctx: Any, w_OI: Tensor, row_scale_O: Tensor, column_scale_I: Tensor, limit: int | None, is_kernel: bool
    ) -> Tensor:
        ctx.limit, ctx.is_kernel = limit, is_kernel
        ctx.save_for_backward(w_OI, row_scale_O, column_scale_I)
        return (fake_quant_triton if is_kernel else fake_quant_ref)(w_OI, row_scale_O, column_scale_I, limit)

    @staticmethod
    def backward(ctx: Any, grad_OI: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _, has_rows, has_columns = ctx.needs_input_grad[:3]
        if ctx.limit is None and not (has_rows or has_columns):
            return grad_OI, None, None, None, None
        saved = ctx.saved_tensors
        if ctx.is_kernel:
            has_scales = has_rows or has_columns
            grads = fake_quant_grad_triton(grad_OI, saved[0], saved[1], saved[2], ctx.limit, has_scales=has_scales)
        else:
            grads = fake_quant_grad_ref(grad_OI, saved[0], saved[1], saved[2], ctx.limit)
        return grads[0], grads[1] if has_rows else None, grads[2] if has_columns else None, None, None


def _blocks(O: int, I: int, config: dict[str, int]) -> tuple[int, int]:
    return -(-O // config["BLOCK_O"]), -(-I // config["BLOCK_I"])


def fake_quant(w_OI: Tensor, row_scale_O: Tensor, column_scale_I: Tensor, limit: int | None = None) -> Tensor:
    """Round weights to whole steps, half to even: clamp(round(w / step), ±limit) · step, step = row_scale · column_scale.

    The gradient is that of learned step size quantization (LSQ; Esser et al. 2019, arXiv 1902.08153, equations 3 and 5, without
    its gradient scale). To a weight it is passed straight through within ±limit steps, and 0 outside; to a step it is
    round(w / step) - w / step within, and ±limit outside. Sums have a fixed order: the same input gives the same bits.

    Args:
        w_OI: weights, float32, bfloat16 or float16, [O, I].
        row_scale_O, column_scale_I: float32, [O] and [I]. A step that is not positive makes the weight 0; the gradient passes
            through to that weight and not to its step.
        limit: largest code, 1 or more; None for no limit.
    Returns:
        Weights [O, I] in w's dtype, computed in float32; kernel and reference implementation give the same bits.
    Raises:
        ShapeError: a shape or dtype that does not fit.
        ConfigError: limit below 1, or tensors on different devices.
    """
    _check(w_OI, row_scale_O, column_scale_I, limit)
    is_kernel = on_kernel(w_OI, row_scale_O, column_scale_I)
    out_OI: Tensor = FakeQuant.apply(w_OI, row_scale_O, column_scale_I, limit, is_kernel)  # type: ignore[no-untyped-call]
    return out_OI


def _check(w_OI: Tensor, row_scale_O: Tensor, column_scale_I: Tensor, limit: int | None) -> None:
    if w_OI.ndim != 2 or w_OI.dtype not in DTYPES:
        raise ShapeError(f"weights must be float32, bfloat16 or float16 [O, I], got {w_OI.dtype} {list(w_OI.shape)}")
    for name, scale, count in (("row", row_scale_O, w_OI.shape[0]), ("column", column_scale_I, w_OI.shape[1])):
        if scale.shape != (count,) or scale.dtype != torch.float32:
            raise ShapeError(f"{name} scales must be float32 [{count}], got {scale.dtype} {list(scale.shape)}")
        if scale.device != w_OI.device:
            raise ConfigError(f"{name} scales must be on {w_OI.device} like the weights, got {scale.device}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more, got {limit}")
