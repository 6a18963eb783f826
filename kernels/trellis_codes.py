"""From the symbols of a code stream to the codes of a trellis, along anti-diagonals.

quantlab/format_rules.py says what the states mean; quantlab/coding/symbols.py does the same in numpy, one row at a time. The
kernel gives each thread an anti-diagonal, which it walks from row to row: neighbours read neighbouring weights.

O: rows, I: columns.
"""

import torch
from torch import Tensor

from quantlab.errors import ShapeError
from quantlab.format_rules import SCALAR_CLASSES
from quantlab.kernels.launch import jit, on_kernel, tl

_BLOCK = 128  # anti-diagonals of a program


def trellis_codes_ref(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int) -> Tensor:
    """Return what `trellis_codes` returns; the reference implementation, one row at a time."""
    codes = torch.empty_like(symbol_OI)
    before = torch.zeros_like(column_I, dtype=torch.int32)
    for i, symbols in enumerate(symbol_OI.int()):
        on_path = row_O[i] + column_I >= SCALAR_CLASSES
        odd = (before & 1) * on_path
        codes[i] = torch.where(odd == 1, 1 - 2 * symbols, 2 * symbols)
        moved = (before ^ (before & 1) * h0 ^ (symbols & 1) * h1) >> 1
        after = torch.where(on_path, moved, before)
        before = torch.cat((after[1:], after.new_zeros(min(1, len(after)))))
    return codes


@jit
def _trellis_codes_kernel(
    p_symbols, p_rows, p_columns, p_codes, n_rows, n_columns, H0: tl.constexpr, H1: tl.constexpr, SCALAR: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    diagonal = first + tl.arange(0, BLOCK)
    state = tl.zeros((BLOCK,), tl.int32)
    top = tl.maximum(0, first - n_columns + 1)
    o_row = top.to(tl.int64) * n_columns
    for i in range(top, tl.minimum(n_rows, first + BLOCK)):
        j = diagonal - i
        m_here = (j >= 0) & (j < n_columns)
        at = o_row + j
        o_row += n_columns
        symbol = tl.load(p_symbols + at, mask=m_here, other=0).to(tl.int32)
        column = tl.load(p_columns + j, mask=m_here, other=0).to(tl.int32)
        on_path = m_here & (tl.load(p_rows + i).to(tl.int32) + column >= SCALAR)
        code = tl.where(on_path & ((state & 1) == 1), 1 - 2 * symbol, 2 * symbol)
        tl.store(p_codes + at, code.to(tl.int16), mask=m_here)
        moved = (state ^ ((state & 1) * H0) ^ ((symbol & 1) * H1)) >> 1
        state = tl.where(on_path, moved, state)


def trellis_codes_triton(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int) -> Tensor:
    """Run the kernel of `trellis_codes`, on CUDA or under Triton's interpreter."""
    codes = torch.empty_like(symbol_OI)
    O, I = symbol_OI.shape
    if codes.numel():
        grid = (-(-(O + I - 1) // _BLOCK),)
        _trellis_codes_kernel[grid](
            symbol_OI, row_O, column_I, codes, O, I, H0=h0, H1=h1, SCALAR=SCALAR_CLASSES, BLOCK=_BLOCK, num_warps=4
        )
    return codes


def trellis_codes(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int) -> Tensor:
    """Return the codes int16 [O, I] of the symbols of one matrix on a trellis.

    Args:
        symbol_OI: int16 [O, I], contiguous, within ±16383.
        row_O, column_I: shares of the scale class, int16 [O] and [I], within ±1000: weights whose sum is below SCALAR_CLASSES
            bypass the trellis.
        h0, h1: parity checks of the trellis (PARITY_CHECKS of quantlab/format_rules.py).
    Raises:
        ShapeError: shapes or dtypes that do not belong together.
    """
    tensors = (symbol_OI, row_O, column_I)
    if symbol_OI.shape != (len(row_O), len(column_I)) or any(t.dtype != torch.int16 for t in tensors):
        got = ", ".join(f"{t.dtype} {list(t.shape)}" for t in tensors)
        raise ShapeError(f"symbols, row classes and column classes must be int16 [O, I], [O] and [I], got {got}")
    run = trellis_codes_triton if on_kernel(*tensors) else trellis_codes_ref
    return run(symbol_OI.contiguous(), row_O, column_I, h0, h1)
