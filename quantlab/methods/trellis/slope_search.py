"""Find where a falling function of c meets a target: a step by a slope first, false position once both sides are known.

From a byte budget to one slope: all tensors at the same loss for a byte, found with the bytes of real files.

A grid's step is c over the square root of what an error costs, so one number c fixes every tensor's level (quant.shape).
Each pass rounds everything at a c, fits the coder's tables and classes to the codes, and moves c by what the file's length
says; then tables and classes stay, and c moves in ever smaller steps, which change few tensors' levels, until the file fits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.writer import TrellisPayload, coded_bytes, fit_sets
from quantlab.coding.tables import TableSet
from quantlab.errors import BudgetError, ExpansionError
from quantlab.methods.classic.knapsack import Point
from quantlab.methods.trellis.rounder import Classes, Rounder, narrowest, next_classes
from quantlab.methods.workers import worker_pool

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


LEAST_PASSES = 3  # until tables and classes have settled
PASSES = 5  # then the file must be ...
MOST_PASSES = 12
CLOSE = 0.01  # ... this close to the budget, as a share of it,
FAR = 0.1  # or, after all PASSES, this close; only budgets near the smallest reachable size take more
SETTLE_TRIES = 16
FILL_TRIES = 8
MOST_LEVELS = 6  # that filling makes one tensor finer: its steps stay within 7 % of the others' slope
SLACK = 0.0002  # of the budget
_OCTAVES = 24  # between the finest and the coarsest c that is tried

Assemble = Callable[[Sequence[TrellisPayload]], bytes]
Progress = Callable[[int, int], None]
Memo = Callable[[bytes, Callable[[], NDArray[np.int16]]], NDArray[np.int16]]
"""(key, compute) -> codes."""


@dataclass(frozen=True, slots=True)
class EntropyModel:
    """What the quantizer takes from the coder: one set of classes a tensor, and the tables' bits."""

    classes: tuple[Classes, ...]
    bits: NDArray[np.float32] | None

    @classmethod
    def of(cls, payloads: Sequence[TrellisPayload]) -> "EntropyModel":
        """Fitted to the codes of a pass."""
        sets: list[TableSet] = fit_sets(payloads)
        return cls(tuple(map(next_classes, payloads)), sets[0].lengths.astype(np.float32))


@dataclass(frozen=True, slots=True)
class FittingFile:
    """A file that fits."""

    slack: int
    data: bytes
    levels: tuple[int, ...] | None
    """Of each tensor; None where all codes are zero."""


class SlopePlanner:
    """Finds the payloads whose file is as long as the budget allows.

    `assemble` turns payloads, one for each of `rounders`, into the whole file; its length is what the budget is held against.
    `memo` may know codes from an earlier run.
    """

    def __init__(
        self,
        rounders: Sequence[Rounder],
        widths: Sequence[int],
        assemble: Assemble,
        progress: Progress | None = None,
        memo: Memo | None = None,
    ) -> None:
        self.rounders, self.widths, self.assemble = rounders, sorted(widths), assemble
        self._memo = memo or (lambda key, compute: compute())
        self._progress = progress or (lambda done, total: None)
        self._steps = 0
        self._rounded: dict[tuple[int, int], TrellisPayload] = {}  # of the settled entropy_model, by tensor and level
        self.passes: list[list[Point]] = []
        """What each pass of `approach` made of each tensor."""

    def check_feasible(self, budget_bytes: int) -> None:
        """Raise BudgetError, with the smallest reachable size, unless a file of nothing but zeros fits."""
        try:
            size = len(self._zeros())
        except ExpansionError as error:  # so few bytes for so many weights that no reader would believe them
            size = error.least_bytes
        if size > budget_bytes:
            raise BudgetError(f"the smallest reachable artifact is {size} bytes", smallest_bytes=size)

    def _zeros(self) -> bytes:
        return self.assemble([narrowest(r.zeros(), self.widths) for r in self.rounders])

    def approach(self, budget_bytes: int) -> tuple[float, list[TrellisPayload]]:
        """Passes over all tensors: a c whose file is about as long as the budget, and the codes of the last pass."""
        c, entropy_model = self._first_guess(budget_bytes)
        bracket = Bracket(budget_bytes)
        with worker_pool() as pool:
            for number in range(MOST_PASSES):
                payloads = self._round(pool, c, entropy_model)
                self.passes.append(self.points(c, payloads))
                size = len(self.assemble(payloads))
                entropy_model = EntropyModel.of(payloads)
                off = abs(size - budget_bytes) / budget_bytes
                if number + 1 >= LEAST_PASSES and (off < CLOSE or (number + 1 >= PASSES and off < FAR)):
                    break
                bracket.add(c, size)
                c = bracket.next(c, size, _octave_bytes(payloads))
        self.entropy_model = entropy_model
        return c, payloads

    def settle(self, budget_bytes: int, c: float) -> tuple[bytes, list[TrellisPayload]]:
        """The longest file within the budget that is found near c, with the entropy_model of the last pass."""
        best = self._nothing(budget_bytes)
        bracket = Bracket((1 - SLACK / 2) * budget_bytes)
        with worker_pool() as pool:
            for _ in range(SETTLE_TRIES):
                levels = tuple(r.level(c) for r in self.rounders)
                payloads = self._at(pool, levels)
                data = self.assemble(payloads)
                slack = budget_bytes - len(data)
                if 0 <= slack < best.slack:
                    best = FittingFile(slack, data, levels)
                if 0 <= slack <= SLACK * budget_bytes:
                    break
                bracket.add(c, len(data))
                c = bracket.next(c, len(data), _octave_bytes(payloads))
            return self._fill(pool, best)

    def refill(self, budget_bytes: int, payloads: Sequence[TrellisPayload], c: float) -> tuple[bytes, list[TrellisPayload]]:
        """Use a little room beside settled payloads, after what `assemble` adds to them has changed: few tensors move."""
        data = self.assemble(payloads)
        slack = budget_bytes - len(data)
        if slack < 0 or all(not p.codes_OI.any() for p in payloads):
            return self.settle(budget_bytes, c)
        with worker_pool() as pool:
            return self._fill(pool, FittingFile(slack, data, tuple(p.entry.level for p in payloads)))

    def points(self, c: float, payloads: Sequence[TrellisPayload]) -> list[Point]:
        """Coded bytes and predicted cost of each payload."""
        with worker_pool() as pool:
            costs = list(pool.map(Rounder.predicted_kl, self.rounders, payloads))
        sizes = coded_bytes(payloads)
        return [Point(p.entry.bits, c, size, cost) for p, size, cost in zip(payloads, sizes, costs, strict=True)]

    def _nothing(self, budget_bytes: int) -> "FittingFile":
        """The file of nothing but zeros, which fits (check_feasible); no file at all where readers would not take that one."""
        try:
            data = self._zeros()
        except ExpansionError:
            data = b""
        return FittingFile(budget_bytes - len(data), data, None)

    def _fill(self, pool: ThreadPoolExecutor, best: "FittingFile") -> tuple[bytes, list[TrellisPayload]]:
        """Make single tensors some levels finer while their bytes fit into the slack."""
        if not best.data:
            raise BudgetError(f"no file of at most {best.slack} bytes was found that a reader takes: so few bits a weight")
        if best.levels is None:
            return best.data, [narrowest(r.zeros(), self.widths) for r in self.rounders]
        size, levels = len(best.data) + best.slack, best.levels
        tried: set[int] = set()
        for _ in range(FILL_TRIES):
            room = [n for n, r in enumerate(self.rounders) if n not in tried and _level_bytes(r) <= best.slack]
            if not room or best.slack <= SLACK / 4 * size:
                break
            finest = max(room, key=lambda n: _level_bytes(self.rounders[n]))
            tried.add(finest)
            depth = min(int(best.slack / _level_bytes(self.rounders[finest])), MOST_LEVELS)
            trial = tuple(level - depth * (n == finest) for n, level in enumerate(levels))
            data = self.assemble(self._at(pool, trial))
            if len(best.data) < len(data) <= size:
                best, levels = FittingFile(size - len(data), data, trial), trial
        payloads = self._at(pool, levels)
        self._rounded = {(n, level): self._rounded[n, level] for n, level in enumerate(levels)}  # the others take memory
        return best.data, payloads

    def _first_guess(self, budget_bytes: int) -> tuple[float, EntropyModel]:
        """c by the entropy of Gaussian weights on the grid, and classes of the weights themselves at that c."""
        with worker_pool() as pool:
            histograms = list(pool.map(_class_histogram, self.rounders))
        low, high = -_OCTAVES / 2.0, _OCTAVES / 2.0
        centre = -8.0  # octaves; c is in square roots of nats
        for _ in range(40):
            middle = (low + high) / 2
            bits = sum(
                _gaussian_bits(h, r.shape.base + centre + middle) for h, r in zip(histograms, self.rounders, strict=True)
            )
            low, high = (low, middle) if bits / 8 < budget_bytes else (middle, high)
        c = 2.0 ** (centre + low)
        return c, EntropyModel(tuple(r.first_classes(r.level(c)) for r in self.rounders), None)

    def _round(self, pool: ThreadPoolExecutor, c: float, entropy_model: EntropyModel) -> list[TrellisPayload]:
        jobs = [(n, r.level(c), entropy_model) for n, r in enumerate(self.rounders)]
        return self._run(pool, jobs)

    def _at(self, pool: ThreadPoolExecutor, levels: Sequence[int]) -> list[TrellisPayload]:
        missing = [(n, level) for n, level in enumerate(levels) if (n, level) not in self._rounded]
        for key, payload in zip(missing, self._run(pool, [(*key, self.entropy_model) for key in missing]), strict=True):
            self._rounded[key] = payload
        return [self._rounded[n, level] for n, level in enumerate(levels)]

    def _run(self, pool: ThreadPoolExecutor, jobs: Sequence[tuple[int, int, EntropyModel]]) -> list[TrellisPayload]:
        """Round tensors at levels, long ones first so that all workers stay busy; results in the order of `jobs`."""

        def one(job: tuple[int, int, EntropyModel]) -> TrellisPayload:
            n, level, entropy_model = job
            rounder, classes, bits = self.rounders[n], entropy_model.classes[n], entropy_model.bits
            key = b"%d %d " % (n, level) + classes.to_bytes() + (b"" if bits is None else bits.tobytes())
            payload = rounder.payload(level, classes, self._memo(key, lambda: rounder.codes(level, classes, bits)))
            self._steps += 1
            self._progress(self._steps, max(self._steps, (PASSES + 2) * len(self.rounders)))
            return narrowest(payload, self.widths)

        order = sorted(range(len(jobs)), key=lambda at: -self.rounders[jobs[at][0]].w_OI.size)
        results = dict(zip(order, pool.map(one, [jobs[at] for at in order]), strict=True))
        return [results[at] for at in range(len(jobs))]


def _octave_bytes(payloads: Iterable[TrellisPayload]) -> float:
    """What an octave of c is worth: a bit for every weight that is not zero."""
    return sum(np.count_nonzero(p.codes_OI) for p in payloads) / 8


def _level_bytes(rounder: Rounder) -> float:
    """Bytes that a level finer costs: 1/64 bit a weight."""
    return rounder.w_OI.size / 64 / 8


def _class_histogram(rounder: Rounder) -> NDArray[np.int64]:
    """Weights by class + 400 at c = 2**-base, whose level is 0."""
    classes = rounder.first_classes(0)
    rows = classes.base + classes.rows_O.astype(np.int64) - rounder.shape.a_O.numpy().astype(np.int64)
    columns = classes.columns_I.astype(np.int64) - rounder.shape.b_I.numpy().astype(np.int64)
    counts: NDArray[np.int64] = np.bincount((rows[:, None] + columns[None]).clip(-400, 400).ravel() + 400, minlength=801)
    return counts


def _gaussian_bits(histogram: NDArray[np.int64], octaves: float) -> float:
    """About the entropy of the codes when steps are 2**octaves: ½ log2(1 + 2πe σ²/(2·step)²) bits a weight."""
    sigma = 2.0 ** ((np.arange(801) - 400 - 8) / 4 - octaves - 1)
    return float(histogram @ (0.5 * np.log2(1 + 2 * math.pi * math.e * sigma**2)))
