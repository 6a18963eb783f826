"""Quantize one tensor one way and measure what that costs: bytes after the real codec, predicted_kl in nats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantlab.artifact.container import Section
from quantlab.artifact.manifest import code_limit
from quantlab.artifact.writer import GridPayload, smallest_section
from quantlab.calib.fisher import Use, column_hessian, predicted_kl
from quantlab.coding.codecs import BROTLI, CODECS, codes_to_bytes
from quantlab.methods.classic.gptq import feedback, gptq
from quantlab.methods.classic.knapsack import Point
from quantlab.methods.classic.row_grid import RowGrid, Setting, round_to_nearest, row_family

Method = Literal["rtn", "gptq"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A point and the stream that it was measured on."""

    point: Point
    grid: RowGrid
    stream: bytes
    """Codes under brotli-11: the file takes the smallest codec, so it is never larger."""


class TensorMeter:
    """Measures one matrix on the grids of a family; each measurement is kept."""

    def __init__(self, name: str, w_OI: Tensor, uses: tuple[Use, ...], method: Method, widths: Sequence[int]) -> None:
        self.name, self.w_OI, self.uses, self.widths = name, w_OI, uses, sorted(widths)
        self.measured: dict[Setting, Measured] = {}
        self._feedback = None if method == "rtn" else feedback(name, column_hessian(uses))
        self.family = row_family(w_OI, widths)

    def measure(self, bits: int, size: float) -> Measured:
        """Quantize on the grid of one setting."""
        setting = (bits, size)
        if setting not in self.measured:
            grid = self.family.grid(bits, size)
            q_OI = self._round(grid)
            error_OI = self.w_OI - q_OI * grid.steps_OI
            stream = CODECS[BROTLI].encode(codes_to_bytes(q_OI.numpy()))
            point = Point(bits, size, len(stream), predicted_kl(error_OI, self.uses))
            self.measured[setting] = Measured(point, grid, stream)
        return self.measured[setting]

    @property
    def points(self) -> list[Point]:
        """All points measured so far, by width and size."""
        return [self.measured[setting].point for setting in sorted(self.measured)]

    def reconstruct(self, point: Point) -> Tensor:
        """The weights float32 [O, I] whose predicted_kl was measured: what every reader of the file must get."""
        return self._codes(point) * self.measured[point.bits, point.size].grid.steps_OI

    def payload(self, point: Point) -> GridPayload:
        """The measured tensor ready for the file: the smallest codec, and the narrowest allowed width that holds its codes."""
        measured = self.measured[point.bits, point.size]
        q_OI = self._codes(point)
        largest = int(q_OI.abs().max())
        bits = next(b for b in self.widths if largest <= code_limit(b))
        best = smallest_section(codes_to_bytes(q_OI.numpy()))
        codes = best if len(best.stored) < len(measured.stream) else Section(BROTLI, q_OI.numel(), measured.stream)
        return GridPayload(measured.grid.entry(self.name, tuple(self.w_OI.shape), bits), measured.grid.scale_O, codes)

    def _round(self, grid: RowGrid) -> Tensor:
        if self._feedback is None:
            return round_to_nearest(self.w_OI, grid)
        return gptq(self.w_OI, grid, self._feedback)

    def _codes(self, point: Point) -> Tensor:
        """Codes int8 [O, I] out of the stream that was measured."""
        raw = CODECS[BROTLI].decode(self.measured[point.bits, point.size].stream, self.w_OI.numel())
        return torch.frombuffer(bytearray(raw), dtype=torch.int8).view(self.w_OI.shape[1], -1).T
