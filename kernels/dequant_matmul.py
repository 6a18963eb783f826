"""Products with a matrix of packed codes (packed.py) whose dense weights are never in memory.

One kernel multiplies codes with x · column_scale, over a part of the columns each; a second one adds up these parts and applies
what is needed once for each output: halves, outliers and row_scale.

M: rows of x, O: outputs, I: inputs, R: outputs with those of half rows, W: words of a lane, L: lanes, S: parts (splits).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlab.errors import ShapeError
from quantlab.kernels.launch import configs, jit, on_kernel, tl, tuned
from quantlab.kernels.packed import LANES, Packed
from quantlab.kernels.unpack_weights import DTYPES, code_tile, load_words, shape_arguments, unpack, unpack_ref

__all__ = [
    "FUSED_ROWS",
    "dequant_matmul",
    "dequant_matmul_ref",
    "dequant_matmul_triton",
    "input_gradient",
    "input_gradient_ref",
    "splits_of",
]

FUSED_ROWS = 64
"""Largest number of rows of x for the kernel; with more, weights are unpacked once and cuBLAS multiplies. Not measured."""
_PROGRAMS = 512
"""Programs that fill a large GPU: four on each of about 130 processors. Not measured. The number does not depend on the GPU, so
that sums are the same on all."""
(_FINISH,) = configs("dequant_matmul_finish")


def dequant_matmul_ref(x: Tensor, packed: Packed) -> Tensor:
    """Return what `dequant_matmul` returns; the reference implementation: weights in x's dtype, then torch's product."""
    return F.linear(x, unpack_ref(packed, dtype=x.dtype))


def input_gradient_ref(grad: Tensor, packed: Packed) -> Tensor:
    """Return what `input_gradient` returns; the reference implementation."""
    return grad @ unpack_ref(packed, dtype=grad.dtype)


@tuned("dequant_matmul", key=["R", "I", "BITS", "BLOCK_M"])
@jit
def _multiply_kernel(  # type: ignore[no-untyped-def]
    p_parts,
    p_x,
    p_words,
    p_column_scale,
    M,
    R,
    I,
    W,
    loops,
    BITS: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
    IS_EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Compute a block of outputs over `loops` periods of columns: codes times x · column_scale, rounded to x's dtype.

    Codes of up to 8 bits are exact in each dtype; for 16 bits both factors are float32.
    """
    WORDS: tl.constexpr = SLOTS * BITS // 32
    TILE: tl.constexpr = 4 * LANES
    dot_type: tl.constexpr = p_x.dtype.element_ty if BITS <= 8 else tl.float32
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    m_r, m_m = o_r < R, o_m < M
    o_k = tl.arange(0, TILE)
    p_xk = p_x + o_m[None, :] * I + o_k[:, None]
    b_sum = tl.zeros([BLOCK_O, BLOCK_M], tl.float32)
    for period in range(part * loops, tl.minimum(part * loops + loops, tl.cdiv(I, SLOTS * LANES))):
        p_rows = p_words + (o_r * W + period * WORDS) * LANES
        words = load_words(p_rows, m_r, W - period * WORDS, WORDS, LANES, IS_EVEN)
        for slot in tl.static_range(0, SLOTS, 4):
            at = period * SLOTS * LANES + slot * LANES
            m_k = o_k < (TILE if IS_EVEN else I - at)
            b_scale = tl.load(p_column_scale + at + o_k, mask=m_k, other=0.0)
            b_x = tl.load(p_xk + at, mask=m_k[:, None] & m_m[None, :], other=0.0)
            b_x = (b_x.to(tl.float32) * b_scale[:, None]).to(dot_type)
            b_codes = code_tile(words, slot, BITS, LANES).to(dot_type)
            b_sum = tl.dot(b_codes, b_x, b_sum, input_precision="ieee")
    p_cells = p_parts + (part.to(tl.int64) * M + o_m[None, :]) * R + o_r[:, None]
    tl.store(p_cells, b_sum, mask=m_r[:, None] & m_m[None, :])


@jit
def _finish_kernel(  # type: ignore[no-untyped-def]
    p_out,
    p_parts,
    p_x,
    p_half_row,
    p_start,
    p_column,
    p_value,
    p_row_scale,
    p_column_scale,
    M,
    O,
    I,
    R,
    S,
    LIMIT: tl.constexpr,
    HAS_OUTLIERS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Finish a block of outputs of one row of x: sum its parts in order, subtract halves, add what outliers exceed LIMIT by."""
    o_o = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = tl.program_id(1).to(tl.int64)
    m_o = o_o < O
    b_sum = tl.zeros([BLOCK_O], tl.float32)
    for part in range(S):
        b_sum += tl.load(p_parts + (part * M + m) * R + o_o, mask=m_o, other=0.0)
    if p_half_row is not None:
        o_half = tl.load(p_half_row + o_o, mask=m_o, other=0)
        for part in range(S):
            b_sum -= 0.5 * tl.load(p_parts + (part * M + m) * R + o_half, mask=m_o, other=0.0)
    if HAS_OUTLIERS:
        b_start = tl.load(p_start + o_o, mask=m_o, other=0)
        b_stop = tl.load(p_start + o_o + 1, mask=m_o, other=0)
        b_more = tl.zeros([BLOCK_O, CHUNK], tl.float32)
        for first in range(0, tl.max(b_stop - b_start, axis=0), CHUNK):
            o_k = b_start[:, None] + first + tl.arange(0, CHUNK)[None, :]
            m_k = o_k < b_stop[:, None]
            o_i = tl.load(p_column + o_k, mask=m_k, other=0)
            b_value = tl.load(p_value + o_k, mask=m_k, other=0.0)
            b_excess = tl.ceil(b_value) - tl.where(b_value > 0, LIMIT, -LIMIT)  # the code is its value or ½ more
            b_x = tl.load(p_x + m * I + o_i, mask=m_k, other=0.0).to(tl.float32)
            b_more += tl.where(m_k, b_excess, 0.0) * b_x * tl.load(p_column_scale + o_i, mask=m_k, other=0.0)
        b_sum += tl.sum(b_more, axis=1)
    b_sum *= tl.load(p_row_scale + o_o, mask=m_o, other=0.0)
    tl.store(p_out + m * O + o_o, b_sum.to(p_out.dtype.element_ty), mask=m_o)


def dequant_matmul_triton(x: Tensor, packed: Packed, splits: int | None = None) -> Tensor:
    """Run the kernels of `dequant_matmul`, for any number of rows, with the columns in so many parts (`splits`)."""
    O, I = packed.shape
    x_MI = x.reshape(-1, I).contiguous()
    M = len(x_MI)
    out_MO = x_MI.new_empty((M, O))
    if M == 0:
        return out_MO.view(*x.shape[:-1], O)
    fixed = shape_arguments(packed)
    R, W, _ = packed.words.shape
    widest = 64 if x.dtype != torch.float32 and packed.bits <= 8 else 16  # sums of float32 products spill beyond 16 rows
    block_m = min(widest, max(16, 1 << (M - 1).bit_length()))
    periods = -(I // -(fixed["SLOTS"] * LANES))
    loops = -(periods // -(splits or splits_of(M, R, I, packed.bits, periods)))
    S = -(periods // -loops)
    parts_SMR = x_MI.new_empty((S, M, R), dtype=torch.float32)

    def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
        return -(R // -meta["BLOCK_O"]), -(M // -block_m), S

    scales = packed.row_scale_O, packed.column_scale_I
    _multiply_kernel[grid](parts_SMR, x_MI, packed.words, scales[1], M, R, I, W, loops, **fixed, BLOCK_M=block_m)
    outliers = packed.outlier_start_O, packed.outlier_column, packed.outlier_value
    _finish_kernel[(-(O // -_FINISH["BLOCK_O"]), M)](
        out_MO,
        parts_SMR,
        x_MI,
        packed.half_row_O,
        *outliers,
        *scales,
        M,
        O,
        I,
        R,
        S,
        LIMIT=packed.limit,
        HAS_OUTLIERS=len(packed.outlier_value) > 0,
        **_FINISH,
    )
    return out_MO.view(*x.shape[:-1], O)


def splits_of(M: int, R: int, I: int, bits: int, periods: int) -> int:
    """Return the number of parts of the columns: enough to fill a GPU, but their sums take at most half the codes' bytes."""
    blocks = -(R // -64) * -(M // -64)
    heaviest = I * bits // (128 * M)  # 8 bytes of each part's sum, written and read, against bits / 8 / 2 of each weight
    return max(1, min(_PROGRAMS // blocks, heaviest, periods))


class _DequantMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        if x.numel() <= FUSED_ROWS * packed.shape[1] and on_kernel(x, packed.words):
            return dequant_matmul_triton(x, packed)
        return F.linear(x, unpack(packed, dtype=x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return input_gradient(grads[0], ctx.packed), None


def input_gradient(grad: Tensor, packed: Packed) -> Tensor:
    """Return the gradient of x in y = x Wᵀ, which is grad W; the weights are unpacked, rounded to grad's dtype.

    Adapters and gains are trained over packed weights with it. Training reads hundreds of rows or more at once, where unpacking
    is a small share of the product.

    Args:
        grad: gradient of y, float32, bfloat16 or float16, [..., O].
        packed: the matrix, on grad's device.
    Returns:
        [..., I] in grad's dtype.
    """
    return grad @ unpack(packed, dtype=grad.dtype)


def dequant_matmul(x: Tensor, packed: Packed) -> Tensor:
    """Return x Wᵀ with the weights W [O, I] of `packed`, summed in float32; x has an exact gradient, weights have none.

    Up to FUSED_ROWS rows the kernel reads codes alone, and rounds x · column_scale to x's dtype. With more, and on a CPU,
    weights are unpacked, rounded to x's dtype, for torch's product. The order of sums depends on shapes, and on a GPU also on
    the launch configuration that was fastest there.

    Args:
        x: float32, bfloat16 or float16, [..., I].
        packed: the matrix, on x's device.
    Returns:
        [..., O] in x's dtype.
    Raises:
        ShapeError: x has another shape, dtype or device.
    """
    if x.dtype not in DTYPES or x.dim() == 0 or x.shape[-1] != packed.shape[1] or x.device != packed.words.device:
        allowed = f"float32, bfloat16 or float16 [..., {packed.shape[1]}] on {packed.words.device}"
        raise ShapeError(f"x must be {allowed}, got {x.dtype} {list(x.shape)} on {x.device}")
    return _DequantMatmul.apply(x, packed)  # type: ignore[no-any-return, no-untyped-call]
