"""From the symbols of a code stream to codes on a trellis's path, along anti-diagonals.

quantlab/coding/trellis.py says what the states mean; symbols.py does the same in numpy, a row at a time. The kernel gives each
thread a diagonal, which it walks from row to row: neighbours read neighbouring weights.

O: rows, I: columns.
"""

import torch
from torch import Tensor

from quantlab.errors import ShapeError
from quantlab.kernels.launch import jit, on_kernel, tl

SCALAR_CLASSES = 9
"""Weights of classes below it are off the path (quantlab/coding/classes.py)."""
_BLOCK = 128  # diagonals of a program


def trellis_codes_ref(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int) -> Tensor:
    """What `trellis_codes` does, a row at a time."""
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
    p_symbols, p_rows, p_columns, p_codes, n_rows, n_columns, H0: tl.constexpr, H1: tl.constexpr, NARROW: tl.constexpr,
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
        on_path = m_here & (tl.load(p_rows + i).to(tl.int32) + column >= NARROW)
        code = tl.where(on_path & ((state & 1) == 1), 1 - 2 * symbol, 2 * symbol)
        tl.store(p_codes + at, code.to(tl.int16), mask=m_here)
        moved = (state ^ ((state & 1) * H0) ^ ((symbol & 1) * H1)) >> 1
        state = tl.where(on_path, moved, state)


def trellis_codes_triton(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int) -> Tensor:
    """`trellis_codes` by the kernel, on CUDA or under Triton's interpreter."""
    codes = torch.empty_like(symbol_OI)
    O, I = symbol_OI.shape
    if codes.numel():
        grid = (-(-(O + I - 1) // _BLOCK),)
        _trellis_codes_kernel[grid](
            symbol_OI, row_O, column_I, codes, O, I, H0=h0, H1=h1, NARROW=SCALAR_CLASSES, BLOCK=_BLOCK, num_warps=4
        )
    return codes


def trellis_codes(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int) -> Tensor:
    """Codes int16 [O, I] of the symbols of one matrix on a trellis.

    Args:
        symbol_OI: int16 [O, I], contiguous, within ±16383.
        row_O, column_I: shares in the class, int16 [O] and [I], within ±1000: weights whose sum is 9 or more
            are on the path.
        h0, h1: parity checks of the trellis (quantlab/coding/trellis.py).
    Raises:
        ShapeError: shapes or dtypes that do not belong together.
    """
    tensors = (symbol_OI, row_O, column_I)
    if symbol_OI.shape != (len(row_O), len(column_I)) or any(t.dtype != torch.int16 for t in tensors):
        got = ", ".join(f"{t.dtype} {list(t.shape)}" for t in tensors)
        raise ShapeError(f"symbols, rows and columns are {got}; int16 [O, I], [O] and [I] expected")
    run = trellis_codes_triton if on_kernel(*tensors) else trellis_codes_ref
    return run(symbol_OI.contiguous(), row_O, column_I, h0, h1)
