"""From a checkpoint and its statistics to the whole file, by one of the methods."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from quantlab.artifact.writer import Payload, TrellisPayload, encode_artifact, keep
from quantlab.calib.statistics import Statistics
from quantlab.jobs.workspace import Workspace
from quantlab.methods.classic.allocation import Allocator
from quantlab.methods.classic.knapsack import Point
from quantlab.methods.classic.meter import TensorMeter
from quantlab.methods.trellis.effort import Effort, choose_effort
from quantlab.methods.trellis.rounder import Rounder, RoundingOptions, weights
from quantlab.methods.trellis.slope_search import SlopePlanner
from quantlab.methods.trellis.tuning import HELD_OUT, Tuned, tune
from quantlab.models.loading import Loaded
from quantlab.models.weights import split_state
from quantlab.progress import Progress, stage

Method = Literal["trellis", "gptq", "rtn"]
METHODS: tuple[Method, ...] = ("trellis", "gptq", "rtn")


TUNED_GROWTH = 50
"""Tuned tensors may code to a fiftieth more bytes than they had: settling leaves that much room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SolveOptions:
    """How to get from weights to codes."""

    method: Method
    widths: tuple[int, ...]
    rounding: RoundingOptions = field(default_factory=RoundingOptions)
    tune_steps: int = 0
    time_limit_s: float | None = None
    """Seconds for rounding and tuning: fewer states and steps where these would take longer."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What the search decided, and what a reader of the file must get."""

    data: bytes
    """The whole file."""
    points: dict[str, Point]
    """Grid, bytes and predicted_kl of each quantized tensor."""
    tensors: dict[str, Tensor]
    """Every tensor's values as they were measured, made without the file."""
    effort: Effort | None = None
    """What the trellis method spent."""
    tuned: Tuned | None = None
    measured: dict[str, list[Point]] = field(default_factory=dict)
    """What else the search measured of each quantized tensor."""


class Solver:
    """One checkpoint with its statistics; `about` is what the manifest says besides its tensors."""

    def __init__(
        self,
        loaded: Loaded,
        stats: Statistics,
        options: SolveOptions,
        about: dict[str, Any],
        progress: Progress,
        workspace: Workspace | None = None,
    ) -> None:
        self.workspace = workspace
        self.loaded, self.stats, self.options, self.about, self.progress = loaded, stats, options, about, progress
        self.matrices, kept = split_state(loaded.state)
        self.parameters = {name for name, _ in loaded.model.named_parameters(remove_duplicate=False)}
        # buffers (position tables, masks) are not trained: half precision could break them
        self.raws = {name: keep(name, tensor, exact=name not in self.parameters) for name, tensor in kept.items()}

    def assemble(self, coded: Sequence[Payload]) -> bytes:
        """The whole file."""
        return encode_artifact([*coded, *self.raws.values()], **self.about)

    def solve(self, budget_bytes: int) -> Solution:
        """The best file of at most `budget_bytes`. BudgetError if there is none, with the smallest reachable size."""
        return self._trellis(budget_bytes) if self.options.method == "trellis" else self._classic(budget_bytes)

    def _classic(self, budget_bytes: int) -> Solution:
        method: Literal["gptq", "rtn"] = "gptq" if self.options.method == "gptq" else "rtn"
        widths = self.options.widths
        meters = [TensorMeter(n, w, self.stats.uses(n), method, widths) for n, w in self.matrices.items()]
        data, points = Allocator(meters, self.assemble, stage(self.progress, "search grids")).solve(budget_bytes)
        found = {m.name: m.reconstruct(p) for m, p in zip(meters, points, strict=True)}
        chosen, measured = dict(zip(self.matrices, points, strict=True)), {m.name: m.points for m in meters}
        return Solution(data, chosen, found | self._kept(), measured=measured)

    def _trellis(self, budget_bytes: int) -> Solution:
        rounding, widths = self.options.rounding, self.options.widths
        uses = self.stats.fisher_uses
        rounders = [Rounder(n, w, uses(n), rounding, max(widths)) for n, w in self.matrices.items()]
        effort = self._effort(rounders)
        for rounder in rounders:
            rounder.options = replace(rounding, states=effort.states)
        memo = self.workspace.codes if self.workspace else None
        planner = SlopePlanner(rounders, widths, self.assemble, stage(self.progress, "round"), memo)
        planner.check_feasible(budget_bytes)
        c, payloads = planner.approach(budget_bytes)
        tuned = None
        room = sum(len(raw.raw) for raw in self.raws.values()) // TUNED_GROWTH if effort.tune_steps else 0
        data, payloads = planner.settle(max(budget_bytes - room, 1), c)
        if effort.tune_steps:  # codes stay: what is learned makes up for the very errors that they have
            tuned = self._tune(payloads, effort.tune_steps)
            data, payloads = planner.refill(budget_bytes, payloads, c)
        found = {p.entry.name: torch.from_numpy(weights(p)) for p in payloads}
        points = dict(zip(self.matrices, planner.points(c, payloads), strict=True))
        measured = dict(zip(self.matrices, map(list, zip(*planner.passes, strict=True)), strict=True))
        return Solution(data, points, found | self._kept(), effort, tuned, measured)

    def _effort(self, rounders: Sequence[Rounder]) -> Effort:
        """What was asked for, or what fits into the time; a resumed packing keeps its first choice."""
        wanted, limit = Effort(self.options.rounding.states, self.options.tune_steps), self.options.time_limit_s
        if limit is None:
            return wanted

        def compute() -> dict[str, int]:
            return asdict(choose_effort(rounders, wanted, self._one_tune_step, limit))

        return Effort(**(self.workspace.note("effort", compute) if self.workspace else compute()))

    def _one_tune_step(self) -> None:
        kept = self._tunable()
        tune(self.loaded.model, {}, kept, self.stats.ids_NT.long()[: 2 * HELD_OUT], 1, lambda name, value: value)

    def _tunable(self) -> dict[str, Tensor]:
        return {n: r.value for n, r in self.raws.items() if n in self.parameters and r.value.is_floating_point()}

    def _tune(self, payloads: Sequence[TrellisPayload], steps: int) -> Tuned | None:
        """Learn the kept tensors beside the rounded ones of the last pass, and keep what was better."""
        kept = self._tunable()
        if not kept or len(self.stats.ids_NT) < HELD_OUT:
            return None
        rounded = {p.entry.name: torch.from_numpy(weights(p)) for p in payloads}
        progress = stage(self.progress, "tune kept tensors")

        def compute() -> Tuned:
            ids_NT = self.stats.ids_NT.long()
            return tune(self.loaded.model, rounded, kept, ids_NT, steps, lambda name, value: keep(name, value).value, progress)

        tuned = self.workspace.tuned(compute) if self.workspace else compute()
        self.raws |= {name: keep(name, tensor) for name, tensor in tuned.tensors.items()}
        return tuned

    def _kept(self) -> dict[str, Tensor]:
        return {name: raw.value for name, raw in self.raws.items()}
