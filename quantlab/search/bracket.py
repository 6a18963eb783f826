"""Find where a falling function of c meets a target: a step by a slope first, false position once both sides are known."""

import math

LARGEST_STEP = 3.0
"""Octaves."""


class Bracket:
    """Sizes measured so far, by log2 of c; sizes fall as c rises, up to noise."""

    def __init__(self, target: float) -> None:
        self.target = target
        self.too_long: tuple[float, float] | None = None
        self.fits: tuple[float, float] | None = None
        self._reach = 1.0
        self._tries = 0

    def add(self, c: float, size: float) -> None:
        """A measured size; only the closest on each side counts."""
        x = math.log2(c)
        self._tries += 1
        if size > self.target and (self.too_long is None or x > self.too_long[0]):
            self.too_long = (x, size)
        elif size <= self.target and (self.fits is None or x < self.fits[0]):
            self.fits = (x, size)

    def next(self, c: float, size: float, octave_bytes: float) -> float:
        """Where to look next, after `size` at c.

        Args:
            octave_bytes: what an octave is worth near c, an estimate that is not trusted: steps grow while one side is unknown.
        """
        if self.too_long is None or self.fits is None:
            step = self._reach * (size - self.target) / max(octave_bytes, 1.0)
            self._reach *= 2
            return float(c * 2 ** max(-LARGEST_STEP, min(LARGEST_STEP, step)))
        (low, more), (high, less) = self.too_long, self.fits
        share = (more - self.target) / max(more - less, 1e-9)
        if self._tries % 4 == 3:  # false position alone can creep towards one side
            share = 0.5
        return float(2 ** (low + (high - low) * min(max(share, 0.02), 0.98)))
