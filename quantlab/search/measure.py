"""Quantize one tensor one way and measure what that costs: bytes after the real codec, distortion in nats."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantlab.artifact.container import Section
from quantlab.artifact.encode import GridPayload, smallest_section
from quantlab.artifact.manifest import GridTensor
from quantlab.coding.codecs import BROTLI, CODECS
from quantlab.coding.planes import codes_to_bytes
from quantlab.quant.distortion import Use, column_hessian, distortion
from quantlab.quant.gptq import Feedback, feedback, gptq
from quantlab.quant.grid import RowGrid, row_grid
from quantlab.quant.rtn import round_to_nearest
from quantlab.search.frontier import Point

Method = Literal["gptq", "rtn"]
METHODS: tuple[Method, ...] = ("gptq", "rtn")


@dataclass(frozen=True, slots=True)
class Measured:
    """A point and the stream that it was measured on."""

    point: Point
    grid: RowGrid
    stream: bytes
    """Codes under brotli-11: the file takes the smallest codec, so it is never larger."""


class TensorMeter:
    """Measures one matrix at any width and clip; each measurement is kept."""

    def __init__(self, name: str, w_OI: Tensor, uses: tuple[Use, ...], method: Method) -> None:
        self.name, self.w_OI, self.uses = name, w_OI, uses
        self.measured: dict[tuple[int, float], Measured] = {}
        self._round = _rounding(name, uses, method)

    def measure(self, bits: int, clip: float) -> Measured:
        """Quantize to `bits` with the grid's end at `clip` root mean squares of each row."""
        key = (bits, clip)
        if key not in self.measured:
            grid = row_grid(self.w_OI, bits=bits, clip=clip)
            q_OI = self._round(self.w_OI, grid)
            error_OI = self.w_OI - q_OI * grid.steps_O[:, None]
            stream = CODECS[BROTLI].encode(codes_to_bytes(q_OI.numpy()))
            point = Point(bits, clip, len(stream), distortion(error_OI, self.uses))
            self.measured[key] = Measured(point, grid, stream)
        return self.measured[key]

    @property
    def points(self) -> list[Point]:
        """All points measured so far, by width and clip."""
        return [self.measured[key].point for key in sorted(self.measured)]

    def reconstruct(self, point: Point) -> Tensor:
        """The weights float32 [O, I] whose distortion was measured: what every reader of the file must get."""
        measured = self.measured[point.bits, point.clip]
        raw = CODECS[BROTLI].decode(measured.stream, self.w_OI.numel())
        q_OI = torch.frombuffer(bytearray(raw), dtype=torch.int8).view(self.w_OI.shape[1], -1).T
        return q_OI * measured.grid.steps_O[:, None]

    def payload(self, point: Point) -> GridPayload:
        """The measured tensor ready for the file, its codes under the codec that makes them smallest."""
        measured = self.measured[point.bits, point.clip]
        raw = CODECS[BROTLI].decode(measured.stream, self.w_OI.numel())
        entry = GridTensor(name=self.name, shape=tuple(self.w_OI.shape), bits=point.bits, exponent=measured.grid.exponent)
        best = smallest_section(raw)
        codes = best if len(best.stored) < len(measured.stream) else Section(BROTLI, len(raw), measured.stream)
        return GridPayload(entry, measured.grid.scale_O, codes)


def _rounding(name: str, uses: tuple[Use, ...], method: Method) -> Callable[[Tensor, RowGrid], Tensor]:
    if method == "rtn":
        return round_to_nearest
    fb: Feedback = feedback(name, column_hessian(uses))
    return lambda w_OI, grid: gptq(w_OI, grid, fb)
