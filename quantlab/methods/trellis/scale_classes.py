"""Scale classes of a matrix: how large the weights of each row and column are, in quarters of a power of two.

The entropy coder chooses a table by the scale class of a weight, which is the sum of a share of its row and one of its column.
Within a scale class the codes of all matrices have about the same distribution, so a few tables serve a whole model.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.format_rules import CLASSES_PER_POWER
from quantlab.methods.trellis.shape import ScaledGrid

ZERO = 8
"""Scale class of weights whose root mean square is one step."""
FLOOR = 0.05
"""Squared steps added to every weight, so that an empty row has a scale class."""
_ROUNDS = 4
"""Alternations of the fit."""


@dataclass(frozen=True, slots=True)
class ScaleClasses:
    """The scale classes of a matrix as a file stores them: most of a class follows from the steps, and is not stored."""

    base: int
    """Scale class of the whole matrix, less what its steps say."""
    rows_O: NDArray[np.int8]
    """Deviation of each row."""
    columns_I: NDArray[np.int8]
    """Deviation of each column."""

    def to_bytes(self) -> bytes:
        """Return all numbers, for a key."""
        return self.base.to_bytes(4, "little", signed=True) + self.rows_O.tobytes() + self.columns_I.tobytes()


def fit_classes(values_OI: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return the shares of rows and columns in the scale class, int16 [O] and [I].

    Their sum is about 8 + 4 · log2 of the root mean square: an alternating fit of the squares by an outer product.

    Args:
        values_OI: weights in steps, float32 [O, I].
    """
    squares_OI = np.square(values_OI, dtype=np.float32) + np.float32(FLOOR)
    O, I = squares_OI.shape
    columns_I = np.ones(I, np.float32)
    for _ in range(_ROUNDS):
        rows_O = squares_OI @ (1 / columns_I) / I
        columns_I = (1 / rows_O) @ squares_OI / O
    rows, columns = (0.5 * CLASSES_PER_POWER * np.log2(side.astype(np.float64)) for side in (rows_O, columns_I))
    centre = columns.mean()
    return np.rint(rows + centre + ZERO).astype(np.int16), np.rint(columns - centre).astype(np.int16)


def stored_classes(grid: ScaledGrid, rows_O: NDArray[np.int16], columns_I: NDArray[np.int16]) -> ScaleClasses:
    """Return the shares as a file stores them: less the exponents of the steps and the mean, each deviation within int8."""
    rows, columns = rows_O + grid.a_O.astype(np.int16), columns_I + grid.b_I.astype(np.int16)
    middle = round(float(columns.mean()))
    base = round(float(rows.mean())) + middle
    fit = (np.clip(side, -127, 127).astype(np.int8) for side in (rows - (base - middle), columns - middle))
    return ScaleClasses(base, *fit)
