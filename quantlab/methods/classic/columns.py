"""GPTQ of a whole matrix as compiled functions: far feedback by matrix products, near feedback by short sums.

gptq.py holds the reference implementation, and tests compare the codes. Sums are in another order: a weight that lies within
rounding errors of the middle between two codes may get the other code, and those after it others.

Legend: O rows (outputs), I columns (inputs) in the order in which they are rounded, B columns of a block.
name_: a function that writes into its arguments.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

# All compiled functions are in this file: a compiled function is cached under the date of its own file alone.
_compiled = numba.njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")

BLOCK = 32
"""Columns that are rounded before a matrix product takes their errors to the columns after them."""
STRIP = 256
"""Rows that are rounded together: their errors in a block stay in the cache."""


class _Strip(NamedTuple):
    """Rows of a matrix that are rounded together."""

    first: int
    last: int
    """One past the last row."""
    step_O: NDArray[np.float32]
    inverse_O: NDArray[np.float32]
    """1 / step; 0 where the step is 0."""
    limit: int


@_compiled
def round_columns(
    w_IO: NDArray[np.float32], step_O: NDArray[np.float32], limit: int, shares_II: NDArray[np.float32]
) -> NDArray[np.int8]:
    """Return the codes int8 [I, O] of weights, column after column, each with the errors of all columns before it.

    Args:
        w_IO: contiguous, columns in their order.
        step_O: step of each row; 0 gives code 0.
        limit: codes lie within ±limit, 1 to 127.
        shares_II: lower triangle, the transposed Cholesky factor of the inverse Hessian; contiguous.
    """
    I, O = w_IO.shape
    codes_IO, errors_IO = np.empty((I, O), np.int8), np.empty((I, O), np.float32)
    target_BO = np.empty((BLOCK, O), np.float32)
    inverse_O = np.zeros(O, np.float32)
    for o in range(O):
        if step_O[o] > 0:
            inverse_O[o] = np.float32(1) / step_O[o]
    for lo in range(0, I, BLOCK):
        hi = min(lo + BLOCK, I)
        _feed_far_(target_BO[: hi - lo], w_IO, errors_IO, shares_II, lo, hi)
        for first in range(0, O, STRIP):
            strip = _Strip(first, min(first + STRIP, O), step_O, inverse_O, limit)
            for j in range(lo, hi):
                _feed_near_(target_BO[j - lo], errors_IO, shares_II[j], lo, j, strip)
                _round_column_(codes_IO[j], errors_IO[j], target_BO[j - lo], shares_II[j, j], strip)
    return codes_IO


@_compiled
def _feed_far_(
    target_BO: NDArray[np.float32],
    w_IO: NDArray[np.float32],
    errors_IO: NDArray[np.float32],
    shares_II: NDArray[np.float32],
    lo: int,
    hi: int,
) -> None:
    """Fill in the targets of columns lo to hi: weights less what the errors of columns before lo feed into them."""
    if lo:
        np.dot(shares_II[lo:hi, :lo].copy(), errors_IO[:lo], target_BO)
    else:
        target_BO[:] = np.float32(0)
    for b in range(hi - lo):
        for o in range(w_IO.shape[1]):
            target_BO[b, o] = w_IO[lo + b, o] - target_BO[b, o]


@_compiled
def _feed_near_(
    target_O: NDArray[np.float32],
    errors_IO: NDArray[np.float32],
    share_I: NDArray[np.float32],
    lo: int,
    j: int,
    strip: _Strip,
) -> None:
    """Take from the targets of column j what the errors of columns lo to j feed into it."""
    for i in range(lo, j):
        share, error_O = share_I[i], errors_IO[i]
        for o in range(strip.first, strip.last):
            target_O[o] -= share * error_O[o]


@_compiled
def _round_column_(
    code_O: NDArray[np.int8], error_O: NDArray[np.float32], target_O: NDArray[np.float32], own: np.float32, strip: _Strip
) -> None:
    """Round the targets of one column, and fill in the errors as later columns see them: divided by `own`."""
    limit = np.float32(strip.limit)
    for o in range(strip.first, strip.last):
        code = min(max(np.rint(target_O[o] * strip.inverse_O[o]), -limit), limit)
        code_O[o] = np.int8(code)
        error_O[o] = (target_O[o] - code * strip.step_O[o]) / own
