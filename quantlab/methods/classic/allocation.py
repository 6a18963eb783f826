"""From a byte budget to one row grid for every tensor: measure grids, choose by the trade-off curve, assemble, refine."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt

from quantlab.artifact.writer import EncodedArtifact, GridPayload
from quantlab.errors import BudgetError
from quantlab.methods.classic.knapsack import TradeOff, trade_off
from quantlab.methods.classic.meter import TensorMeter
from quantlab.methods.classic.row_grid import Setting
from quantlab.methods.method import Point
from quantlab.methods.workers import worker_pool

ROUNDS = 3
"""Number of refinements: each halves the spacing of clips around the choice, a factor of 2 at first, then its square roots."""
FIT_TRIES = 8
"""Largest number of files that are assembled to find one that fits."""

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
        self._planned = sum(1 + len(m.coarse) + 2 * ROUNDS for m in meters)
        self._done = 0
        self._payloads: dict[tuple[str, Point], GridPayload] = {}
        self._smallest_bytes: int | None = None

    def smallest_bytes(self) -> int:
        """Return the length of the file in which every tensor has the coarsest grid of the narrowest width."""
        if self._smallest_bytes is None:
            with worker_pool() as pool:
                self._measure(pool, [(m, m.smallest) for m in self.meters if m.smallest not in m.measured])
            smallest = [self._payload(m, p) for m, p in zip(self.meters, self._smallest(), strict=True)]
            self._smallest_bytes = len(self.assemble(smallest))
        return self._smallest_bytes

    def solve(self, budget_bytes: int) -> tuple[EncodedArtifact, list[Point]]:
        """Return the file of least predicted KL with at most `budget_bytes`, and the point of each tensor.

        Raises:
            BudgetError: even the smallest file exceeds the budget, or no choice was found that fits.
        """
        smallest = self.smallest_bytes()
        if smallest > budget_bytes:
            raise BudgetError(
                f"the smallest reachable artifact is {smallest} bytes, the budget is {budget_bytes}",
                smallest_bytes=smallest,
                hint="raise the budget, or allow a narrower width with --widths",
            )
        overhead = smallest - sum(p.bytes for p in self._smallest())
        with worker_pool() as pool:
            self._measure(pool, [(m, setting) for m in self.meters for setting in m.coarse])
            for _ in range(ROUNDS):
                chosen = self._choose(self._curve(), max(budget_bytes - overhead, 0))
                self._measure(pool, list(_refinements(self.meters, chosen)))
            self._progress(self._planned, self._planned)
            return self._fit(pool, budget_bytes, overhead)

    def _smallest(self) -> list[Point]:
        return [m.measure(*m.smallest).point for m in self.meters]

    def _measure(self, pool: ThreadPoolExecutor, jobs: list[tuple[TensorMeter, Setting]]) -> None:
        jobs = sorted(jobs, key=lambda job: -job[0].w_OI.numel())  # long ones first keeps all workers busy
        for _ in pool.map(lambda job: job[0].measure(*job[1]), jobs):
            self._done += 1
            self._progress(self._done, self._planned)

    def _curve(self) -> TradeOff:
        return trade_off([m.points for m in self.meters])

    def _choose(self, curve: TradeOff, payload_bytes: int) -> list[Point]:
        indices = curve.best(max(payload_bytes, curve.smallest_bytes))
        return [m.points[i] for m, i in zip(self.meters, indices, strict=True)]

    def _fit(self, pool: ThreadPoolExecutor, budget_bytes: int, overhead: int) -> tuple[EncodedArtifact, list[Point]]:
        """Assemble, learn the true overhead of the choice, choose again; return the best file that fits."""
        best: tuple[float, EncodedArtifact, list[Point]] | None = None
        curve = self._curve()
        for attempt in range(FIT_TRIES):
            chosen = self._choose(curve, budget_bytes - overhead)
            file = self.assemble(list(pool.map(self._payload, self.meters, chosen)))
            loss, fits = sum(p.predicted_kl for p in chosen), len(file) <= budget_bytes
            if fits and best is not None and loss >= best[0]:
                break
            if fits:
                best = (loss, file, chosen)
                overhead = len(file) - sum(p.bytes for p in chosen)
            else:
                overhead += (len(file) - budget_bytes) << attempt  # leave twice the room each time
        if best is None:
            raise BudgetError(
                f"no choice of grids of at most {budget_bytes} bytes was found in {FIT_TRIES} tries", hint="raise the budget"
            )
        return best[1], best[2]

    def _payload(self, meter: TensorMeter, point: Point) -> GridPayload:
        key = (meter.name, point)
        if key not in self._payloads:
            self._payloads[key] = meter.payload(point)
        return self._payloads[key]


def _refinements(meters: Iterable[TensorMeter], chosen: Iterable[Point]) -> Iterable[tuple[TensorMeter, Setting]]:
    """Yield clips halfway (geometrically) between each chosen one and its measured neighbours of the same width."""
    for meter, point in zip(meters, chosen, strict=True):
        clips = sorted(p.setting for p in meter.points if p.bits == point.bits)
        at = clips.index(point.setting)
        for neighbour in (*clips[max(at - 1, 0) : at], *clips[at + 1 : at + 2]):
            yield meter, Setting(point.bits, sqrt(point.setting * neighbour))
