"""From a byte budget to one row grid for every tensor: measure grids, choose by the trade-off curve, code, refine, fit.

Bytes of a setting are an estimate until it is coded, which takes most of the time. So the first choice is coded, its bytes
correct the estimates of all others, and only settings that are chosen again are coded too.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import log2, sqrt

from quantlab.artifact.writer import EncodedArtifact, GridPayload
from quantlab.errors import BudgetError
from quantlab.methods.classic.knapsack import trade_off
from quantlab.methods.classic.meter import TensorMeter
from quantlab.methods.classic.row_grid import Setting
from quantlab.methods.method import Point
from quantlab.methods.workers import worker_pool

ESTIMATED_ROUNDS = 2
"""Number of refinements before anything is coded: each halves the spacing of clips, a factor of 2 at first."""
CORRECTED_ROUNDS = 2
"""Number of refinements after the choice of the others was coded and has corrected the estimates of bytes."""
FIT_TRIES = 8
"""Largest number of files that are assembled to find one that fits."""
NEAR = 0.51
"""Difference of steps, in powers of two, up to which a later choice may leave the one before."""
SLACK = 20_000
"""A file that leaves less than this share of the budget unused is good enough: one part in 20,000."""

Assemble = Callable[[list[GridPayload]], EncodedArtifact]
CountProgress = Callable[[int, int], None]


class Allocator:
    """Measures tensors and finds the choice of grids whose file fits a budget.

    Args:
        meters: one for each tensor.
        assemble: turns the chosen payloads into the whole file; its length is compared with the budget.
        progress: called with (measurements done, measurements planned).
    """

    def __init__(self, meters: Sequence[TensorMeter], assemble: Assemble, progress: CountProgress | None = None) -> None:
        self.meters, self.assemble = meters, assemble
        self._progress = progress or (lambda done, total: None)
        self._planned = sum(1 + len(m.coarse) + 2 * (ESTIMATED_ROUNDS + CORRECTED_ROUNDS) for m in meters)
        self._done = 0
        self._smallest: tuple[EncodedArtifact, int] | None = None

    def smallest_bytes(self) -> int:
        """Return the length of the file in which every tensor has the coarsest grid of the narrowest width.

        Its codes are coded by the quick codecs alone, so the others may still make it a little shorter.
        """
        return len(self._smallest_file()[0])

    def solve(self, budget_bytes: int) -> tuple[EncodedArtifact, list[Point]]:
        """Return the file of least predicted KL with at most `budget_bytes`, and the point of each tensor.

        Raises:
            BudgetError: even the smallest file exceeds the budget.
        """
        smallest, overhead = self._smallest_file()
        if len(smallest) > budget_bytes:
            raise BudgetError(
                f"the smallest reachable artifact is {len(smallest)} bytes, the budget is {budget_bytes}",
                smallest_bytes=len(smallest),
                hint="raise the budget, or allow a narrower width with --widths",
            )
        with worker_pool() as pool:
            self._measure(pool, [(m, setting) for m in self.meters for setting in (m.smallest, *m.coarse)])
            chosen = self._refine(pool, ESTIMATED_ROUNDS, self._choose(budget_bytes - overhead), budget_bytes - overhead)
            self._code(pool, chosen)
            chosen = self._refine(pool, CORRECTED_ROUNDS, chosen, budget_bytes - overhead)
            self._progress(self._planned, self._planned)
            return self._fit(pool, chosen, budget_bytes, overhead)

    def _smallest_file(self) -> tuple[EncodedArtifact, int]:
        """Return the smallest file, and how many of its bytes are not codes of the tensors."""
        if self._smallest is None:
            with worker_pool() as pool:
                payloads = list(pool.map(TensorMeter.smallest_payload, self.meters))
            file = self.assemble(payloads)
            self._smallest = file, len(file) - _code_bytes(payloads)
        return self._smallest

    def _measure(self, pool: ThreadPoolExecutor, jobs: list[tuple[TensorMeter, Setting]]) -> None:
        jobs = sorted(jobs, key=lambda job: -job[0].w_OI.numel())  # long ones first keeps all workers busy
        for _ in pool.map(lambda job: job[0].measure(job[1]), jobs):
            self._done += 1
            self._progress(self._done, self._planned)

    def _refine(self, pool: ThreadPoolExecutor, rounds: int, chosen: list[Setting], code_bytes: int) -> list[Setting]:
        """Measure clips around the choice and choose again, nearer each time; return the last choice."""
        for _ in range(rounds):
            self._measure(pool, list(_refinements(self.meters, chosen)))
            chosen = self._choose(code_bytes, chosen)
        return chosen

    def _choose(self, code_bytes: int, around: list[Setting] | None = None) -> list[Setting]:
        """Return the best choice of all settings, or of those near another choice, whose codes take at most `code_bytes`."""
        points = [m.points for m in self.meters]
        if around is not None:
            points = [[p for p in own if _are_near(p, at)] for own, at in zip(points, around, strict=True)]
        curve = trade_off(points)
        indices = curve.best(max(code_bytes, curve.smallest_bytes))
        return [_setting(own[i]) for own, i in zip(points, indices, strict=True)]

    def _code(self, pool: ThreadPoolExecutor, chosen: list[Setting]) -> list[GridPayload]:
        return list(pool.map(TensorMeter.payload, self.meters, chosen))

    def _fit(
        self, pool: ThreadPoolExecutor, chosen: list[Setting], budget_bytes: int, overhead: int
    ) -> tuple[EncodedArtifact, list[Point]]:
        """Assemble, learn the true bytes of the choice, choose again; return the best file that fits."""
        best: tuple[float, EncodedArtifact, list[Point]] | None = None
        margin, seen = 0, list[list[Setting]]()
        while len(seen) < FIT_TRIES and chosen not in seen:
            seen.append(chosen)
            payloads = self._code(pool, chosen)
            file = self.assemble(payloads)
            overhead = len(file) - _code_bytes(payloads)
            points = [m.point(setting) for m, setting in zip(self.meters, chosen, strict=True)]
            loss, unused = sum(p.predicted_kl for p in points), budget_bytes - len(file)
            if unused >= 0 and (best is None or loss < best[0]):
                best = (loss, file, points)
            if 0 <= unused * SLACK <= budget_bytes:
                break
            margin = margin // 2 if unused >= 0 else margin + (-unused << len(seen) >> 4)
            chosen = self._choose(budget_bytes - overhead - margin, chosen)
            if best is None and chosen in seen:  # then look farther than around the last choice, and for less
                chosen = self._choose(budget_bytes - overhead - 2 * margin)
        if best is None:  # so near the smallest size no choice but the smallest fits
            smallest, _ = self._smallest_file()
            return smallest, [m.point(m.smallest) for m in self.meters]
        return best[1], best[2]


def _setting(point: Point) -> Setting:
    return Setting(point.bits, point.setting)


def _are_near(point: Point, setting: Setting) -> bool:
    """Whether the steps of both are about a factor of sqrt(2) apart at most."""
    return abs(log2(_setting(point).step / setting.step)) < NEAR


def _code_bytes(payloads: Iterable[GridPayload]) -> int:
    return sum(len(p.codes.stored) for p in payloads)


def _refinements(meters: Iterable[TensorMeter], chosen: Iterable[Setting]) -> Iterable[tuple[TensorMeter, Setting]]:
    """Yield clips halfway (geometrically) between each chosen one and its measured neighbours of the same width."""
    for meter, setting in zip(meters, chosen, strict=True):
        clips = sorted(p.setting for p in meter.points if p.bits == setting.bits)
        at = clips.index(setting.clip)
        for neighbour in (*clips[max(at - 1, 0) : at], *clips[at + 1 : at + 2]):
            yield meter, Setting(setting.bits, sqrt(setting.clip * neighbour))
