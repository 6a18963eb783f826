"""Round one matrix on row grids and measure each: predicted KL in nats per token, and bytes.

Coding takes fifty times as long as rounding, so a setting is measured without it: its bytes are the order-0 entropy of its
codes, times what real streams of the matrix took of theirs. Settings that may end up in the file are coded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log2

import numpy as np
import torch
from torch import Tensor

from quantlab.artifact.container import Section
from quantlab.artifact.writer import GridPayload
from quantlab.calib.fisher import Use, column_hessian, predicted_kl
from quantlab.coding.codecs import BROTLI, CODECS, LZMA, RANS, bytes_to_codes, codes_to_bytes
from quantlab.format_rules import code_limit
from quantlab.methods.classic.gptq import feedback, gptq
from quantlab.methods.classic.row_grid import RowGrid, Setting, coarse_settings, round_to_nearest, row_grid, smallest_setting
from quantlab.methods.method import Point

CODE_CODECS = (BROTLI, LZMA, RANS)
"""Codecs of codes. Streams of zstd and deflate were never the smallest."""
QUICK_CODECS = (LZMA, RANS)
"""Codecs of the smallest file, whose codes are nearly all zero."""
CLOSE = 1.01
"""A codec that takes more than this, times the smallest stream, is not tried again at steps nearby."""
NEARBY = 0.5
"""Difference of steps that are nearby, in powers of two."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """One setting, measured without a codec."""

    entropy_bytes: float
    """Order-0 entropy of all codes."""
    predicted_kl: float


@dataclass(frozen=True, slots=True)
class _Coded:
    """One setting as the file stores it."""

    payload: GridPayload
    sizes: dict[int, int]
    """Length of the stream of each codec that was tried."""

    @property
    def bytes(self) -> int:
        """Length of the stream that is stored."""
        return len(self.payload.codes.stored)


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
        self._measured: dict[Setting, _Measured] = {}
        self._coded: dict[Setting, _Coded] = {}
        self._feedback = feedback(name, column_hessian(uses)) if feeds_back else None
        self.coarse, self.smallest = coarse_settings(widths), smallest_setting(widths)

    def measure(self, setting: Setting) -> None:
        """Round on the grid of one setting, for its predicted KL and an estimate of its bytes."""
        if setting not in self._measured:
            grid = row_grid(self.w_OI, bits=setting.bits, clip=setting.clip)
            q_OI = self._round(grid)
            error_OI = self.w_OI - q_OI * grid.steps_OI
            self._measured[setting] = _Measured(_entropy_bytes(q_OI), predicted_kl(error_OI, self.uses))

    @property
    def points(self) -> list[Point]:
        """All points measured so far, by width and clip; bytes are exact where the setting was coded, else an estimate."""
        return [self.point(setting) for setting in sorted(self._measured)]

    def point(self, setting: Setting) -> Point:
        """Return the point of a measured setting."""
        measured, coded = self._measured[setting], self._coded.get(setting)
        size = coded.bytes if coded else round(measured.entropy_bytes * self._bytes_per_entropy(setting))
        return Point(setting.bits, setting.clip, size, measured.predicted_kl)

    def reconstruct(self, setting: Setting) -> Tensor:
        """Return the weights float32 [O, I] of a coded setting, from its stream: what every reader of the file must get."""
        payload = self._coded[setting].payload
        raw = payload.codes.decode()
        steps_OI = row_grid(self.w_OI, bits=setting.bits, clip=setting.clip).steps_OI
        return torch.from_numpy(bytes_to_codes(raw, *self.w_OI.shape)) * steps_OI

    def payload(self, setting: Setting) -> GridPayload:
        """Return the matrix ready for the file: the smallest stream, and the narrowest allowed width for its codes.

        A codec that took clearly more than another at steps nearby is not tried.
        """
        self.measure(setting)
        if setting not in self._coded:
            self._coded[setting] = self._code(setting, self._codecs(setting))
        return self._coded[setting].payload

    def smallest_payload(self) -> GridPayload:
        """Return the payload of the setting that takes the fewest bytes, under the quick codecs alone."""
        return self._code(self.smallest, QUICK_CODECS).payload

    def _code(self, setting: Setting, codecs: Sequence[int]) -> _Coded:
        grid = row_grid(self.w_OI, bits=setting.bits, clip=setting.clip)
        q_OI = self._round(grid)
        largest = int(q_OI.abs().max())
        bits = next(b for b in self.widths if largest <= code_limit(b))
        raw = codes_to_bytes(q_OI.numpy())
        streams = {number: CODECS[number].encode(raw) for number in codecs}
        best = min(streams, key=lambda number: (len(streams[number]), number))
        entry = grid.entry(self.name, tuple(self.w_OI.shape), bits)
        payload = GridPayload(entry, grid.scale_O, Section(best, len(raw), streams[best]))
        return _Coded(payload, {number: len(stream) for number, stream in streams.items()})

    def _codecs(self, setting: Setting) -> Sequence[int]:
        """Return the codecs that came close to the smallest at the nearest coded step; all where none is nearby."""
        if not self._coded:
            return CODE_CODECS
        nearest = min(sorted(self._coded), key=lambda other: abs(log2(other.step / setting.step)))
        if abs(log2(nearest.step / setting.step)) > NEARBY:
            return CODE_CODECS
        sizes = self._coded[nearest].sizes
        return [number for number, size in sizes.items() if size <= CLOSE * min(sizes.values())]

    def _bytes_per_entropy(self, setting: Setting) -> float:
        """Return what a stream takes of the entropy, interpolated between coded steps; 1 before any was coded."""
        if not self._coded:
            return 1.0
        known = sorted((other.step, coded.bytes / self._measured[other].entropy_bytes) for other, coded in self._coded.items())
        steps, shares = zip(*known, strict=True)
        return float(np.interp(log(setting.step), np.log(steps), shares))

    def _round(self, grid: RowGrid) -> Tensor:
        if self._feedback is None:
            return round_to_nearest(self.w_OI, grid)
        return gptq(self.w_OI, grid, self._feedback)


def _entropy_bytes(q_OI: Tensor) -> float:
    """Return the order-0 entropy of all codes in bytes, at least 1."""
    counts = np.bincount(q_OI.numpy().reshape(-1).view(np.uint8), minlength=256)
    counts = counts[counts > 0]
    return max(float(counts @ np.log2(counts.sum() / counts)) / 8, 1.0)
