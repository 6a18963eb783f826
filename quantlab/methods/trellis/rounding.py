"""Entropy-coded trellis quantization inside error feedback on both sides of a matrix.

Weights are rounded anti-diagonal by anti-diagonal, from the last row and column to the first: no weight of an anti-diagonal
feeds another one, so a trellis runs along it (coding.trellis) and the Viterbi algorithm finds the path of least
error² + slope · bits. Bits are those of the entropy coder's own tables.

Legend: O rows (outputs), I columns (inputs), S states. Errors are w - ŵ.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from quantlab.coding.contexts import MAX_CLASS, SCALAR_CLASSES
from quantlab.coding.tables import OFFSET, TABLE_CLASSES
from quantlab.format_rules import next_states
from quantlab.methods.trellis.factors import Factors
from quantlab.methods.trellis.shape import ShapedGrid

# Sums may be reordered for speed; results depend on the machine that packs, never on the one that reads.
_compiled = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")


@dataclass(frozen=True, slots=True)
class Rates:
    """What the coder charges, as the quantizer sees it."""

    rows_O: NDArray[np.int16]
    """Share of each row in the class."""
    columns_I: NDArray[np.int16]
    """Share of each column in the class."""
    bits: NDArray[np.float32]
    """Bits of each symbol in each table class, [28, 256]."""


def round_on_paths(
    w_OI: NDArray[np.float32], grid: ShapedGrid, parts: Factors, rates: Rates, *, states: int, slope: float
) -> NDArray[np.int16]:
    """Codes int16 [O, I] of float32 weights [O, I].

    Args:
        grid: steps; codes stay within its width.
        rates: of the coder that will store the codes; classes decide which weights are on the path.
        states: of the trellis, 1 for plain rounding.
        slope: squared steps that a bit may cost.
    """
    codes_OI = np.zeros(w_OI.shape, np.int16)
    high = (1 << (grid.bits - 1)) - 1
    low = -high if states == 1 else 1 - high
    classes = (rates.rows_O.astype(np.int64), rates.columns_I.astype(np.int64))
    steps_OI = np.ascontiguousarray(grid.steps_OI)
    _round_(
        codes_OI, w_OI, steps_OI, parts.columns_II, parts.rows_OO, *classes, rates.bits, next_states(states), slope, low, high
    )
    return codes_OI


@_compiled
def _round_(
    codes_OI: Any,
    w_OI: Any,
    steps_OI: Any,
    columns_II: Any,
    rows_OO: Any,
    rows_O: Any,
    columns_I: Any,
    bits: Any,
    next_S2: Any,
    slope: float,
    low: int,
    high: int,
) -> None:
    O, I = w_OI.shape
    longest = min(O, I)
    error_IO = np.zeros((I, O), np.float32)
    carried_OI = np.zeros((O, I), np.float32)  # error of a weight and of the rows below it, as the columns before it see it
    target, below = np.empty(longest, np.float32), np.empty(longest, np.float32)
    work = (np.empty((longest, len(next_S2)), np.uint8), np.empty((longest, len(next_S2)), np.int16))
    for s in range(O + I - 2, -1, -1):
        first, last = max(0, s - (I - 1)), min(O - 1, s)
        _targets_(target, below, w_OI, error_IO, carried_OI, columns_II, rows_OO, first, last, s)
        _path_(codes_OI, target, steps_OI, rows_O, columns_I, bits, next_S2, slope, low, high, first, last, s, *work)
        for i in range(first, last + 1):
            j = s - i
            on_path = len(next_S2) > 1 and _class(rows_O[i], columns_I[j]) >= SCALAR_CLASSES
            value = (np.float32(codes_OI[i, j]) - (np.float32(0.5) if on_path else np.float32(0))) * steps_OI[i, j]
            error_IO[j, i] = w_OI[i, j] - value
            carried_OI[i, j] = error_IO[j, i] + below[i - first]


@_compiled
def _targets_(
    target: Any,
    below: Any,
    w_OI: Any,
    error_IO: Any,
    carried_OI: Any,
    columns_II: Any,
    rows_OO: Any,
    first: int,
    last: int,
    s: int,
) -> None:
    """What each weight of anti-diagonal s should become, and the part of it that comes from the rows below."""
    O, I = w_OI.shape
    for i in range(first, last + 1):
        j = s - i
        total = np.float32(0)
        if len(rows_OO):
            for k in range(i + 1, O):
                total += rows_OO[i, k] * error_IO[j, k]
        below[i - first] = total
        for k in range(j + 1, I):
            total += columns_II[j, k] * carried_OI[i, k]
        target[i - first] = w_OI[i, j] + total


@_compiled
def _class(row: int, column: int) -> int:
    return min(max(row + column, 0), MAX_CLASS)


@_compiled
def _bits(bits: Any, cls: int, symbol: int) -> Any:
    shift = max(0, (cls - (TABLE_CLASSES - 4)) >> 2)
    column = min(max((symbol >> shift) + OFFSET, 0), 255)
    return bits[cls - 4 * shift, column] + np.float32(shift)


@_compiled
def _path_(
    codes_OI: Any,
    target: Any,
    steps_OI: Any,
    rows_O: Any,
    columns_I: Any,
    bits: Any,
    next_S2: Any,
    slope: float,
    low: int,
    high: int,
    first: int,
    last: int,
    s: int,
    before_PS: Any,
    code_PS: Any,
) -> None:
    """Viterbi along one anti-diagonal, from state 0 in its first row to any state in its last."""
    S = len(next_S2)
    huge = np.float32(1e30)
    cost, following = np.full(S, huge, np.float32), np.empty(S, np.float32)
    cost[0] = 0
    subset_cost, subset_code = np.empty(4, np.float32), np.empty(4, np.int64)
    for p in range(last - first + 1):
        i = first + p
        j = s - i
        cls = _class(rows_O[i], columns_I[j])
        x = target[p] / steps_OI[i, j] if steps_OI[i, j] > 0 else np.float32(0)
        if S == 1 or cls < SCALAR_CLASSES:
            code = _scalar(x, 1 if S == 1 else 2, cls, bits, slope, low, high)
            for q in range(S):
                before_PS[p, q], code_PS[p, q] = q, code
            continue
        _subsets_(subset_cost, subset_code, x + np.float32(0.5), cls, bits, slope, low, high)
        following[:] = huge
        for q in range(S):
            for z1 in range(2):
                subset = 2 * z1 + (q & 1)
                total, to = cost[q] + subset_cost[subset], next_S2[q, z1]
                if total < following[to]:
                    following[to] = total
                    before_PS[p, to], code_PS[p, to] = q, subset_code[subset]
        least = following.min()
        for q in range(S):
            cost[q] = min(following[q] - least, huge)
    q = int(np.argmin(cost))
    for p in range(last - first, -1, -1):
        codes_OI[first + p, s - first - p] = code_PS[p, q]
        q = before_PS[p, q]


@_compiled
def _scalar(x: Any, spacing: int, cls: int, bits: Any, slope: float, low: int, high: int) -> int:
    """The better of the two multiples of `spacing` around x, nearest first; the coder's symbol is the multiple."""
    k = int(np.rint(x / spacing))
    k = min(max(k, -((-low) // spacing)), high // spacing)
    inner = k - 1 if k > 0 else k + 1
    if k == 0 or slope == 0:
        return k * spacing
    near, far = x - k * spacing, x - inner * spacing
    gain = slope * (_bits(bits, cls, k) - _bits(bits, cls, inner))
    return (inner if far * far < near * near + gain else k) * spacing


@_compiled
def _subsets_(subset_cost: Any, subset_code: Any, x: Any, cls: int, bits: Any, slope: float, low: int, high: int) -> None:
    """The best code of each subset t mod 4: the nearest to x, or the next one towards zero if that saves more than it costs."""
    for r in range(4):
        t = 4 * int(np.rint((x - r) * np.float32(0.25))) + r
        t += 4 * max(0, (low - t + 3) // 4) - 4 * max(0, (t - high + 3) // 4)
        inner = t - 4 if t > 0 else t + 4
        best = (x - t) * (x - t)
        if slope > 0:
            sign = 1 - 2 * (r & 1)
            best += slope * _bits(bits, cls, sign * (t >> 1))
            other = (x - inner) * (x - inner) + slope * _bits(bits, cls, sign * (inner >> 1))
            if other < best:
                best, t = other, inner
        subset_cost[r], subset_code[r] = best, t
