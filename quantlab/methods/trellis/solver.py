"""Solve a packing with the trellis method: round at one slope until the file is as long as the budget allows, then tune."""

import logging
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quantlab.array_file import ArrayFile
from quantlab.artifact.writer import EncodedArtifact, TrellisPayload, passthrough_payload
from quantlab.methods.method import Estimate, Problem, Solution
from quantlab.methods.trellis import TrellisOptions
from quantlab.methods.trellis.refinement import Inverse, Refinement, Stage
from quantlab.methods.trellis.rounder import Rounder, weights
from quantlab.methods.trellis.slope_search import SlopePlanner
from quantlab.methods.trellis.tuning import HELD_OUT, Tuned, Tuning
from quantlab.methods.workers import worker_pool
from quantlab.progress import stage

_log = logging.getLogger(__name__)

TUNED_GROWTH = 50
"""Tuned tensors may code to a fiftieth more bytes than they had, so the search leaves that much room."""


class TrellisSolver:
    """The trellis method at work on one problem."""

    def __init__(self, problem: Problem, options: TrellisOptions) -> None:
        self.problem, self.options = problem, options
        self.passthrough = dict(problem.passthrough)
        self._file = None if problem.scratch is None else ArrayFile(problem.scratch)
        with worker_pool() as pool:
            self.rounders = list(pool.map(self._rounder, problem.matrices.items()))
        self.planner = SlopePlanner(self.rounders, options.widths, self._assemble, problem.progress, problem.memo.codes)

    def _rounder(self, item: tuple[str, Tensor]) -> Rounder:
        (name, w_OI), uses = item, self.problem.statistics.fisher_uses
        bits = max(self.options.capped(self.problem.bits.get(name)))
        return Rounder(name, w_OI, partial(uses, name), self.options, bits, self._file)

    def _assemble(self, coded: Sequence[TrellisPayload], *, draft: bool = False) -> EncodedArtifact:
        return self.problem.encode([*coded, *self.passthrough.values()], draft=draft)

    def smallest_bytes(self) -> int:
        """Return the length of the file whose every code is zero."""
        return self.planner.smallest_bytes()

    def estimate(self, budget_bytes: int) -> Estimate:
        """Return what one rounding at the first guess gives."""
        size, points, payloads = self.planner.estimate(budget_bytes)
        values = {payload.entry.name: torch.from_numpy(weights(payload)) for payload in payloads}
        return Estimate(file_bytes=size, points=dict(zip(self.problem.matrices, points, strict=True)), tensors=values)

    def solve(self, budget_bytes: int) -> Solution:
        """Return the best file of at most `budget_bytes`. BudgetError if none was found that readers accept."""
        planner, batches = self.planner, self.options.batches
        c, payloads = planner.approach(budget_bytes)
        room = sum(len(raw.raw) for raw in self.passthrough.values()) // TUNED_GROWTH if batches else 0
        file, payloads = planner.settle(max(budget_bytes - room, 1), c)
        refines = self.options.refine_steps > 0
        refined, payloads = self._refine(payloads, budget_bytes - room) if refines else ([], payloads)
        tuned = self._tune(payloads, batches) if batches else None
        if batches or refines:  # codes stay: what is learned makes up for the very errors that they have
            file, payloads = planner.refill(budget_bytes, payloads, c)
        return self._solution(file, payloads, c, tuned, refined)

    def _solution(
        self,
        file: EncodedArtifact,
        payloads: Sequence[TrellisPayload],
        c: float,
        tuned: Tuned | None,
        refined: Sequence[Stage],
    ) -> Solution:
        names, planner = list(self.problem.matrices), self.planner
        values = {payload.entry.name: torch.from_numpy(weights(payload)) for payload in payloads}
        refining = {"refine_steps": self.options.refine_steps} if self.options.refine_steps else {}
        return Solution(
            data=file.data,
            layout=file.layout,
            points=dict(zip(names, planner.points(c, payloads), strict=True)),
            tensors=values | {name: raw.value for name, raw in self.passthrough.items()},
            effort={"states": self.options.states, "tune_steps": self.options.batches} | refining,
            tuned=_facts(tuned) if tuned else {},
            refined=[_facts(stage) for stage in refined],
            rounded_weights=planner.rounded_weights,
            measured={name: [points[n] for points in planner.passes] for n, name in enumerate(names)},
        )

    def _refine(self, payloads: list[TrellisPayload], goal_bytes: int) -> tuple[list[Stage], list[TrellisPayload]]:
        """Round everything anew, group by group, while what is left learns; return what each stage bought, and the payloads."""
        planner, ids_NT = self.planner, self.problem.statistics.ids_NT.long()
        if len(ids_NT) < HELD_OUT or not any(p.codes_OI.any() for p in payloads):
            few = f"of {len(ids_NT)} calibration sequences none can be held out, {HELD_OUT} are needed"
            _log.warning("no refinement: %s", few if len(ids_NT) < HELD_OUT else "every code is zero")
            return [], payloads
        at = {rounder.name: n for n, rounder in enumerate(self.rounders)}
        order = [name for name in self.problem.names_in_model() if name in at]
        payloads = list(payloads)

        def round_group(targets: dict[str, Tensor], left: Collection[str]) -> dict[str, Tensor]:
            now, to_come = {at[name]: w.numpy() for name, w in targets.items()}, {at[name] for name in left}
            levels = planner.levels_to_come(payloads, {*now, *to_come}, goal_bytes)
            for n, payload in zip(now, planner.take(now, levels), strict=True):
                payloads[n] = payload
            planner.free = frozenset(now)
            return {name: torch.from_numpy(weights(payloads[at[name]])) for name in targets}

        whole, steps = self.problem.whole, self.options.refine_steps
        refinement = Refinement(self.problem.model, self._inverse, self._unquantized(), ids_NT, steps, whole)
        weights_OI = {name: self.problem.matrices[name] for name in order}
        return refinement.run(weights_OI, round_group, self.problem.progress, self.problem.memo), payloads

    def _inverse(self, name: str) -> Inverse:
        return Inverse.of(self.problem.statistics.fisher_uses(name))

    def _unquantized(self) -> dict[str, Tensor]:
        return {name: raw.value for name, raw in self.passthrough.items()}

    def _tunable(self) -> dict[str, Tensor]:
        """Return the floating parameters that are stored by themselves, for no other parameter."""
        parameters = dict(self.problem.model.named_parameters(remove_duplicate=False))
        shared = {name for alias, name in self.problem.aliases.items() if parameters.get(alias) is not parameters.get(name)}
        names = parameters.keys() - shared - self.problem.shapes.keys()
        return {n: r.value for n, r in self.passthrough.items() if n in names and r.value.is_floating_point()}

    def _tune(self, payloads: Sequence[TrellisPayload], steps: int) -> Tuned | None:
        """Learn the passthrough tensors beside the rounded ones, and keep what was better; None where there is too little."""
        start, ids_NT = self._tunable(), self.problem.statistics.ids_NT.long()
        if not start or len(ids_NT) < HELD_OUT:
            return None
        values = {payload.entry.name: torch.from_numpy(weights(payload)) for payload in payloads}
        rounded = self.problem.whole(self._unquantized() | values)
        progress = stage(self.problem.progress, "tune unquantized tensors")

        def compute() -> tuple[dict[str, Tensor], dict[str, str]]:
            task = Tuning(rounded=rounded, start=start, ids_NT=ids_NT, steps=steps, store=_stored)
            found = self.problem.together(task, progress)
            return found.tensors, {"kl_before": repr(found.kl_before), "kl_after": repr(found.kl_after)}

        tensors, about = self.problem.memo.tensors("tuned", compute)
        self.passthrough |= {name: passthrough_payload(name, tensor) for name, tensor in tensors.items()}
        return Tuned(tensors, float(about["kl_before"]), float(about["kl_after"]))


def _stored(name: str, value: Tensor) -> Tensor:
    """Return the value of a tensor after it is written and read."""
    return passthrough_payload(name, value).value


def _facts(tuned: Tuned | Stage) -> dict[str, Any]:
    return {"kl_before": tuned.kl_before, "kl_after": tuned.kl_after, "accepted": tuned.is_better}
