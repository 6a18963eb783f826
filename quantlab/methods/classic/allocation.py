"""From a byte budget to one grid for every tensor."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt

from quantlab.artifact.writer import GridPayload
from quantlab.errors import BudgetError
from quantlab.methods.classic.knapsack import Point, TradeOff, trade_off
from quantlab.methods.classic.meter import TensorMeter
from quantlab.methods.classic.row_grid import Setting
from quantlab.methods.workers import worker_pool

ROUNDS = 3  # each halves the spacing of grid sizes around the choice: an octave, then 1/2, 1/4, 1/8
FIT_TRIES = 8

Assemble = Callable[[list[GridPayload]], bytes]
Progress = Callable[[int, int], None]


class Allocator:
    """Measures tensors and finds the plan whose file fits a budget.

    `assemble` turns the chosen payloads into the whole file; its length is what the budget is held against.
    """

    def __init__(self, meters: Sequence[TensorMeter], assemble: Assemble, progress: Progress | None = None) -> None:
        self.meters, self.assemble = meters, assemble
        self._progress = progress or (lambda done, total: None)
        self._payloads: dict[tuple[str, Point], GridPayload] = {}

    def solve(self, budget_bytes: int) -> tuple[bytes, list[Point]]:
        """The file of least predicted predicted_kl with at most `budget_bytes`, and the point of each tensor.

        Raises:
            BudgetError: even the coarsest grid of the narrowest width is larger; says how large.
        """
        total = sum(1 + len(m.family.coarse) + 2 * ROUNDS for m in self.meters)
        with worker_pool() as pool:
            done = self._measure(pool, [(m, m.family.smallest) for m in self.meters], 0, total)
            overhead = self._check_feasible(budget_bytes)
            done = self._measure(pool, [(m, setting) for m in self.meters for setting in m.family.coarse], done, total)
            for _ in range(ROUNDS):
                chosen = self._choose(trade_off([m.points for m in self.meters]), max(budget_bytes - overhead, 0))
                done = self._measure(pool, list(_refinements(self.meters, chosen)), done, total)
            self._progress(total, total)
            return self._fit(pool, trade_off([m.points for m in self.meters]), budget_bytes, overhead)

    def _measure(self, pool: ThreadPoolExecutor, jobs: list[tuple[TensorMeter, Setting]], done: int, total: int) -> int:
        jobs = sorted(jobs, key=lambda job: -job[0].w_OI.numel())  # long ones first keeps all workers busy
        for _ in pool.map(lambda job: job[0].measure(*job[1]), jobs):
            done += 1
            self._progress(done, total)
        return done

    def _check_feasible(self, budget_bytes: int) -> int:
        """Bytes of the file beyond the tensors' streams, after checking that the smallest plan fits."""
        smallest = [m.measure(*m.family.smallest).point for m in self.meters]
        size = len(self.assemble([self._payload(m, p) for m, p in zip(self.meters, smallest, strict=True)]))
        if size > budget_bytes:
            raise BudgetError(f"the smallest reachable artifact is {size} bytes", smallest_bytes=size)
        return size - sum(p.bytes for p in smallest)

    def _choose(self, curve: TradeOff, payload_bytes: int) -> list[Point]:
        indices = curve.best(max(payload_bytes, curve.smallest_bytes))
        return [m.points[i] for m, i in zip(self.meters, indices, strict=True)]

    def _fit(self, pool: ThreadPoolExecutor, curve: TradeOff, budget_bytes: int, overhead: int) -> tuple[bytes, list[Point]]:
        """Assemble, learn the true overhead of the choice, choose again; keep the best file that fits."""
        best: tuple[float, bytes, list[Point]] | None = None
        for attempt in range(FIT_TRIES):
            chosen = self._choose(curve, budget_bytes - overhead)
            data = self.assemble(list(pool.map(self._payload, self.meters, chosen)))
            loss, fits = sum(p.predicted_kl for p in chosen), len(data) <= budget_bytes
            if fits and best is not None and loss >= best[0]:
                break
            if fits:
                best = (loss, data, chosen)
                overhead = len(data) - sum(p.bytes for p in chosen)
            else:
                overhead += (len(data) - budget_bytes) << attempt  # leave twice the room each time
        if best is None:
            raise BudgetError(f"no plan of at most {budget_bytes} bytes was found in {FIT_TRIES} tries", hint="change --budget")
        return best[1], best[2]

    def _payload(self, meter: TensorMeter, point: Point) -> GridPayload:
        key = (meter.name, point)
        if key not in self._payloads:
            self._payloads[key] = meter.payload(point)
        return self._payloads[key]


def _refinements(meters: Iterable[TensorMeter], chosen: Iterable[Point]) -> Iterable[tuple[TensorMeter, Setting]]:
    """Grid sizes halfway (geometrically) between each chosen one and its measured neighbours of the same width."""
    for meter, point in zip(meters, chosen, strict=True):
        sizes = sorted(p.size for p in meter.points if p.bits == point.bits)
        at = sizes.index(point.size)
        for neighbour in (*sizes[max(at - 1, 0) : at], *sizes[at + 1 : at + 2]):
            yield meter, (point.bits, sqrt(point.size * neighbour))
