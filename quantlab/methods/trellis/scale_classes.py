"""Fit the coder's context to a matrix: how large the weights of a row and of a column are, in quarters of an octave.

What a coder sees within a class is close to one distribution, whatever tensor it comes from (coding.classes).
"""

import numpy as np
from numpy.typing import NDArray

UNIT = 4
"""Classes in an octave."""
ZERO = 8
"""Class of weights whose root mean square is one step."""
FLOOR = 0.05
"""Squared steps added to every weight, so that an empty row has a class."""
_ROUNDS = 4


def fit_classes(values_OI: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Shares of rows and columns in the class, int16 [O] and [I]: their sum is about 8 + 4 · log2 of the root mean square.

    Alternating fit of the squares by an outer product.

    Args:
        values_OI: weights in steps, float32 [O, I].
    """
    squares_OI = np.square(values_OI, dtype=np.float32) + np.float32(FLOOR)
    O, I = squares_OI.shape
    columns_I = np.ones(I, np.float32)
    for _ in range(_ROUNDS):
        rows_O = squares_OI @ (1 / columns_I) / I
        columns_I = (1 / rows_O) @ squares_OI / O
    rows, columns = (0.5 * UNIT * np.log2(side.astype(np.float64)) for side in (rows_O, columns_I))
    centre = columns.mean()
    return np.rint(rows + centre + ZERO).astype(np.int16), np.rint(columns - centre).astype(np.int16)
