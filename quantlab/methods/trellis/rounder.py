"""One matrix on its way into a trellis-coded file: factors and shape once, then codes at any level."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.manifest import TrellisTensor, code_limit
from quantlab.artifact.shaped_grid import LEVELS, context_of, values_of, weights_of
from quantlab.artifact.writer import TrellisPayload
from quantlab.calib.fisher import Use, predicted_kl
from quantlab.coding.contexts import TensorContext
from quantlab.errors import ConfigError
from quantlab.format_rules import STATES
from quantlab.methods.trellis.factors import factors
from quantlab.methods.trellis.rounding import Rates, round_on_paths
from quantlab.methods.trellis.scale_classes import fit_classes
from quantlab.methods.trellis.shape import Shape, ShapedGrid

SLOPE = 0.25
"""Squared steps that a bit may cost on a trellis. Equal slope is 0.36 at high rates; a larger one pulls weights to zero."""
SCALAR_SLOPE = 0.08
"""The same for plain rounding, whose steps are twice as large at equal bits."""


FINEST, COARSEST = 14, 16
"""Octaves from the mean weight to steps beyond which nothing changes: codes are at their limits, or all zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundingOptions:
    """Which steps of the method are in use; the defaults are all. Benchmarks leave out one at a time."""

    states: int = 8
    row_shape: bool = True
    column_shape: bool = True
    row_feedback: bool = True

    def __post_init__(self) -> None:
        if self.states not in STATES:
            raise ConfigError(f"states must be one of {', '.join(map(str, STATES))}, got {self.states}")


@dataclass(frozen=True, slots=True)
class Classes:
    """What the file stores of a matrix's classes: a number, and int8 deviations of rows and columns (artifact.contexts)."""

    base: int
    rows_O: NDArray[np.int8]
    columns_I: NDArray[np.int8]

    def to_bytes(self) -> bytes:
        """All of it, for a key."""
        return self.base.to_bytes(4, "little", signed=True) + self.rows_O.tobytes() + self.columns_I.tobytes()


class Rounder:
    """Rounds one matrix at levels of one shape."""

    def __init__(self, name: str, w_OI: Tensor, uses: tuple[Use, ...], options: RoundingOptions, bits: int) -> None:
        self.name, self.uses, self.options, self.bits = name, uses, options, bits
        self.w_OI = w_OI.float().contiguous().numpy()
        self.parts = factors(name, uses, row_feedback=options.row_feedback)
        self.shape = Shape(w_OI, self.parts, rows=options.row_shape, columns=options.column_shape)

    def level(self, c: float) -> int:
        """The level of grids with c as their step times the square root of an error's cost, within sense."""
        size = math.log2(float(np.abs(self.w_OI).mean()) + 1e-30)
        finest, coarsest = (round(LEVELS * (size + octaves)) for octaves in (-FINEST, COARSEST))
        return min(max(round(self.shape.level(c)), finest), coarsest)

    def first_classes(self, level: int) -> Classes:
        """Classes of the weights themselves, before any rounding."""
        grid = self.shape.grid(level, self.bits)
        return stored_classes(grid, *fit_classes(np.divide(self.w_OI, grid.steps_OI, dtype=np.float32)))

    def codes(self, level: int, classes: Classes, bits: NDArray[np.float32] | None) -> NDArray[np.int16]:
        """Codes int16 [O, I] at a level; `bits` float32 [28, 256] are those of the coder's tables, None where bits are free."""
        grid = self.shape.grid(level, self.bits)
        context = payload_context(self.payload(level, classes, np.zeros(self.w_OI.shape, np.int16)))
        states = self.options.states
        slope = 0.0 if bits is None else SCALAR_SLOPE if states == 1 else SLOPE
        rates = Rates(context.rows_O, context.columns_I, np.zeros((1, 256), np.float32) if bits is None else bits)
        return round_on_paths(self.w_OI, grid, self.parts, rates, states=states, slope=slope)

    def payload(self, level: int, classes: Classes, codes_OI: NDArray[np.int16]) -> TrellisPayload:
        """Codes ready for the file."""
        return self._payload(self.shape.grid(level, self.bits), classes, codes_OI)

    def _payload(self, grid: ShapedGrid, classes: Classes, codes_OI: NDArray[np.int16]) -> TrellisPayload:
        O, I = codes_OI.shape
        entry = TrellisTensor(
            name=self.name,
            shape=(O, I),
            bits=self.bits,
            level=grid.level,
            states=self.options.states,
            classes=classes.base,
            tables=0,
        )
        return TrellisPayload(entry, grid.a_O, grid.b_I, classes.rows_O, classes.columns_I, codes_OI)

    def zeros(self) -> TrellisPayload:
        """The payload that takes the fewest bytes: nothing but zeros."""
        flat = ShapedGrid(self.bits, 0, *(np.zeros(n, np.int8) for n in self.w_OI.shape))
        empty = Classes(0, *(np.zeros(n, np.int8) for n in self.w_OI.shape))
        return self._payload(flat, empty, np.zeros(self.w_OI.shape, np.int16))

    def predicted_kl(self, payload: TrellisPayload) -> float:
        """Predicted cost in nats per token."""
        return predicted_kl(torch.from_numpy(self.w_OI - weights(payload)), self.uses)


def payload_context(payload: TrellisPayload) -> TensorContext:
    """What the coder must know of a payload."""
    return context_of(payload.entry, payload.a_O, payload.b_I, payload.rows_O, payload.columns_I)


def weights(payload: TrellisPayload) -> NDArray[np.float32]:
    """The weights float32 [O, I] that every reader of the file must get."""
    return weights_of(payload.entry, payload.codes_OI, payload_context(payload), payload.a_O, payload.b_I)


def next_classes(payload: TrellisPayload) -> Classes:
    """Classes fitted to a payload's codes, for the next rounding."""
    grid = ShapedGrid(payload.entry.bits, payload.entry.level, payload.a_O, payload.b_I)
    return stored_classes(grid, *fit_classes(values_of(payload.codes_OI, payload_context(payload))))


def stored_classes(grid: ShapedGrid, rows_O: NDArray[np.int16], columns_I: NDArray[np.int16]) -> Classes:
    """Classes as the file stores them: steps taken off, and the mean, each deviation within int8."""
    rows, columns = rows_O + grid.a_O.astype(np.int16), columns_I + grid.b_I.astype(np.int16)
    middle = round(float(columns.mean()))
    base = round(float(rows.mean())) + middle
    fit = (np.clip(side, -127, 127).astype(np.int8) for side in (rows - (base - middle), columns - middle))
    return Classes(base, *fit)


def narrowest(payload: TrellisPayload, widths: list[int]) -> TrellisPayload:
    """The payload in the narrowest allowed container that holds its codes."""
    largest = int(np.abs(payload.codes_OI.astype(np.int32)).max(initial=0))
    bits = next(b for b in widths if largest <= code_limit(b))
    return replace(payload, entry=replace(payload.entry, bits=bits))
