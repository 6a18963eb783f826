"""Two-sided error feedback: round a matrix path by path, each along its best way through the trellis.

Error feedback rounds targets, not weights (GPTQ, Frantar et al. 2022, arXiv 2210.17323, along columns; YAQA, Tseng et al. 2025,
arXiv 2505.22988, on both sides). With the unit triangles of factors.py and errors E = W - Ŵ, the targets are

    T = W + U_Gᵀ E + C U_H        C = E + U_Gᵀ E, the carried errors

so the target of weight (i, j) depends on the errors of rows below and columns to the right alone. Weights that do not feed each
other can be one path of the trellis. There are two orders (quantlab.format_rules):

- blocks: the matrix is cut into blocks of 32 x 32. Those on one anti-diagonal of blocks do not feed each other. Before such a
  set is rounded, all that finished blocks feed in comes from matrix products; short sums remain inside the blocks. A path is
  the same anti-diagonal of every block of the set.
- columns: without feedback between rows a whole column is a path, and what columns to the right feed in is one product.

Entropy-coded trellis quantization (Fischer and Wang 1992) chooses the codes t of a path by the least sum of

    (T / step - point of t)² + slope · bits of t

Of all paths that reach a state, only the cheapest can be part of the best one. The Viterbi algorithm keeps one survivor a state
and traces the cheapest back from the end. The trellis itself (its points, codes and states) and the scale classes that bypass
it are rules of the format and stand in quantlab.format_rules.

reference.py is the reference implementation in plain numpy, as short as the formulas; tests compare the codes.

Legend
    O, I      rows (outputs), columns (inputs)
    B, P, Q   edge of a block; rows and columns of blocks: block (p, q) begins at row p·B and column q·B
    d, t      anti-diagonal of blocks, p + q; anti-diagonal inside every block of it
    i, j      row and column inside a block
    L, z      weights of the longest path; place of a weight in the set's column of blocks, z = (p - first p)·B + i
    S, q      states of the trellis; a state
    C, N      scale classes, columns of a table
    x         target in steps
    code      t in the formula above; on a path 2k + (q mod 2). Its symbol, which the coder sees, is ±k
    name_     a function that writes into its arguments
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.shaped_grid import step_table
from quantlab.format_rules import PATH_BLOCK, sum_classes
from quantlab.methods.trellis.factors import Factors, Panels
from quantlab.methods.trellis.path_rules import PathRules, PathTrellis, path_rules
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

    Paths are columns where `parts` has no feedback between rows, else those of blocks.

    Args:
        grid: steps; codes stay within its width.
        parts: triangular factors of both sides of the Fisher information.
        rates: what the coder that will store the codes charges; scale classes decide which weights bypass the trellis.
        states: number of states of the trellis, 1 for plain rounding.
        slope: squared steps that a bit may cost.
    """
    class_OI = sum_classes(rates.rows_O, rates.columns_I).astype(np.uint8)
    steps_U = step_table(grid.level)
    a_O, b_I = grid.a_O.astype(np.int64), grid.b_I.astype(np.int64)
    rules = path_rules(states, grid.bits, rates.bits, slope)
    if parts.rows is None:
        matrix = _Matrix(_turned(w_OI), _turned(class_OI), b_I, a_O, steps_U, _inverse(steps_U))
        codes_IO = np.zeros(matrix.w_OI.shape, np.int16)
        _round_columns_(codes_IO, matrix, parts.columns.far, parts.columns.near_DN, rules)
        return _turned(codes_IO)
    matrix = _Matrix(np.ascontiguousarray(w_OI), class_OI, a_O, b_I, steps_U, _inverse(steps_U))
    codes_OI = np.zeros(w_OI.shape, np.int16)
    _round_blocks_(codes_OI, matrix, _side(parts.rows, is_reversed=False), _side(parts.columns, is_reversed=True), rules)
    return codes_OI


def _turned(matrix: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(matrix.T)


def _inverse(steps_U: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / step, 0 where a step has underflowed: the weights there are as good as 0 whatever their code."""
    return np.divide(1, steps_U, out=np.zeros_like(steps_U), where=steps_U >= np.finfo(np.float32).tiny)


class _Matrix(NamedTuple):
    """The matrix that is rounded; turned, [I, O], where paths are columns."""

    w_OI: NDArray[np.float32]
    class_OI: NDArray[np.uint8]
    """Scale class of each weight."""
    a_O: NDArray[np.int64]
    """Row scales: the step of a weight is steps_U[a + b + 256]."""
    b_I: NDArray[np.int64]
    steps_U: NDArray[np.float32]
    inverse_U: NDArray[np.float32]
    """1 / step."""


class _Side(NamedTuple):
    """Feedback along one side of a matrix in blocks (factors.Panels)."""

    far: NDArray[np.float32]
    near_DN: NDArray[np.float32]
    """Shares of errors inside a block; reversed along N for columns, where places fall as rows rise. Zeros frame it."""


def _side(panels: Panels, *, is_reversed: bool) -> _Side:
    near_DN = panels.near_DN[:, ::-1] if is_reversed else panels.near_DN
    return _Side(panels.far, np.pad(near_DN, ((0, 0), (PATH_BLOCK, PATH_BLOCK))))


class _Path(NamedTuple):
    """Working memory for the weights of one path, long enough for the longest."""

    x_L: NDArray[np.float32]
    class_L: NDArray[np.uint8]
    code_L: NDArray[np.float32]
    """Codes of all weights."""
    place_L: NDArray[np.int64]
    """Place in the path of each weight that is on the trellis; the arrays after it hold these weights alone."""
    cost_L4: NDArray[np.float32]
    """Cost of the best code of each subset."""
    code_L4: NDArray[np.float32]
    """The best code of each subset."""
    second_LS: NDArray[np.uint8]
    """Whether the cheapest path to each state came from the second state before it; bits of one byte for 8 states."""


@_compiled
def _empty_path(longest: int, S: int) -> _Path:
    return _Path(
        np.empty(longest, np.float32),
        np.empty(longest, np.uint8),
        np.empty(longest, np.float32),
        np.empty(longest, np.int64),
        np.empty((longest, 4), np.float32),
        np.empty((longest, 4), np.float32),
        np.empty((longest, S), np.uint8),
    )


@_compiled
def _find_best_path_(path: _Path, rules: PathRules, length: int) -> None:
    """Fill in the codes of the cheapest path, from state 0 before the first weight to any state after the last."""
    on_path = _round_scalars_(path, rules, length)
    _price_subsets_(path, rules, on_path)
    if len(rules.trellis.before_S2) == 8:
        _search_8_states_(path, on_path)
    elif len(rules.trellis.before_S2) > 1:
        _search_(path, rules.trellis, on_path)


@_compiled
def _round_scalars_(path: _Path, rules: PathRules, length: int) -> int:
    """Fill in the codes of weights that bypass the trellis and the places of the others; return the number of these."""
    trellis, prices = rules.trellis, rules.prices
    count = 0
    for p in range(length):
        cls = path.class_L[p]
        if cls >= trellis.scalar_classes:
            path.place_L[count] = p
            count += 1
            continue
        zero, share = prices.zero_C[cls], prices.share_C[cls]
        x = path.x_L[p] / np.float32(trellis.spacing)
        k = min(max(np.rint(x), np.float32(trellis.least)), np.float32(trellis.most))
        inner = k - np.float32(1) if k > 0 else k + np.float32(1)
        if k != 0:  # the next code towards zero where that saves more bits than it costs
            scale = np.float32(trellis.spacing * trellis.spacing)
            near = (x - k) * (x - k) * scale + prices.of_symbol[zero + _column(k * share)]
            far = (x - inner) * (x - inner) * scale + prices.of_symbol[zero + _column(inner * share)]
            k = inner if far < near else k
        path.code_L[p] = k * np.float32(trellis.spacing)
    return count


@_compiled
def _column(symbol: Any) -> Any:
    """Return the column of a symbol less that of symbol 0; symbols beyond the table are priced like its last ones."""
    return np.int32(min(max(np.floor(symbol), np.float32(-128)), np.float32(127)))


@_compiled
def _price_subsets_(path: _Path, rules: PathRules, count: int) -> None:
    """Fill in the best code of each subset and its cost: the one next to x, or the next one towards zero."""
    trellis, prices = rules.trellis, rules.prices
    for p in range(count):
        place = path.place_L[p]
        cls = path.class_L[place]
        zero, share = prices.zero_C[cls], prices.share_C[cls]
        x = path.x_L[place] + np.float32(0.5)
        for r in range(4):
            odd = np.float32(r & 1)
            to_symbol = (np.float32(0.5) - odd) * share
            t = np.rint((x - np.float32(r)) * np.float32(0.25)) * np.float32(4) + np.float32(r)
            t = min(max(t, trellis.low_4[r]), trellis.high_4[r])
            inner = t - np.float32(4) if t > 0 else t + np.float32(4)
            near = (x - t) * (x - t) + prices.of_symbol[zero + _column((t - odd) * to_symbol)]
            far = (x - inner) * (x - inner) + prices.of_symbol[zero + _column((inner - odd) * to_symbol)]
            path.cost_L4[p, r] = min(near, far)
            path.code_L4[p, r] = inner if far < near else t


@_compiled
def _search_(path: _Path, trellis: PathTrellis, count: int) -> None:
    """Viterbi for any number of states: of the two paths into each state the cheaper one stays, of equals the first."""
    S = len(trellis.before_S2)
    cost_S, reached_S = np.full(S, _HUGE, np.float32), np.empty(S, np.float32)
    cost_S[0] = 0
    for p in range(count):
        for q in range(S):
            first = cost_S[trellis.before_S2[q, 0]] + path.cost_L4[p, trellis.subset_S2[q, 0]]
            second = cost_S[trellis.before_S2[q, 1]] + path.cost_L4[p, trellis.subset_S2[q, 1]]
            path.second_LS[p, q] = second < first
            reached_S[q] = min(first, second)
        least = reached_S.min()
        for q in range(S):
            cost_S[q] = min(reached_S[q] - least, _HUGE)
    q = int(np.argmin(cost_S))
    for p in range(count - 1, -1, -1):
        came = path.second_LS[p, q]
        path.code_L[path.place_L[p]] = path.code_L4[p, trellis.subset_S2[q, came]]
        q = trellis.before_S2[q, came]


@_compiled
def _search_8_states_(path: _Path, count: int) -> None:
    """Do what `_search_` does for 8 states in a fraction of the time: costs stay in registers, choices are bits of one byte.

    State q of 0 to 3 follows the even states 2q and 2(q ^ 2), state q of 4 to 7 the odd ones 2((q - 4) ^ 1) + 1 and
    2((q - 4) ^ 3) + 1; the first of each pair with a code of subset 0 or 1, the second with one of subset 2 or 3.
    """
    c0 = np.float32(0)
    c1 = c2 = c3 = c4 = c5 = c6 = c7 = _HUGE
    for p in range(count):
        s0, s1, s2, s3 = path.cost_L4[p, 0], path.cost_L4[p, 1], path.cost_L4[p, 2], path.cost_L4[p, 3]
        a0, a1, a2, a3 = c0 + s0, c2 + s0, c4 + s0, c6 + s0
        b0, b1, b2, b3 = c4 + s2, c6 + s2, c0 + s2, c2 + s2
        a4, a5, a6, a7 = c3 + s1, c1 + s1, c7 + s1, c5 + s1
        b4, b5, b6, b7 = c7 + s3, c5 + s3, c3 + s3, c1 + s3
        low = (b0 < a0) | ((b1 < a1) << 1) | ((b2 < a2) << 2) | ((b3 < a3) << 3)
        high = (b4 < a4) | ((b5 < a5) << 1) | ((b6 < a6) << 2) | ((b7 < a7) << 3)
        path.second_LS[p, 0] = low | (high << 4)
        c0, c1, c2, c3 = min(a0, b0), min(a1, b1), min(a2, b2), min(a3, b3)
        c4, c5, c6, c7 = min(a4, b4), min(a5, b5), min(a6, b6), min(a7, b7)
        if p & 15 == 15:  # small numbers keep their digits
            least = min(min(min(c0, c1), min(c2, c3)), min(min(c4, c5), min(c6, c7)))
            c0, c1, c2, c3 = c0 - least, c1 - least, c2 - least, c3 - least
            c4, c5, c6, c7 = c4 - least, c5 - least, c6 - least, c7 - least
    q = 0
    least = c0
    for state, cost in ((1, c1), (2, c2), (3, c3), (4, c4), (5, c5), (6, c6), (7, c7)):
        if cost < least:
            q, least = state, cost
    for p in range(count - 1, -1, -1):
        came = path.second_LS[p, 0] >> q & 1
        odd = q >> 2
        path.code_L[path.place_L[p]] = path.code_L4[p, 2 * came + odd]
        q = 2 * (((q & 3) ^ odd) ^ (2 * came)) + odd


class _Set(NamedTuple):
    """The blocks of one anti-diagonal of blocks while they are rounded, and what was fed into them."""

    below_PBB: NDArray[np.float32]
    """Part of the targets that comes from the blocks below: U_Gᵀ E."""
    right_PBB: NDArray[np.float32]
    """Part of the targets that comes from the blocks to the right: C U_H."""
    error_TZ: NDArray[np.float32]
    """Errors of the weights on anti-diagonal t, at the place z of each."""
    carried_TZ: NDArray[np.float32]
    """Carried errors of the weights on anti-diagonal t."""
    below_Z: NDArray[np.float32]
    """Part of the targets that comes from the rows below."""
    right_Z: NDArray[np.float32]
    """Part of the targets that comes from the columns to the right inside the blocks."""
    place_L: NDArray[np.int64]
    """Place z of each weight of the path."""


class _Done(NamedTuple):
    """Errors of all finished weights, in the order in which products read them."""

    error_QOB: NDArray[np.float32]
    """Errors, one column of blocks after the other."""
    carried_PIB: NDArray[np.float32]
    """Carried errors, one row of blocks after the other, each turned."""


@_compiled
def _round_blocks_(codes_OI: NDArray[np.int16], matrix: _Matrix, rows: _Side, columns: _Side, rules: PathRules) -> None:
    """Round all anti-diagonals of blocks, from the last to the first."""
    O, I = codes_OI.shape
    B = len(rows.near_DN)
    P, Q = -(-O // B), -(-I // B)
    most = min(P, Q)
    path = _empty_path(most * B, len(rules.trellis.before_S2))
    done = _Done(np.zeros((Q, P * B, B), np.float32), np.zeros((P, Q * B, B), np.float32))
    blocks = _Set(
        np.zeros((most, B, B), np.float32),
        np.zeros((most, B, B), np.float32),
        np.zeros((2 * B - 1, (most + 1) * B), np.float32),
        np.zeros((2 * B - 1, most * B), np.float32),
        np.zeros(most * B, np.float32),
        np.zeros(most * B, np.float32),
        np.zeros(most * B, np.int64),
    )
    for d in range(P + Q - 2, -1, -1):
        first, last = max(0, d - (Q - 1)), min(P - 1, d)
        for p in range(first, last + 1):
            _feed_block_(blocks, done, rows.far, columns.far, p - first, p, d - p)
        for t in range(2 * B - 2, -1, -1):
            _feed_near_(blocks, rows.near_DN, columns.near_DN, Q, d, t, first, last)
            length = _collect_(path, blocks, matrix, d, t, first, last)
            _find_best_path_(path, rules, length)
            _store_(codes_OI, blocks, done, path, matrix, rules.trellis.scalar_classes, length, d, t, first)


@_compiled
def _panel(far: NDArray[np.float32], number: int, size: int, B: int) -> Any:
    """Return one panel of `factors.Panels.far`, [places after its block, B]."""
    start = B * (number * size - B * (number * (number + 1) // 2))
    length = size - (number + 1) * B
    return far[start : start + length * B].reshape(length, B)


@_compiled
def _feed_block_(blocks: _Set, done: _Done, far_rows: Any, far_columns: Any, at: int, p: int, q: int) -> None:
    """Compute what finished blocks feed into block (p, q), number `at` of its set."""
    Q, height, B = done.error_QOB.shape
    P, width, _ = done.carried_PIB.shape
    blocks.below_PBB[at], blocks.right_PBB[at] = 0, 0
    if p + 1 < P:
        np.dot(_panel(far_rows, p, height, B).T, done.error_QOB[q, (p + 1) * B :], blocks.below_PBB[at])
    if q + 1 < Q:
        np.dot(done.carried_PIB[p, (q + 1) * B :].T, _panel(far_columns, q, width, B), blocks.right_PBB[at])


@_compiled
def _feed_near_(blocks: _Set, near_rows: Any, near_columns: Any, Q: int, d: int, t: int, first: int, last: int) -> None:
    """Compute what finished weights of the same blocks feed into anti-diagonal t, for all places at once.

    A weight `delta` rows below or columns to the right is on anti-diagonal t + delta. At places that are not on anti-diagonal t
    the sums mean nothing, and nobody reads them.
    """
    B = len(near_rows)
    size = (last - first + 1) * B
    below, right = blocks.below_Z[:size], blocks.right_Z[:size]
    below[:], right[:] = 0, 0
    row = B + first * B
    column = B + (Q * B - 1) - (d * B + t) + first * B  # near_columns is reversed: places rise with rows
    for delta in range(1, min(B, 2 * B - 1 - t)):
        share, error = near_rows[delta, row : row + size], blocks.error_TZ[t + delta, delta : delta + size]
        for z in range(size):
            below[z] += share[z] * error[z]
        share, carried = near_columns[delta, column : column + size], blocks.carried_TZ[t + delta, :size]
        for z in range(size):
            right[z] += share[z] * carried[z]


@_compiled
def _collect_(path: _Path, blocks: _Set, matrix: _Matrix, d: int, t: int, first: int, last: int) -> int:
    """Fill in targets and scale classes of anti-diagonal t of all blocks; return the number of weights."""
    O, I = matrix.w_OI.shape
    B = blocks.below_PBB.shape[1]
    length = 0
    for n in range(last - first + 1):
        for i in range(max(0, t - B + 1), min(t, B - 1) + 1):
            z = n * B + i
            row = first * B + z
            column = d * B + t - row
            if row >= O or column >= I:
                blocks.error_TZ[t, z], blocks.carried_TZ[t, z] = 0, 0
                continue
            blocks.below_Z[z] += blocks.below_PBB[n, i, t - i]
            target = matrix.w_OI[row, column] + (blocks.below_Z[z] + blocks.right_Z[z] + blocks.right_PBB[n, i, t - i])
            path.x_L[length] = target * matrix.inverse_U[matrix.a_O[row] + matrix.b_I[column] + 256]
            path.class_L[length] = matrix.class_OI[row, column]
            blocks.place_L[length] = z
            length += 1
    return length


@_compiled
def _store_(
    codes_OI: Any, blocks: _Set, done: _Done, path: _Path, matrix: _Matrix, scalar: int, length: int, d: int, t: int, first: int
) -> None:
    """Write down the codes of anti-diagonal t and the errors that they leave."""
    B = blocks.below_PBB.shape[1]
    for at in range(length):
        z = blocks.place_L[at]
        n, i = z // B, z % B
        row = first * B + z
        column = d * B + t - row
        code = path.code_L[at]
        codes_OI[row, column] = np.int16(code)
        value = code - np.float32(0.5) if path.class_L[at] >= scalar else code
        error = matrix.w_OI[row, column] - value * matrix.steps_U[matrix.a_O[row] + matrix.b_I[column] + 256]
        carried = error + blocks.below_Z[z]
        blocks.error_TZ[t, z], blocks.carried_TZ[t, z] = error, carried
        done.error_QOB[d - first - n, row, t - i] = error
        done.carried_PIB[first + n, column, i] = carried


@_compiled
def _round_columns_(codes_IO: NDArray[np.int16], matrix: _Matrix, far: Any, near_DN: Any, rules: PathRules) -> None:
    """Round all columns, from the last to the first. The matrix is turned: its rows are the columns."""
    I, O = codes_IO.shape
    B = len(near_DN)
    Q = -(-I // B)
    path = _empty_path(O, len(rules.trellis.before_S2))
    error_IO = np.zeros((Q * B, O), np.float32)
    right_BO = np.zeros((B, O), np.float32)
    for q in range(Q - 1, -1, -1):
        right_BO[:] = 0
        if q + 1 < Q:
            np.dot(_panel(far, q, Q * B, B).T, error_IO[(q + 1) * B :], right_BO)
        for j in range(min(B, I - q * B) - 1, -1, -1):
            column = q * B + j
            for delta in range(1, B - j):
                share, error = near_DN[delta, column], error_IO[column + delta]
                for i in range(O):
                    right_BO[j, i] += share * error[i]
            _round_column_(codes_IO[column], error_IO[column], right_BO[j], path, matrix, rules, column)


@_compiled
def _round_column_(
    codes_O: Any, error_O: Any, right_O: Any, path: _Path, matrix: _Matrix, rules: PathRules, column: int
) -> None:
    """Round one column, and write down the errors that its codes leave."""
    w_O, class_O, unit = matrix.w_OI[column], matrix.class_OI[column], matrix.a_O[column] + 256
    for i in range(len(w_O)):
        path.x_L[i] = (w_O[i] + right_O[i]) * matrix.inverse_U[unit + matrix.b_I[i]]
        path.class_L[i] = class_O[i]
    _find_best_path_(path, rules, len(w_O))
    for i in range(len(w_O)):
        code = path.code_L[i]
        codes_O[i] = np.int16(code)
        value = code - np.float32(0.5) if class_O[i] >= rules.trellis.scalar_classes else code
        error_O[i] = w_O[i] - value * matrix.steps_U[unit + matrix.b_I[i]]
