"""From the symbols of a code stream to the codes of a trellis, path by path.

quantlab/format_rules.py says what the states mean and in which order a path visits weights; quantlab/coding/symbols.py does the
same in numpy, one row at a time. The kernels give each thread a path, which it walks from row to row: neighbours read
neighbouring weights.

O: rows, I: columns, B: edge of a block, P, Q: rows and columns of blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlab.errors import ShapeError
from quantlab.format_rules import PATH_BLOCK, PATHS, SCALAR_CLASSES
from quantlab.kernels.launch import jit, on_kernel, tl

_COLUMNS = 128  # paths of a program where paths are columns


def trellis_codes_ref(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int, paths: str) -> Tensor:
    """Return what `trellis_codes` returns; the reference implementation, one row at a time."""
    codes, (O, I), B = torch.empty_like(symbol_OI), symbol_OI.shape, PATH_BLOCK
    P, Q = -(-O // B), -(-I // B)
    state_of_paths = torch.zeros(P + Q, 2 * B, dtype=torch.int32, device=symbol_OI.device)
    for i, symbols in enumerate(symbol_OI.int()):
        p, first = divmod(i, B) if paths == "blocks" else (0, 0)
        here = state_of_paths[p : p + Q, first : first + B]
        before = here.flatten()[:I]
        on_path = row_O[i] + column_I >= SCALAR_CLASSES
        odd = (before & 1) * on_path
        codes[i] = torch.where(odd == 1, 1 - 2 * symbols, 2 * symbols)
        moved = (before ^ (before & 1) * h0 ^ (symbols & 1) * h1) >> 1
        after = torch.where(on_path, moved, before)
        here[:] = F.pad(after, (0, Q * B - I)).view(Q, B)  # nothing beyond the last column is read
    return codes


@jit
def _walk(p_symbols, p_codes, at, m_here, on_path, state, H0: tl.constexpr, H1: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the codes of one weight of each path, and return the states after them."""
    symbol = tl.load(p_symbols + at, mask=m_here, other=0).to(tl.int32)
    code = tl.where(on_path & ((state & 1) == 1), 1 - 2 * symbol, 2 * symbol)
    tl.store(p_codes + at, code.to(tl.int16), mask=m_here)
    moved = (state ^ ((state & 1) * H0) ^ ((symbol & 1) * H1)) >> 1
    return tl.where(on_path, moved, state)


@jit
def _blocks_kernel(
    p_symbols, p_rows, p_columns, p_codes, O, I, H0: tl.constexpr, H1: tl.constexpr, SCALAR: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """Walk all paths of one anti-diagonal of blocks: lane t those of anti-diagonal t inside the blocks."""
    d = tl.program_id(0)
    o_t = tl.arange(0, 2 * B)
    state = tl.zeros((2 * B,), tl.int32)
    first = tl.maximum(0, d - (tl.cdiv(I, B) - 1))
    for row in range(first * B, tl.minimum(O, (d + 1) * B)):
        j = o_t - row % B
        column = (d - row // B) * B + j
        m_here = (j >= 0) & (j < B) & (column < I)
        share = tl.load(p_rows + row).to(tl.int32) + tl.load(p_columns + column, mask=m_here, other=0).to(tl.int32)
        at = tl.cast(row, tl.int64) * I + column
        state = _walk(p_symbols, p_codes, at, m_here, m_here & (share >= SCALAR), state, H0, H1)


@jit
def _columns_kernel(
    p_symbols, p_rows, p_columns, p_codes, O, I, H0: tl.constexpr, H1: tl.constexpr, SCALAR: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Walk BLOCK columns from their first row to their last."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_here = column < I
    state = tl.zeros((BLOCK,), tl.int32)
    b_columns = tl.load(p_columns + column, mask=m_here, other=0).to(tl.int32)
    for row in range(0, O):
        on_path = m_here & (tl.load(p_rows + row).to(tl.int32) + b_columns >= SCALAR)
        state = _walk(p_symbols, p_codes, tl.cast(row, tl.int64) * I + column, m_here, on_path, state, H0, H1)


def trellis_codes_triton(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int, paths: str) -> Tensor:
    """Run the kernels of `trellis_codes`, on CUDA or under Triton's interpreter."""
    codes = torch.empty_like(symbol_OI)
    O, I = symbol_OI.shape
    if not codes.numel():
        return codes
    arguments, fixed = (symbol_OI, row_O, column_I, codes, O, I), {"H0": h0, "H1": h1, "SCALAR": SCALAR_CLASSES}
    if paths == "blocks":
        sets = -(-O // PATH_BLOCK) + -(-I // PATH_BLOCK) - 1
        _blocks_kernel[(sets,)](*arguments, **fixed, B=PATH_BLOCK, num_warps=2)
    else:
        _columns_kernel[(-(-I // _COLUMNS),)](*arguments, **fixed, BLOCK=_COLUMNS, num_warps=4)
    return codes


def trellis_codes(symbol_OI: Tensor, row_O: Tensor, column_I: Tensor, h0: int, h1: int, paths: str) -> Tensor:
    """Return the codes int16 [O, I] of the symbols of one matrix on a trellis.

    Args:
        symbol_OI: int16 [O, I], contiguous, within ±16383.
        row_O, column_I: shares of the scale class, int16 [O] and [I], within ±1000: weights whose sum is below SCALAR_CLASSES
            bypass the trellis.
        h0, h1: parity checks of the trellis (PARITY_CHECKS of quantlab/format_rules.py).
        paths: order of weights on its paths, one of PATHS.
    Raises:
        ShapeError: shapes or dtypes that do not belong together, or an unknown order.
    """
    tensors = (symbol_OI, row_O, column_I)
    if symbol_OI.shape != (len(row_O), len(column_I)) or any(t.dtype != torch.int16 for t in tensors):
        got = ", ".join(f"{t.dtype} {list(t.shape)}" for t in tensors)
        raise ShapeError(f"symbols, row classes and column classes must be int16 [O, I], [O] and [I], got {got}")
    if paths not in PATHS:
        raise ShapeError(f"paths must be {' or '.join(PATHS)}, got {paths!r}")
    run = trellis_codes_triton if on_kernel(*tensors) else trellis_codes_ref
    return run(symbol_OI.contiguous(), row_O, column_I, h0, h1, paths)
