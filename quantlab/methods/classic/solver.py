"""Solve a packing with the baselines: measure grids of every tensor, then choose one for each under the budget."""

from collections.abc import Sequence

from torch import Tensor

from quantlab.artifact.writer import EncodedArtifact, GridPayload
from quantlab.methods.classic.allocation import Allocator
from quantlab.methods.classic.meter import TensorMeter
from quantlab.methods.classic.row_grid import Setting
from quantlab.methods.method import Estimate, MethodOptions, Point, Problem, Solution
from quantlab.progress import stage


class ClassicSolver:
    """GPTQ or round-to-nearest at work on one problem."""

    def __init__(self, problem: Problem, options: MethodOptions, *, feeds_back: bool) -> None:
        self.problem = problem
        uses, bits = problem.statistics.uses, problem.bits
        self.meters = [
            TensorMeter(name, w_OI, uses(name), options.capped(bits.get(name)), feeds_back=feeds_back)
            for name, w_OI in problem.matrices.items()
        ]
        self.allocator = Allocator(self.meters, self._assemble, stage(problem.progress, "search grids"))

    def _assemble(self, coded: list[GridPayload]) -> EncodedArtifact:
        return self.problem.encode([*coded, *self.problem.passthrough.values()])

    def smallest_bytes(self) -> int:
        """Return the length of the file with the coarsest grid of the narrowest width for every tensor."""
        return self.allocator.smallest_bytes()

    def estimate(self, budget_bytes: int) -> Estimate:
        """Return what the file would be; what is measured for one budget serves the next."""
        file, points = self.allocator.solve(budget_bytes)
        found = {m.name: p for m, p in zip(self.meters, points, strict=True)}
        return Estimate(file_bytes=len(file), points=found, tensors=self._tensors(points))

    def solve(self, budget_bytes: int) -> Solution:
        """Return the file of least predicted KL with at most `budget_bytes`."""
        file, points = self.allocator.solve(budget_bytes)
        found = self._tensors(points)
        return Solution(
            data=file.data,
            layout=file.layout,
            points=dict(zip(found, points, strict=True)),
            tensors=found | {name: raw.value for name, raw in self.problem.passthrough.items()},
            measured={meter.name: meter.points for meter in self.meters},
        )

    def _tensors(self, points: Sequence[Point]) -> dict[str, Tensor]:
        """Return the values of each tensor at its point."""
        return {m.name: m.reconstruct(Setting(p.bits, p.setting)) for m, p in zip(self.meters, points, strict=True)}
