"""One matrix on its way into a trellis-coded file: factors and row and column scales once, then codes at any log-step index."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.array_file import ArrayFile
from quantlab.artifact.manifest import TrellisTensor
from quantlab.artifact.shaped_grid import context_of, values_of, weights_of
from quantlab.artifact.writer import TrellisPayload
from quantlab.calib.fisher import Use, predicted_kl
from quantlab.format_rules import LOG_STEPS, code_limit
from quantlab.methods.trellis import TrellisOptions
from quantlab.methods.trellis.factors import Factors, factors, stored
from quantlab.methods.trellis.feedback import Rates, round_with_feedback
from quantlab.methods.trellis.scale_classes import ScaleClasses, fit_classes, stored_classes
from quantlab.methods.trellis.shape import ScaledGrid, StepScales

SLOPE = 0.25
"""Squared steps that a bit may cost on a trellis. Equal slope is 0.36 at high rates; a larger one pulls weights to zero."""
SCALAR_SLOPE = 0.08
"""Squared steps that a bit may cost in plain rounding, whose steps are twice as large at equal bits."""

GetUses = Callable[[], tuple[Use, ...]]

FINEST, COARSEST = 14, 16
"""Powers of two below and above the mean weight between which steps are searched: beyond, all codes are at their limit or 0."""


class Rounder:
    """Rounds one matrix on grids that share their row and column scales and differ in the log-step index.

    Names `level` stand for a log-step index, as the key of the manifest does.

    Args:
        uses: returns every way in which the model uses the matrix; called where they are needed, and none is kept.
        options: `states`, `row_scales`, `column_scales` and `row_feedback` are used.
        bits: width of the codes.
        file: holds the factors while nothing is rounded; None keeps them in memory.
    """

    def __init__(
        self, name: str, w_OI: Tensor, uses: GetUses, options: TrellisOptions, bits: int, file: ArrayFile | None = None
    ) -> None:
        self.name, self.uses, self.options, self.bits = name, uses, options, bits
        self.w_OI = w_OI.float().contiguous().numpy()
        self.target_OI = self.w_OI
        """What is rounded, float32 [O, I]: the weights, unless others took their place after other tensors were rounded."""
        parts = factors(name, uses(), row_feedback=options.row_feedback)
        self.paths: Literal["blocks", "columns"] = "columns" if parts.rows is None else "blocks"
        self.scales = StepScales(w_OI, parts, rows=options.row_scales, columns=options.column_scales)
        self._parts = partial(_itself, parts) if file is None else stored(parts, file)

    @property
    def parts(self) -> Factors:
        """Factors of both sides, which are read anew from their file each time."""
        return self._parts()

    def level(self, step_scale: float) -> int:
        """Return the log-step index at which steps are step_scale / (d_O · d_I), within FINEST and COARSEST."""
        size = math.log2(float(np.abs(self.w_OI).mean()) + 1e-30)
        finest, coarsest = (round(LOG_STEPS * (size + powers)) for powers in (-FINEST, COARSEST))
        return min(max(round(self.scales.level(step_scale)), finest), coarsest)

    def first_classes(self, level: int) -> ScaleClasses:
        """Return the scale classes of the weights themselves, before any rounding."""
        grid = self.scales.grid(level, self.bits)
        return stored_classes(grid, *fit_classes(np.divide(self.w_OI, grid.steps_OI, dtype=np.float32)))

    def codes(self, level: int, classes: ScaleClasses, bits: NDArray[np.float32]) -> NDArray[np.int16]:
        """Return the codes int16 [O, I] at a log-step index.

        Args:
            bits: float32 [28, 256], what the coder's tables charge for each symbol.
        """
        grid = self.scales.grid(level, self.bits)
        context = context_of(self._entry(grid, classes), grid.a_O, grid.b_I, classes.rows_O, classes.columns_I)
        states = self.options.states
        slope = SCALAR_SLOPE if states == 1 else SLOPE
        rates = Rates(context.rows_O, context.columns_I, bits)
        return round_with_feedback(self.target_OI, grid, self.parts, rates, states=states, slope=slope)

    def payload(self, level: int, classes: ScaleClasses, codes_OI: NDArray[np.int16]) -> TrellisPayload:
        """Return the codes ready for the file."""
        return self._payload(self.scales.grid(level, self.bits), classes, codes_OI)

    def _payload(self, grid: ScaledGrid, classes: ScaleClasses, codes_OI: NDArray[np.int16]) -> TrellisPayload:
        entry = self._entry(grid, classes)
        return TrellisPayload(entry, grid.a_O, grid.b_I, classes.rows_O, classes.columns_I, codes_OI)

    def _entry(self, grid: ScaledGrid, classes: ScaleClasses) -> TrellisTensor:
        O, I = self.w_OI.shape
        return TrellisTensor(
            name=self.name,
            shape=(O, I),
            bits=self.bits,
            level=grid.level,
            states=self.options.states,
            paths=self.paths,
            classes=classes.base,
            tables=0,
        )

    def zeros(self) -> TrellisPayload:
        """Return the payload that takes the fewest bytes: its every code is zero."""
        flat = ScaledGrid(self.bits, 0, *(np.zeros(n, np.int8) for n in self.w_OI.shape))
        empty = ScaleClasses(0, *(np.zeros(n, np.int8) for n in self.w_OI.shape))
        return self._payload(flat, empty, np.zeros(self.w_OI.shape, np.int16))

    def predicted_kl(self, payload: TrellisPayload) -> float:
        """Return the predicted KL of a payload's rounding errors in nats per token."""
        return predicted_kl(torch.from_numpy(self.target_OI - weights(payload)), self.uses())

    def target_key(self) -> bytes:
        """Return what tells the target from others; nothing for the weights themselves."""
        return b"" if self.target_OI is self.w_OI else hashlib.sha256(self.target_OI.data).digest()


def _itself(parts: Factors) -> Factors:
    return parts


def weights(payload: TrellisPayload) -> NDArray[np.float32]:
    """Return the weights float32 [O, I] that every reader of the file must get."""
    return weights_of(payload.entry, payload.codes_OI, payload.context, payload.a_O, payload.b_I)


def next_classes(payload: TrellisPayload) -> ScaleClasses:
    """Return scale classes fitted to a payload's codes, for the next rounding."""
    grid = ScaledGrid(payload.entry.bits, payload.entry.level, payload.a_O, payload.b_I)
    return stored_classes(grid, *fit_classes(values_of(payload.codes_OI, payload.context)))


def narrowest(payload: TrellisPayload, widths: list[int]) -> TrellisPayload:
    """Return the payload in the narrowest allowed container that holds its codes."""
    largest = int(np.abs(payload.codes_OI.astype(np.int32)).max(initial=0))
    bits = next(b for b in widths if largest <= code_limit(b))
    return replace(payload, entry=replace(payload.entry, bits=bits))
