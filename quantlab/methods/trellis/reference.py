"""Two-sided error feedback and the trellis search in plain numpy: the reference implementation of feedback.py.

Everything is float64 and nothing is reused: targets are matrix products over the whole matrix, the Viterbi algorithm keeps its
survivors in a dictionary, and every code of the grid is tried. The legend of feedback.py holds here too.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.format_rules import (
    COLUMNS,
    OFFSET,
    PATH_BLOCK,
    SCALAR_CLASSES,
    code_range,
    next_states,
    shifts_of,
    sum_classes,
    tables_of,
)
from quantlab.methods.trellis.factors import Factors
from quantlab.methods.trellis.feedback import Rates
from quantlab.methods.trellis.shape import ScaledGrid


def round_reference(
    w_OI: NDArray[np.float32], grid: ScaledGrid, parts: Factors, rates: Rates, *, states: int, slope: float
) -> NDArray[np.int16]:
    """Return what `feedback.round_with_feedback` returns; float32 sums there may decide a tie in another way."""
    O, I = w_OI.shape
    W, steps, classes = w_OI.astype(np.float64), grid.steps_OI, sum_classes(rates.rows_O, rates.columns_I)
    U_G = np.zeros((O, O)) if parts.rows is None else parts.rows.triangle().T
    U_H = parts.columns.triangle().T
    trellis = Trellis(states, *code_range(grid.bits, states), rates.bits, slope)
    codes, E = np.zeros((O, I), np.int16), np.zeros((O, I))
    for cells in reversed(paths(O, I, "columns" if parts.rows is None else "blocks")):
        T = W + U_G.T @ E + (E + U_G.T @ E) @ U_H  # final on this path: all that feeds it is rounded
        x = np.divide(T, steps, out=np.zeros((O, I)), where=steps > 0)
        path = trellis.best_path([x[cell] for cell in cells], [int(classes[cell]) for cell in cells])
        for cell, t in zip(cells, path, strict=True):
            codes[cell] = t
            E[cell] = W[cell] - trellis.point(t, int(classes[cell])) * steps[cell]
    return codes


def paths(O: int, I: int, order: str) -> list[list[tuple[int, int]]]:
    """Return the weights (row, column) of every path of an order of format_rules.PATHS, the last to be rounded first."""
    B = PATH_BLOCK

    def path_of(i: int, j: int) -> tuple[int, ...]:
        return (j,) if order == "columns" else (i // B + j // B, i % B + j % B)

    cells = sorted(((i, j) for i in range(O) for j in range(I)), key=lambda cell: (path_of(*cell), cell))
    return [list(group) for _, group in itertools.groupby(cells, key=lambda cell: path_of(*cell))]


@dataclass(frozen=True, slots=True)
class Trellis:
    """The codes that a path may take, and what each costs."""

    states: int
    low: int
    high: int
    bits: NDArray[np.float32]
    """Bits of each symbol in each table, [28, 256]."""
    slope: float

    def bypassed_by(self, cls: int) -> bool:
        """Whether weights of a scale class bypass the trellis."""
        return self.states == 1 or cls < SCALAR_CLASSES

    def point(self, t: int, cls: int) -> float:
        """Return the value of a code in steps: t - ½ on a path, t off it."""
        return t if self.bypassed_by(cls) else t - 0.5

    def cost(self, x: float, t: int, cls: int) -> float:
        """Return the squared error plus what the bits of the code's symbol cost, in squared steps."""
        k = t if self.states == 1 else t // 2 if t % 2 == 0 else -(t // 2)
        raw, table = (int(of(np.int64(cls))) for of in (shifts_of, tables_of))
        column = min(max((k >> raw) + OFFSET, 0), COLUMNS - 1)
        return (x - self.point(t, cls)) ** 2 + self.slope * (float(self.bits[table, column]) + raw)

    def cheapest(self, x: float, cls: int, codes: Iterable[int]) -> tuple[float, int]:
        """Return the least cost of the codes, and the code that has it."""
        return min((self.cost(x, t, cls), t) for t in codes)

    def best_path(self, x_P: Sequence[float], class_P: Sequence[int]) -> list[int]:
        """Return the codes of the cheapest path from state 0, by the Viterbi algorithm."""
        after, grid = next_states(self.states), range(self.low, self.high + 1)
        survivors: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
        for x, cls in zip(x_P, class_P, strict=True):
            if self.bypassed_by(cls):  # the same code for every survivor, which keeps its state
                cost, t = self.cheapest(x, cls, grid if self.states == 1 else (t for t in grid if t % 2 == 0))
                survivors = {q: (total + cost, [*codes, t]) for q, (total, codes) in survivors.items()}
                continue
            reached: dict[int, tuple[float, list[int]]] = {}
            for q, (total, codes) in survivors.items():
                for z in (0, 1):  # in state q codes t = 2k + (q mod 2) are allowed, and z = k mod 2 chooses the next state
                    cost, t = self.cheapest(x, cls, (t for t in grid if t % 4 == 2 * z + q % 2))
                    to = int(after[q, z])
                    if to not in reached or total + cost < reached[to][0]:
                        reached[to] = (total + cost, [*codes, t])
            survivors = reached
        return min(survivors.values())[1]
