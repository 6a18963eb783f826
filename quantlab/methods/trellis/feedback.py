"""Two-sided error feedback: round a matrix anti-diagonal by anti-diagonal, each along its best path through the trellis.

Error feedback rounds targets, not weights (GPTQ, Frantar et al. 2022, arXiv 2210.17323, along columns; YAQA, Tseng et al. 2025,
arXiv 2505.22988, on both sides). With the unit triangles of factors.py and errors E = W - Ŵ, the targets are

    T = W + U_Gᵀ E + (E + U_Gᵀ E) U_H

so the target of weight (i, j) depends on the errors of rows below and columns to the right alone. Weights are rounded from the
last row and column to the first. Those of one anti-diagonal do not feed each other: together they are one path of the trellis.

Entropy-coded trellis quantization (Fischer and Wang 1992) chooses the codes t of a path by the least sum of

    (T / step - point of t)² + slope · bits of t

Of all paths that reach a state, only the cheapest can be part of the best one. The Viterbi algorithm keeps one survivor a state
and traces the cheapest back from the end. The trellis itself (its points, codes and states) and the scale classes that bypass
it are rules of the format and stand in quantlab.format_rules.

reference.py is the reference implementation in plain numpy, as short as the formulas; tests compare the codes.

Legend
    O, I, S   rows (outputs), columns (inputs), states of the trellis
    P         weights of a path, from its first row to its last; its p-th weight is (first + p, s - first - p)
    C, N      scale classes, columns of a table
    s         anti-diagonal: row + column
    x         target in steps
    t         code, on a path 2k + (q mod 2); its symbol, which the coder sees, is ±k
    q         state before a weight; z = k mod 2 chooses the state after it
    name_     a function that writes into its arguments
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from quantlab.format_rules import MAX_CLASS, OFFSET, SCALAR_CLASSES, code_range, next_states, shifts_of, tables_of
from quantlab.methods.trellis.factors import Factors
from quantlab.methods.trellis.shape import ScaledGrid

# Sums may be reordered for speed; results depend on the machine that packs, never on the one that reads.
# All compiled functions are in this file, and constants of other files are arguments: a compiled function is cached under the
# date of its own file alone.
_compiled = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")

_HUGE = np.float32(1e30)


class Rates(NamedTuple):
    """Bits that the entropy coder charges, by scale class and symbol."""

    rows_O: NDArray[np.int16]
    """Share of each row in the scale class."""
    columns_I: NDArray[np.int16]
    """Share of each column in the scale class."""
    bits: NDArray[np.float32]
    """Bits of each symbol in each table, [28, 256]; not read where the slope is 0."""


def round_with_feedback(
    w_OI: NDArray[np.float32], grid: ScaledGrid, parts: Factors, rates: Rates, *, states: int, slope: float
) -> NDArray[np.int16]:
    """Return the codes int16 [O, I] of float32 weights [O, I].

    Args:
        grid: steps; codes stay within its width.
        parts: triangular factors of both sides of the Fisher information.
        rates: what the coder that will store the codes charges; scale classes decide which weights bypass the trellis.
        states: number of states of the trellis, 1 for plain rounding.
        slope: squared steps that a bit may cost.
    """
    codes_OI = np.zeros(w_OI.shape, np.int16)
    matrix = _Matrix(w_OI, np.ascontiguousarray(grid.steps_OI), rates.rows_O, rates.columns_I, MAX_CLASS)
    feedback = _Feedback(parts.rows_OO, parts.columns_II)
    _round_(codes_OI, matrix, feedback, _trellis(states, grid.bits), _prices(rates.bits, float(slope)))
    return codes_OI


class _Matrix(NamedTuple):
    """The matrix that is rounded: weights, steps and scale classes."""

    w_OI: NDArray[np.float32]
    steps_OI: NDArray[np.float32]
    rows_O: NDArray[np.int16]
    columns_I: NDArray[np.int16]
    """Share of each column in the scale class."""
    max_class: int
    """Highest scale class: that of a weight is the sum of its row's and its column's share, clipped to 0 .. max_class."""


class _Feedback(NamedTuple):
    """Shares of an error in the targets of other weights: above the diagonal, 0 elsewhere."""

    rows_OO: NDArray[np.float32]
    """U_Gᵀ; [0, 0] without feedback between rows."""
    columns_II: NDArray[np.float32]
    """U_Hᵀ."""


class _Trellis(NamedTuple):
    """The codes that a path may take."""

    next_S2: NDArray[np.uint8]
    """State after each state and z."""
    low: int
    """Least code."""
    high: int
    """Largest code."""
    scalar_classes: int
    """Scale classes below it bypass the trellis."""


class _Prices(NamedTuple):
    """Prices of symbols in the cost of a path."""

    slope: float
    """Squared steps that a bit may cost."""
    bits: NDArray[np.float32]
    """Bits of each symbol, without its raw bits, in each table."""
    table_C: NDArray[np.int64]
    """Table of each scale class."""
    raw_C: NDArray[np.int64]
    """Number of the lowest bits of a symbol that are sent raw, for each scale class."""
    zero: int
    """Column of symbol 0 in a table."""


class _Price(NamedTuple):
    """Prices of the symbols of one weight, whose scale class is known."""

    slope: float
    bits_N: NDArray[np.float32]
    """Bits of each symbol, without its raw bits, in the table of the scale class."""
    raw: int
    zero: int


class _Errors(NamedTuple):
    """Errors of the weights that are rounded; 0 elsewhere."""

    own_IO: NDArray[np.float32]
    """Eᵀ."""
    carried_OI: NDArray[np.float32]
    """E + U_Gᵀ E: the error of a weight and of the rows below it, as the columns before it see it."""


class _Path(NamedTuple):
    """Working memory for one path, long enough for the longest."""

    below_P: NDArray[np.float32]
    """Part of the target that comes from the rows below: U_Gᵀ E."""
    target_P: NDArray[np.float32]
    step_P: NDArray[np.float32]
    class_P: NDArray[np.int64]
    code_P: NDArray[np.int64]
    """Codes of the best path."""
    before_PS: NDArray[np.uint8]
    """State before each weight on the cheapest path to each state after it."""
    code_PS: NDArray[np.int16]
    """Code of each weight on the cheapest path to each state after it."""


def _trellis(states: int, bits: int) -> _Trellis:
    return _Trellis(next_states(states), *code_range(bits, states), MAX_CLASS + 1 if states == 1 else SCALAR_CLASSES)


def _prices(bits: NDArray[np.float32], slope: float) -> _Prices:
    classes_C = np.arange(MAX_CLASS + 1)
    return _Prices(slope, bits, tables_of(classes_C), shifts_of(classes_C), OFFSET)


@_compiled
def _round_(codes_OI: NDArray[np.int16], matrix: _Matrix, feedback: _Feedback, trellis: _Trellis, prices: _Prices) -> None:
    """Round all anti-diagonals, from the last to the first."""
    O, I = codes_OI.shape
    path = _empty_path(min(O, I), len(trellis.next_S2))
    errors = _Errors(np.zeros((I, O), np.float32), np.zeros((O, I), np.float32))
    for s in range(O + I - 2, -1, -1):
        first, last = max(0, s - (I - 1)), min(O - 1, s)
        _set_targets_(path, matrix, feedback, errors, s, first, last)
        _find_best_path_(path, trellis, prices, last - first + 1)
        _store_codes_(codes_OI, errors, path, matrix, trellis, s, first, last)


@_compiled
def _empty_path(longest: int, S: int) -> _Path:
    return _Path(
        np.empty(longest, np.float32),
        np.empty(longest, np.float32),
        np.empty(longest, np.float32),
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.empty((longest, S), np.uint8),
        np.empty((longest, S), np.int16),
    )


@_compiled
def _set_targets_(path: _Path, matrix: _Matrix, feedback: _Feedback, errors: _Errors, s: int, first: int, last: int) -> None:
    """Fill in the targets of anti-diagonal s: row i of U_Gᵀ by column j of E, then row i of E + U_Gᵀ E by row j of U_Hᵀ."""
    rows_OO, columns_II = feedback.rows_OO, feedback.columns_II
    own_IO, carried_OI = errors.own_IO, errors.carried_OI
    O, I = matrix.w_OI.shape
    for i in range(first, last + 1):
        j = s - i
        total = np.float32(0)
        if len(rows_OO):
            for k in range(i + 1, O):
                total += rows_OO[i, k] * own_IO[j, k]
        path.below_P[i - first] = total
        for k in range(j + 1, I):
            total += columns_II[j, k] * carried_OI[i, k]
        path.target_P[i - first] = matrix.w_OI[i, j] + total
        path.step_P[i - first] = matrix.steps_OI[i, j]
        path.class_P[i - first] = min(max(matrix.rows_O[i] + matrix.columns_I[j], 0), matrix.max_class)


@_compiled
def _store_codes_(
    codes_OI: NDArray[np.int16],
    errors: _Errors,
    path: _Path,
    matrix: _Matrix,
    trellis: _Trellis,
    s: int,
    first: int,
    last: int,
) -> None:
    """Write down the codes of anti-diagonal s and the errors that they leave."""
    for i in range(first, last + 1):
        p, j = i - first, s - i
        codes_OI[i, j] = path.code_P[p]
        on_path = path.class_P[p] >= trellis.scalar_classes
        value = (np.float32(codes_OI[i, j]) - (np.float32(0.5) if on_path else np.float32(0))) * matrix.steps_OI[i, j]
        errors.own_IO[j, i] = matrix.w_OI[i, j] - value
        errors.carried_OI[i, j] = errors.own_IO[j, i] + path.below_P[p]


@_compiled
def _find_best_path_(path: _Path, trellis: _Trellis, prices: _Prices, length: int) -> None:
    """Viterbi: fill in the codes of the cheapest path, from state 0 before the first weight to any state after the last."""
    S = len(trellis.next_S2)
    cost_S, reached_S = np.full(S, _HUGE, np.float32), np.empty(S, np.float32)
    cost_S[0] = 0
    subset_cost, subset_code = np.empty(4, np.float32), np.empty(4, np.int64)  # by t mod 4
    for p in range(length):
        cls = path.class_P[p]
        price = _Price(prices.slope, prices.bits[prices.table_C[cls]], prices.raw_C[cls], prices.zero)
        x = path.target_P[p] / path.step_P[p] if path.step_P[p] > 0 else np.float32(0)
        if cls < trellis.scalar_classes:  # the same code, and the same cost, in every state
            code = _scalar_code(x, 1 if S == 1 else 2, price, trellis.low, trellis.high)
            for q in range(S):
                path.before_PS[p, q], path.code_PS[p, q] = q, code
        else:
            _price_subsets_(subset_cost, subset_code, x + np.float32(0.5), price, trellis.low, trellis.high)
            _extend_(path.before_PS[p], path.code_PS[p], cost_S, reached_S, subset_cost, subset_code, trellis.next_S2)
    q = int(np.argmin(cost_S))
    for p in range(length - 1, -1, -1):
        path.code_P[p] = path.code_PS[p, q]
        q = path.before_PS[p, q]


@_compiled
def _extend_(before_S: Any, code_S: Any, cost_S: Any, reached_S: Any, subset_cost: Any, subset_code: Any, next_S2: Any) -> None:
    """Extend the survivors by one weight: of the two paths into each state the cheaper one stays. The least cost becomes 0."""
    S = len(next_S2)
    reached_S[:] = _HUGE
    for q in range(S):
        for z in range(2):
            subset = 2 * z + (q & 1)
            total, to = cost_S[q] + subset_cost[subset], next_S2[q, z]
            if total < reached_S[to]:
                reached_S[to] = total
                before_S[to], code_S[to] = q, subset_code[subset]
    least = reached_S.min()
    for q in range(S):
        cost_S[q] = min(reached_S[q] - least, _HUGE)


@_compiled
def _bits(price: _Price, symbol: int) -> Any:
    """Return the bits of a symbol, raw ones included."""
    column = min(max((symbol >> price.raw) + price.zero, 0), 255)
    return price.bits_N[column] + np.float32(price.raw)


@_compiled
def _scalar_code(x: Any, spacing: int, price: _Price, low: int, high: int) -> int:
    """Return the multiple of `spacing` next to x, or the next one towards zero if that saves more bits than it costs.

    The coder's symbol is the multiple.
    """
    k = int(np.rint(x / spacing))
    k = min(max(k, -((-low) // spacing)), high // spacing)
    inner = k - 1 if k > 0 else k + 1
    if k == 0 or price.slope == 0:
        return k * spacing
    near, far = x - k * spacing, x - inner * spacing
    gain = price.slope * (_bits(price, k) - _bits(price, inner))
    return (inner if far * far < near * near + gain else k) * spacing


@_compiled
def _price_subsets_(subset_cost: Any, subset_code: Any, x: Any, price: _Price, low: int, high: int) -> None:
    """Fill in the best code of each subset t mod 4, and its cost: the one next to x, or the next one towards zero."""
    for r in range(4):
        t = 4 * int(np.rint((x - r) * np.float32(0.25))) + r
        t += 4 * max(0, (low - t + 3) // 4) - 4 * max(0, (t - high + 3) // 4)
        inner = t - 4 if t > 0 else t + 4
        best = (x - t) * (x - t)
        if price.slope > 0:
            sign = 1 - 2 * (r & 1)
            best += price.slope * _bits(price, sign * (t >> 1))
            other = (x - inner) * (x - inner) + price.slope * _bits(price, sign * (inner >> 1))
            if other < best:
                best, t = other, inner
        subset_cost[r], subset_code[r] = best, t
