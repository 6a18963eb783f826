"""Dense weights, or some of their rows, from packed codes (packed.py), and the functions with which kernels read these.

O: rows, I: columns, N: rows asked for, R: rows with half rows, W: words of a lane, L: lanes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlab.errors import ShapeError
from quantlab.kernels.launch import configs, jit, on_kernel, tl
from quantlab.kernels.packed import LANES, Packed

__all__ = ["DTYPES", "code_tile", "load_words", "shape_arguments", "unpack", "unpack_ref", "unpack_triton"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
(_UNPACK,), (_OUTLIERS,) = configs("unpack"), configs("unpack_outliers")


def unpack_ref(packed: Packed, rows: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return what `unpack` returns; the reference implementation."""
    O, I = packed.shape
    rows = torch.arange(O, device=packed.words.device) if rows is None else rows
    value_NI = _codes(packed.words[rows], packed.bits, I)
    if packed.half_row_O is not None:
        value_NI -= 0.5 * _codes(packed.words[packed.half_row_O[rows]], packed.bits, I)
    counts = packed.outlier_start_O.diff()[rows]
    row = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
    place = torch.arange(len(row), device=rows.device) - (counts.cumsum(0) - counts)[row]
    outlier = packed.outlier_start_O[rows][row] + place
    value_NI[row, packed.outlier_column[outlier]] = packed.outlier_value[outlier]
    return (value_NI * packed.row_scale_O[rows, None] * packed.column_scale_I).to(dtype)


def _codes(words_NWL: Tensor, bits: int, columns: int) -> Tensor:
    """Return codes as float32 [N, columns]."""
    words_NWL = F.pad(words_NWL.long() & 0xFFFFFFFF, (0, 0, 0, 1))
    bit = bits * torch.arange(-(columns // -LANES), device=words_NWL.device)
    pair_NSL = words_NWL[:, bit // 32] | words_NWL[:, bit // 32 + 1] << 32  # 64 bits from the word in which a slot begins
    code_NSL: Tensor = (pair_NSL >> (bit % 32)[:, None] & 2**bits - 1) - 2 ** (bits - 1)
    return code_NSL.flatten(1)[:, :columns].float()


@jit
def load_words(  # type: ignore[no-untyped-def]
    p_rows, m_rows, left, COUNT: tl.constexpr, LANES: tl.constexpr, IS_EVEN: tl.constexpr
):
    """Return COUNT words of all lanes from each row's pointer on: a tuple of [rows, LANES]. `left` exist unless IS_EVEN."""
    words = ()
    for word in tl.static_range(COUNT):
        o_l = word * LANES + tl.arange(0, LANES)[None, :]
        mask = m_rows[:, None] if IS_EVEN else m_rows[:, None] & (o_l < left * LANES)
        b_words = tl.load(p_rows[:, None] + o_l, mask=mask, other=0)
        words = words + (b_words.to(tl.uint32, bitcast=True),)  # type: ignore[assignment]  # noqa: RUF005
    return words


@jit
def codes_at(words, SLOT: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the codes of one slot, float32 [rows, LANES].

    No integer is converted: the field becomes part of a mantissa. If its lowest bit is bit `at` of the mantissa, and the
    exponent is that of 2**(23 - at), this bit counts 1.
    """
    word: tl.constexpr = SLOT * BITS // 32
    shift: tl.constexpr = SLOT * BITS % 32
    at: tl.constexpr = 0 if shift + BITS > 32 else shift - 9 if shift + BITS > 23 else shift
    if shift + BITS > 32:
        b_bits = (words[word] >> shift) | (words[word + 1] << (32 - shift))
    elif shift + BITS > 23:
        b_bits = words[word] >> 9  # shared by all fields in the upper bits
    else:
        b_bits = words[word]
    mask: tl.constexpr = (2**BITS - 1) << at
    exponent: tl.constexpr = (150 - at) << 23
    offset: tl.constexpr = 2.0 ** (23 - at) + 2.0 ** (BITS - 1)
    return ((b_bits & mask) | exponent).to(tl.float32, bitcast=True) - offset


@jit
def code_tile(words, SLOT: tl.constexpr, BITS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the codes of four slots from SLOT on, their columns in order, float32 [rows, 4·LANES]."""
    b_0 = codes_at(words, SLOT, BITS)
    b_1 = codes_at(words, SLOT + 1, BITS)
    b_2 = codes_at(words, SLOT + 2, BITS)
    b_3 = codes_at(words, SLOT + 3, BITS)
    b_codes = tl.permute(tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3)), (0, 2, 3, 1))
    return tl.reshape(b_codes, (b_codes.shape[0], 4 * LANES))


@jit
def _unpack_kernel(  # type: ignore[no-untyped-def]
    p_out,
    p_words,
    p_rows,
    p_half_row,
    p_row_scale,
    p_column_scale,
    N,
    O,
    I,
    W,
    BITS: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
    IS_EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Unpack SLOTS slots of a block of rows; p_rows None means all rows in order, p_half_row None no halves."""
    WORDS: tl.constexpr = SLOTS * BITS // 32
    periods = tl.cdiv(I, SLOTS * LANES)
    period = tl.program_id(0) % periods
    o_n = (tl.program_id(0) // periods).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    o_o = o_n
    if p_rows is not None:
        o_o = tl.load(p_rows + o_n, mask=m_n, other=0)
    m_o = m_n & (o_o >= 0) & (o_o < O)
    left = W - period * WORDS
    b_row_scale = tl.load(p_row_scale + o_o, mask=m_o, other=float("nan"))  # a row that does not exist is NaN
    words = load_words(p_words + (o_o * W + period * WORDS) * LANES, m_o, left, WORDS, LANES, IS_EVEN)
    if p_half_row is not None:
        o_half = tl.load(p_half_row + o_o, mask=m_o, other=0).to(tl.int64)
        half_words = load_words(p_words + (o_half * W + period * WORDS) * LANES, m_o, left, WORDS, LANES, IS_EVEN)
    for slot in tl.static_range(SLOTS):
        o_i = (period * SLOTS + slot) * LANES + tl.arange(0, LANES)
        m_i = o_i < (I if not IS_EVEN else (period + 1) * SLOTS * LANES)
        b_value = codes_at(words, slot, BITS)
        if p_half_row is not None:
            b_value -= 0.5 * codes_at(half_words, slot, BITS)
        b_column_scale = tl.load(p_column_scale + o_i, mask=m_i, other=0.0)
        b_weight = b_value * b_row_scale[:, None] * b_column_scale[None, :]
        p_cells = p_out + o_n[:, None] * I + o_i[None, :]
        tl.store(p_cells, b_weight.to(p_out.dtype.element_ty), mask=m_n[:, None] & m_i[None, :])


@jit
def _outlier_kernel(  # type: ignore[no-untyped-def]
    p_out, p_rows, p_start, p_column, p_value, p_row_scale, p_column_scale, N, O, I, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Write the outliers of a block of rows over the clamped weights that `_unpack_kernel` wrote."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    o_o = o_n
    if p_rows is not None:
        o_o = tl.load(p_rows + o_n, mask=m_n, other=0)
    m_o = m_n & (o_o >= 0) & (o_o < O)
    b_start = tl.load(p_start + o_o, mask=m_o, other=0)
    b_stop = tl.load(p_start + o_o + 1, mask=m_o, other=0)
    b_row_scale = tl.load(p_row_scale + o_o, mask=m_o, other=0.0)
    for first in range(0, tl.max(b_stop - b_start, axis=0), CHUNK):
        o_k = b_start[:, None] + first + tl.arange(0, CHUNK)[None, :]
        m_k = o_k < b_stop[:, None]
        o_i = tl.load(p_column + o_k, mask=m_k, other=0)
        b_value = tl.load(p_value + o_k, mask=m_k, other=0.0)
        b_weight = b_value * b_row_scale[:, None] * tl.load(p_column_scale + o_i, mask=m_k, other=0.0)
        tl.store(p_out + o_n[:, None] * I + o_i, b_weight.to(p_out.dtype.element_ty), mask=m_k)


def shape_arguments(packed: Packed) -> dict[str, Any]:
    """Return the compile-time arguments of kernels that read words.

    SLOTS is the period of the layout, the fewest slots that fill whole words; at least 16, so that enough loads are under way.
    """
    slots = max(16, 32 // math.gcd(packed.bits, 32))
    is_even = packed.shape[1] % (slots * LANES) == 0
    return {"BITS": packed.bits, "SLOTS": slots, "LANES": LANES, "IS_EVEN": is_even}


def unpack_triton(packed: Packed, rows: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Run the kernels of `unpack`: one for all codes, and one that writes the outliers over them."""
    O, I = packed.shape
    N = O if rows is None else len(rows)
    rows = None if rows is None else rows.contiguous()
    out_NI = packed.row_scale_O.new_empty((N, I), dtype=dtype)
    if N == 0:
        return out_NI
    fixed = shape_arguments(packed)
    scales = packed.row_scale_O, packed.column_scale_I
    blocks = -(N // -_UNPACK["BLOCK_N"]) * -(I // -(fixed["SLOTS"] * LANES))
    W = packed.words.shape[1]
    _unpack_kernel[(blocks,)](out_NI, packed.words, rows, packed.half_row_O, *scales, N, O, I, W, **fixed, **_UNPACK)
    if len(packed.outlier_value):
        outliers = packed.outlier_start_O, packed.outlier_column, packed.outlier_value
        _outlier_kernel[(-(N // -_OUTLIERS["BLOCK_N"]),)](out_NI, rows, *outliers, *scales, N, O, I, **_OUTLIERS)
    return out_NI


def unpack(packed: Packed, rows: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights, ((code - half) · row_scale) · column_scale in float32, rounded once to `dtype`.

    Args:
        packed: the matrix [O, I].
        rows: numbers of the rows to return, in this order, int64 [N], repeats allowed; None for all.
        dtype: float32, bfloat16 or float16.
    Returns:
        Weights [N, I]; kernel and reference implementation give the same bits. On a GPU, where a check would have to wait for
        the device, rows below 0 or from O on are NaN.
    Raises:
        ShapeError: `rows` or `dtype` is something else; on a CPU also rows below 0 or from O on.
    """
    if dtype not in DTYPES:
        raise ShapeError(f"dtype of weights must be float32, bfloat16 or float16, got {dtype}")
    if rows is not None:
        _check_rows(rows, packed)
    return unpack_triton(packed, rows, dtype) if on_kernel(packed.words) else unpack_ref(packed, rows, dtype)


def _check_rows(rows: Tensor, packed: Packed) -> None:
    if rows.dtype != torch.int64 or rows.dim() != 1 or rows.device != packed.words.device:
        got = f"{rows.dtype} {list(rows.shape)} on {rows.device}"
        raise ShapeError(f"rows must be int64 [N] on {packed.words.device}, got {got}")
    if not rows.is_cuda and len(rows) and not 0 <= rows.min() <= rows.max() < packed.shape[0]:
        raise ShapeError(f"rows must lie in 0 to {packed.shape[0] - 1}, got {int(rows.min())} to {int(rows.max())}")
