"""From a byte budget to one step scale: all tensors at the same slope of predicted KL against bytes, measured on whole files.

The step of a weight is the step scale c over the square root of what an error there costs, so the one number c fixes the
log-step index of every tensor (shape.py). The first pass takes c, tables and scale classes as Gaussian weights would have them.
Each pass rounds everything at a c, fits tables and scale classes to the codes, and moves c by the length of the file. Then the
tables and classes of the last pass stay, and c moves in ever smaller steps, each of which changes the index of few tensors,
until the file fits. Names `level` and `levels` stand for log-step indices.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.writer import EncodedArtifact, TrellisPayload, coded_bytes, fit_sets
from quantlab.coding.frequency_tables import TableSet
from quantlab.errors import BudgetError, ExpansionError
from quantlab.format_rules import LOG_STEPS
from quantlab.methods.method import Point
from quantlab.methods.trellis.first_guess import first_step_scale, gaussian_lengths
from quantlab.methods.trellis.rounder import Rounder, narrowest, next_classes
from quantlab.methods.trellis.scale_classes import ScaleClasses
from quantlab.methods.workers import worker_pool
from quantlab.progress import Progress, silent

LARGEST_STEP = 3.0
"""Most powers of two by which one try moves c while only one side of the target is known."""
SHARES = (0.02, 0.98)
"""Range of the shares of a bracket at which false position may cut it."""
BISECTED_TRY = 4
"""One try in this many halves the bracket, as false position alone can creep towards one side."""

SHARE_LEFT = 0.5
"""Share of a miss that a try may leave before steps grow."""

LEAST_PASSES = 3
"""Number of passes after which tables and scale classes have settled."""
PASSES = 5
"""Number of passes after which a file that is FAR from the budget will do."""
MOST_PASSES = 12
"""Largest number of passes: only budgets near the smallest reachable size take more than PASSES."""
CLOSE = 0.01
"""Share of the budget by which a file may miss it after LEAST_PASSES."""
NEAR = 0.02
"""Share of the codes by which the file of an estimate may miss the budget; the rest is interpolated."""
FAR = 0.1
"""Share of the budget by which a file may miss it after PASSES."""
SETTLE_TRIES = 16
"""Largest number of step scales that are tried with the settled entropy model."""
FILL_TRIES = 8
"""Largest number of tensors that are tried with finer steps."""
MOST_LOG_STEPS = 6
"""Most log-steps by which filling makes one tensor finer: its steps stay within 7 % of the others' slope."""
SLACK = 0.0002
"""Share of the budget that a settled file may leave."""


class Assemble(Protocol):
    """Turns payloads, one for each rounder, into the whole file."""

    def __call__(self, payloads: Sequence[TrellisPayload], /, *, draft: bool = False) -> EncodedArtifact:
        """Return the file; a draft has its length alone, nearly."""


CodesMemo = Callable[[bytes, Callable[[], NDArray[np.int16]]], NDArray[np.int16]]
"""Returns the codes of a key, known or computed."""


class Bracket:
    """Finds a c whose file has the target size: a step by a slope first, false position once both sides are known.

    Sizes fall as c rises, up to noise.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.too_long: tuple[float, float] | None = None
        """Largest c whose file exceeds the target, as (log2 of c, size)."""
        self.fits: tuple[float, float] | None = None
        """Smallest c whose file does not exceed the target, as (log2 of c, size)."""
        self._reach = 1.0
        self._missed = math.inf
        self._tries = 0

    def add(self, c: float, size: float) -> None:
        """Add a measured size; only the closest on each side of the target counts."""
        x = math.log2(c)
        self._tries += 1
        if size > self.target and (self.too_long is None or x > self.too_long[0]):
            self.too_long = (x, size)
        elif size <= self.target and (self.fits is None or x < self.fits[0]):
            self.fits = (x, size)

    def next(self, c: float, size: float, bytes_per_doubling: float) -> float:
        """Return the c to try next, after `size` at c.

        Args:
            bytes_per_doubling: bytes that a file loses where c doubles. An estimate that is not trusted: steps grow where they
                bring the size no nearer to the target.
        """
        if self.too_long is None or self.fits is None:
            missed = abs(size - self.target)
            self._reach *= 2 if missed > SHARE_LEFT * self._missed else 1
            self._missed = missed
            step = self._reach * (size - self.target) / max(bytes_per_doubling, 1.0)
            return float(c * 2 ** max(-LARGEST_STEP, min(LARGEST_STEP, step)))
        (low, more), (high, less) = self.too_long, self.fits
        share = (more - self.target) / max(more - less, 1e-9)
        if self._tries % BISECTED_TRY == BISECTED_TRY - 1:
            share = 0.5
        least, most = SHARES
        return float(2 ** (low + (high - low) * min(max(share, least), most)))


@dataclass(frozen=True, slots=True)
class EntropyModel:
    """The side information of the entropy coder that rounding uses."""

    classes: tuple[ScaleClasses, ...]
    """Scale classes of each tensor."""
    bits: NDArray[np.float32]
    """Bits of each symbol in each table, [28, 256]."""

    @classmethod
    def of(cls, payloads: Sequence[TrellisPayload]) -> "EntropyModel":
        """Return the model fitted to the codes of a pass."""
        sets: list[TableSet] = fit_sets(payloads)
        return cls(tuple(map(next_classes, payloads)), sets[0].lengths.astype(np.float32))


@dataclass(frozen=True, slots=True)
class FittingFile:
    """A file that does not exceed the budget."""

    slack: int
    """Bytes of the budget that it leaves."""
    file: EncodedArtifact | None
    """None stands for no file at all."""
    levels: tuple[int, ...] | None
    """Log-step index of each tensor; None where all codes are zero."""


class SlopePlanner:
    """Finds the payloads whose file is as long as the budget allows.

    Args:
        rounders: one for each tensor.
        widths: container widths that a tensor may take, in bits.
        assemble: its files are compared with the budget, its drafts lead the search.
        progress: sees a stage for each pass, in weights, then one for the tries to settle and one for those to fill.
        memo: may know codes from an earlier, killed attempt.
    """

    def __init__(
        self,
        rounders: Sequence[Rounder],
        widths: Sequence[int],
        assemble: Assemble,
        progress: Progress = silent,
        memo: CodesMemo | None = None,
    ) -> None:
        self.rounders, self.widths, self.assemble = rounders, sorted(widths), assemble
        self._draft_error = 0
        """Bytes by which the latest file was longer than its draft."""
        self._memo = memo or (lambda key, compute: compute())
        self._progress = progress
        self.rounded_weights = 0
        """Weights that were rounded so far, each as often as it was."""
        self.free: frozenset[int] = frozenset()
        """Tensors that may still be rounded anew; empty for all of them."""
        self._rounded: dict[tuple[int, int], TrellisPayload] = {}
        """Payload of each tensor and log-step index with the settled entropy model."""
        self.passes: list[list[Point]] = []
        """Point of each tensor in each pass of `approach` that says more about its rates than the result does."""

    def smallest_bytes(self) -> int:
        """Return the length of the file whose every code is zero, or the least that readers accept for so many weights."""
        try:
            return len(self.assemble(self._zeros()))
        except ExpansionError as error:
            return error.least_bytes

    def _zeros(self) -> list[TrellisPayload]:
        return [narrowest(r.zeros(), self._widths(r)) for r in self.rounders]

    def _widths(self, rounder: Rounder) -> list[int]:
        """Return the containers that a tensor may have: one whose codes are limited has none wider."""
        return sorted({min(width, rounder.bits) for width in self.widths})

    def estimate(self, budget_bytes: int) -> tuple[int, list[Point], list[TrellisPayload]]:
        """Return length, points and payloads of a file near the budget: one rounding where it is near at once."""
        c, entropy_model = self._first_guess(budget_bytes)
        bracket = Bracket(budget_bytes)
        with worker_pool() as pool:
            for _ in range(MOST_PASSES):
                payloads = self._round(pool, c, entropy_model, f"round for {budget_bytes:,} bytes")
                size, used = len(self.assemble(payloads, draft=True)), c
                if abs(size - budget_bytes) < NEAR * sum(coded_bytes(payloads)):
                    break
                bracket.add(c, size)
                c, entropy_model = bracket.next(c, size, _bytes_per_doubling(payloads)), EntropyModel.of(payloads)
        return size, self.points(used, payloads), payloads

    def approach(self, budget_bytes: int) -> tuple[float, list[TrellisPayload]]:
        """Return a c whose file is about as long as the budget, and the payloads of the last pass over all tensors.

        Args:
            budget_bytes: at least `smallest_bytes()`.
        """
        c, entropy_model = self._first_guess(budget_bytes)
        bracket = Bracket(budget_bytes)
        with worker_pool() as pool:
            for number in range(MOST_PASSES):
                payloads = self._round(pool, c, entropy_model, f"round, pass {number + 1} of at most {MOST_PASSES}")
                size = len(self.assemble(payloads, draft=True))
                off = abs(size - budget_bytes) / budget_bytes
                if number and off >= CLOSE:  # the first pass has no tables yet, and close ones say what the result says
                    self.passes.append(self.points(c, payloads))
                is_last = number + 1 == MOST_PASSES
                if is_last or (number + 1 >= LEAST_PASSES and (off < CLOSE or (number + 1 >= PASSES and off < FAR))):
                    break
                bracket.add(c, size)
                c, entropy_model = bracket.next(c, size, _bytes_per_doubling(payloads)), EntropyModel.of(payloads)
        self.entropy_model = entropy_model
        self._rounded = {(n, p.entry.level): p for n, p in enumerate(payloads)}
        return c, payloads

    def settle(self, budget_bytes: int, c: float) -> tuple[EncodedArtifact, list[TrellisPayload]]:
        """Return the longest file within the budget that is found near c, with the entropy model of the last pass.

        Raises:
            BudgetError: none was found that readers accept.
        """
        best = self._all_zero(budget_bytes)
        bracket = Bracket((1 - SLACK / 2) * budget_bytes)
        with worker_pool() as pool:
            for number in range(SETTLE_TRIES):
                levels = tuple(r.level(c) for r in self.rounders)
                payloads = self._at(pool, levels)
                self._progress("settle the size", number + 1, SETTLE_TRIES)
                slack = budget_bytes - (expected := self._expected_bytes(payloads))
                if 0 <= slack < best.slack:
                    file = self._file(payloads, expected)
                    slack = budget_bytes - len(file)
                    best = FittingFile(slack, file, levels) if 0 <= slack < best.slack else best
                if 0 <= slack <= SLACK * budget_bytes:
                    break
                self._keep(levels, best.levels or ())
                bracket.add(c, budget_bytes - slack)
                c = bracket.next(c, budget_bytes - slack, _bytes_per_doubling(payloads))
            return self._fill(pool, best)

    def _expected_bytes(self, payloads: Sequence[TrellisPayload]) -> int:
        """Return the length that the file of the payloads should have, by its draft."""
        return len(self.assemble(payloads, draft=True)) + self._draft_error

    def _file(self, payloads: Sequence[TrellisPayload], expected: int) -> EncodedArtifact:
        """Return the file of the payloads, and learn how far `expected` was off."""
        file = self.assemble(payloads)
        self._draft_error += len(file) - expected
        return file

    def _keep(self, *kept: Sequence[int]) -> None:
        """Forget roundings at all but these levels of the tensors: each takes two bytes a weight."""
        keys = {key for levels in kept for key in enumerate(levels)}
        self._rounded = {key: payload for key, payload in self._rounded.items() if key in keys}

    def refill(
        self, budget_bytes: int, payloads: Sequence[TrellisPayload], c: float
    ) -> tuple[EncodedArtifact, list[TrellisPayload]]:
        """Return a file that fills the budget beside settled payloads, after what `assemble` adds has changed: few move.

        Where some tensors are `free`, they alone are rounded anew, as long as that is enough.
        """
        levels = tuple(p.entry.level for p in payloads)
        if all(not p.codes_OI.any() for p in payloads):
            return self.settle(budget_bytes, c)
        with worker_pool() as pool:
            for _ in range(FILL_TRIES if self.free else 1):
                file = self.assemble(payloads)
                slack = budget_bytes - len(file)
                if slack >= 0:
                    return self._fill(pool, FittingFile(slack, file, levels))
                if self.free:  # otherwise all tensors are settled anew
                    levels = tuple(self._moved(levels, self.free, -slack))
                    payloads = self._at(pool, levels)
        return self.settle(budget_bytes, c)

    def _moved(self, levels: Sequence[int], tensors: Collection[int], saved_bytes: int) -> Iterator[int]:
        """Yield the levels after those of some tensors have moved so far that about so many bytes are saved, or as may be."""
        step = sum(_log_step_bytes(self.rounders[n]) for n in tensors)
        moved = min(max(math.ceil(saved_bytes / step), -2 * MOST_LOG_STEPS), 2 * MOST_LOG_STEPS)
        for n, level in enumerate(levels):
            yield level + moved * (n in tensors)

    def take(self, targets: Mapping[int, NDArray[np.float32]], levels: Sequence[int]) -> list[TrellisPayload]:
        """Return tensors rounded near targets instead of their weights; these stay their targets from then on."""
        for n, target_OI in targets.items():
            self.rounders[n].target_OI = target_OI
        self._rounded = {key: payload for key, payload in self._rounded.items() if key[0] not in targets}
        with worker_pool() as pool:
            payloads = self._run(pool, [(n, levels[n], self.entropy_model) for n in targets])
        self._rounded |= {(n, p.entry.level): p for n, p in zip(targets, payloads, strict=True)}
        return payloads

    def levels_to_come(self, payloads: Sequence[TrellisPayload], left: Collection[int], budget_bytes: int) -> list[int]:
        """Return the levels of all tensors where those that are `left` make up for a file that misses the budget."""
        levels = [p.entry.level for p in payloads]
        return list(self._moved(levels, left, self._expected_bytes(payloads) - budget_bytes))

    def points(self, c: float, payloads: Sequence[TrellisPayload]) -> list[Point]:
        """Return width, step scale, coded bytes and predicted KL of each payload."""
        with worker_pool() as pool:
            predicted_kl = list(pool.map(Rounder.predicted_kl, self.rounders, payloads))
        sizes = coded_bytes(payloads)
        return [Point(p.entry.bits, c, size, kl) for p, size, kl in zip(payloads, sizes, predicted_kl, strict=True)]

    def _all_zero(self, budget_bytes: int) -> FittingFile:
        """Return the file whose every code is zero, which fits; no file at all where readers would not accept it."""
        try:
            file = self.assemble(self._zeros())
        except ExpansionError:
            return FittingFile(budget_bytes, None, None)
        return FittingFile(budget_bytes - len(file), file, None)

    def _fill(self, pool: ThreadPoolExecutor, best: FittingFile) -> tuple[EncodedArtifact, list[TrellisPayload]]:
        """Return `best` after making the steps of single tensors finer while their bytes fit into the slack."""
        file, slack, levels = best.file, best.slack, best.levels
        if file is None:
            raise BudgetError(f"no decodable artifact fits {slack} bytes: the rate is too low", hint="raise the budget")
        if levels is None:
            return file, self._zeros()
        budget_bytes, tried = len(file) + slack, set[int]()
        for _ in range(FILL_TRIES):
            free = [n for n in (self.free or range(len(self.rounders))) if n not in tried]
            room = [n for n in free if _log_step_bytes(self.rounders[n]) <= slack]
            if not room or slack <= SLACK / 4 * budget_bytes:
                break
            finest = max(room, key=lambda n: _log_step_bytes(self.rounders[n]))
            tried.add(finest)
            depth = min(int(slack / _log_step_bytes(self.rounders[finest])), MOST_LOG_STEPS)
            trial = tuple(level - depth * (n == finest) for n, level in enumerate(levels))
            payloads = self._at(pool, trial)
            if len(file) < (expected := self._expected_bytes(payloads)) <= budget_bytes:
                longer = self._file(payloads, expected)
                if len(file) < len(longer) <= budget_bytes:
                    file, slack, levels = longer, budget_bytes - len(longer), trial
            self._progress("fill the budget", len(tried), FILL_TRIES)
        payloads = self._at(pool, levels)
        self._keep(levels)
        return file, payloads

    def _first_guess(self, budget_bytes: int) -> tuple[float, EntropyModel]:
        """Return c by the entropy of Gaussian weights on the grid, with their tables and the scale classes of the weights."""
        with worker_pool() as pool:
            c = first_step_scale(self.rounders, budget_bytes, pool)
        classes = tuple(r.first_classes(r.level(c)) for r in self.rounders)
        return c, EntropyModel(classes, gaussian_lengths(self.rounders[0].options.states))

    def _round(self, pool: ThreadPoolExecutor, c: float, entropy_model: EntropyModel, stage: str) -> list[TrellisPayload]:
        jobs = [(n, r.level(c), entropy_model) for n, r in enumerate(self.rounders)]
        return self._run(pool, jobs, stage)

    def _at(self, pool: ThreadPoolExecutor, levels: Sequence[int]) -> list[TrellisPayload]:
        missing = [(n, level) for n, level in enumerate(levels) if (n, level) not in self._rounded]
        jobs = [(*key, self.entropy_model) for key in missing]
        for key, payload in zip(missing, self._run(pool, jobs), strict=True):
            self._rounded[key] = payload
        return [self._rounded[n, level] for n, level in enumerate(levels)]

    def _run(
        self, pool: ThreadPoolExecutor, jobs: Sequence[tuple[int, int, EntropyModel]], stage: str = ""
    ) -> list[TrellisPayload]:
        """Round tensors at log-step indices, long ones first so that all workers stay busy; results in the order of `jobs`.

        Progress is shown where `stage` has a name.
        """
        total, done, lock = sum(self.rounders[n].w_OI.size for n, _, _ in jobs), 0, Lock()

        def count(weights: int) -> None:
            nonlocal done
            with lock:
                done += weights
                self.rounded_weights += weights
                if stage and total:
                    self._progress(stage, done, total)

        count(0)

        def one(job: tuple[int, int, EntropyModel]) -> TrellisPayload:
            n, level, entropy_model = job
            rounder, classes, bits = self.rounders[n], entropy_model.classes[n], entropy_model.bits
            key = b"%d %d " % (n, level) + classes.to_bytes() + bits.tobytes() + rounder.target_key()
            codes = self._memo(key, lambda: rounder.codes(level, classes, bits))
            count(codes.size)
            payload = narrowest(rounder.payload(level, classes, codes), self._widths(rounder))
            _ = payload.counts  # here, where all processors work
            return payload

        order = sorted(range(len(jobs)), key=lambda at: -self.rounders[jobs[at][0]].w_OI.size)
        results = dict(zip(order, pool.map(one, [jobs[at] for at in order]), strict=True))
        return [results[at] for at in range(len(jobs))]


def _bytes_per_doubling(payloads: Iterable[TrellisPayload]) -> float:
    """Return about how many bytes a file loses where c doubles: a bit for every weight that is not zero."""
    return sum(np.count_nonzero(p.codes_OI) for p in payloads) / 8


def _log_step_bytes(rounder: Rounder) -> float:
    """Return the bytes that steps finer by one log-step cost: 1/64 bit a weight."""
    return rounder.w_OI.size / LOG_STEPS / 8
