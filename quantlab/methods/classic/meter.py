"""Quantize one matrix on one grid and measure the result: bytes after the real codec, and predicted KL in nats per token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.artifact.container import Section
from quantlab.artifact.writer import GridPayload, smallest_section
from quantlab.calib.fisher import Use, column_hessian, predicted_kl
from quantlab.coding.codecs import BROTLI, CODECS, codes_to_bytes
from quantlab.format_rules import code_limit
from quantlab.methods.classic.gptq import feedback, gptq
from quantlab.methods.classic.row_grid import RowGrid, Setting, coarse_settings, round_to_nearest, row_grid, smallest_setting
from quantlab.methods.method import Point


@dataclass(frozen=True, slots=True)
class Measured:
    """A point and the stream that it was measured on."""

    point: Point
    grid: RowGrid
    stream: bytes
    """Codes under brotli-11. The file takes the smallest codec, so it is never larger."""


class TensorMeter:
    """Measures one matrix on row grids and remembers every measurement.

    Args:
        name: name of the matrix.
        w_OI: weights, float32 [O, I].
        uses: every way in which the model uses the matrix.
        widths: code widths in bits that the matrix may take.
        feeds_back: whether rounding errors are fed back along columns (GPTQ); otherwise weights are rounded to nearest (RTN).
    """

    def __init__(self, name: str, w_OI: Tensor, uses: tuple[Use, ...], widths: Sequence[int], *, feeds_back: bool) -> None:
        self.name, self.w_OI, self.uses, self.widths = name, w_OI, uses, sorted(widths)
        self.measured: dict[Setting, Measured] = {}
        self._feedback = feedback(name, column_hessian(uses)) if feeds_back else None
        self.coarse, self.smallest = coarse_settings(widths), smallest_setting(widths)

    def measure(self, bits: int, clip: float) -> Measured:
        """Quantize on the grid of one setting."""
        setting = Setting(bits, clip)
        if setting not in self.measured:
            grid = row_grid(self.w_OI, bits=bits, clip=clip)
            q_OI = self._round(grid)
            error_OI = self.w_OI - q_OI * grid.steps_OI
            stream = CODECS[BROTLI].encode(codes_to_bytes(q_OI.numpy()))
            point = Point(bits, clip, len(stream), predicted_kl(error_OI, self.uses))
            self.measured[setting] = Measured(point, grid, stream)
        return self.measured[setting]

    @property
    def points(self) -> list[Point]:
        """All points measured so far, by width and clip."""
        return [self.measured[setting].point for setting in sorted(self.measured)]

    def reconstruct(self, point: Point) -> Tensor:
        """Return the weights float32 [O, I] whose predicted KL was measured: what every reader of the file must get."""
        return self._codes(point) * self._found(point).grid.steps_OI

    def payload(self, point: Point) -> GridPayload:
        """Return the measured matrix ready for the file: the smallest codec, and the narrowest allowed width for its codes."""
        measured = self._found(point)
        q_OI = self._codes(point)
        largest = int(q_OI.abs().max())
        bits = next(b for b in self.widths if largest <= code_limit(b))
        best = smallest_section(codes_to_bytes(q_OI.numpy()))
        codes = best if len(best.stored) < len(measured.stream) else Section(BROTLI, q_OI.numel(), measured.stream)
        return GridPayload(measured.grid.entry(self.name, tuple(self.w_OI.shape), bits), measured.grid.scale_O, codes)

    def _found(self, point: Point) -> Measured:
        return self.measured[Setting(point.bits, point.setting)]

    def _round(self, grid: RowGrid) -> Tensor:
        if self._feedback is None:
            return round_to_nearest(self.w_OI, grid)
        return gptq(self.w_OI, grid, self._feedback)

    def _codes(self, point: Point) -> Tensor:
        """Decode codes int8 [O, I] from the stream that was measured."""
        raw = CODECS[BROTLI].decode(self._found(point).stream, self.w_OI.numel())
        return torch.frombuffer(bytearray(raw), dtype=torch.int8).view(self.w_OI.shape[1], -1).T
