"""Which stages will run and why: what the records in the run folder say about the keys of today.

Do what is to be done, cell by cell, stage by stage; a stage that several cells share is done once."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import BudgetError, ConfigError, StageError
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.packing_stages import Pipeline, build
from quantlab.pipeline.pipeline_config import STAGES
from quantlab.pipeline.read import Cell
from quantlab.pipeline.result import Result, StageTime, failed_result, result_of, write_results
from quantlab.pipeline.stage import Job, Stage
from quantlab.pipeline.stage_folder import (
    ATTEMPT_NAME,
    PRODUCER,
    Attempt,
    StageRecord,
    check_is_ours,
    check_outputs,
    locked_folder,
    read_record,
)
from quantlab.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be done about a stage."""

    stage: Stage
    record: StageRecord | None
    """Of its result if that is up to date; None if the stage will run."""
    why: str
    """Why it will run; empty if it is up to date."""
    is_forced: bool = False
    """Begin anew, whatever is there."""

    @property
    def runs(self) -> bool:
        """Whether there is work to do."""
        return self.record is None


class Planner:
    """Looks at one run folder; `forced`: names of stages to run again, once for each key."""

    def __init__(self, root: Path, hashes: FileHashes, forced: Collection[str] = ()) -> None:
        self.root, self.hashes, self.forced = root, hashes, forced
        self._done: dict[str, StageRecord] = {}
        """By key: what is up to date, or was made by this process."""
        self._others: dict[str, list[StageRecord]] = {}

    def plan(self, stage: Stage, runs_before: Collection[str] = ()) -> Planned:
        """The plan for a stage, where the stages with the keys `runs_before` run before it.

        Raises:
            StageError: its folder is damaged, and is not to be made anew.
        """
        if stage.key in self._done:
            return Planned(stage, self._done[stage.key], "")
        if stage.name in self.forced:
            return Planned(stage, None, f"forced by --from {self.forced_from}", is_forced=True)
        if running := [before.name for before in stage.after if before.key in runs_before]:
            return Planned(stage, None, f"{running[-1]} is new")
        record = read_record(stage.folder(self.root))
        if record is None:
            return Planned(stage, None, self._why_new(stage))
        check_outputs(record, stage, stage.folder(self.root), self.hashes)
        if stale := [name for name, digest in self.made_from(stage).items() if record.made_from.get(name) != digest]:
            return Planned(stage, None, f"made from another result of {stale[0]}")
        self._done[stage.key] = record
        return Planned(stage, record, "")

    @property
    def forced_from(self) -> str:
        """The stage that the user named."""
        return next(iter(self.forced), "")

    def made_from(self, stage: Stage) -> dict[str, str]:
        """Digests of what the stages before it have made; all of them are done."""
        return {before.name: self._done[before.key].digest for before in stage.after}

    def is_done(self, stage: Stage, record: StageRecord) -> None:
        """This process has run the stage."""
        self._done[stage.key] = record

    def _why_new(self, stage: Stage) -> str:
        if (stage.folder(self.root) / ATTEMPT_NAME).exists():
            return "unfinished"
        others = self._records(stage.name)
        if not others:
            return "no result yet"
        nearest = min(others, key=lambda other: len(_changes(other.inputs, stage.inputs)))
        changes = _changes(nearest.inputs, stage.inputs)
        if not changes:
            return "no result yet" if nearest.producer == PRODUCER else f"the last result is of {nearest.producer}"
        return ", ".join(changes[:2]) + (", ..." if len(changes) > 2 else "")

    def _records(self, name: str) -> list[StageRecord]:
        """Finished stages of the same kind, the last one first."""
        if name not in self._others:
            found = []
            for folder in sorted(self.root.glob(f"{name}-*")) if self.root.is_dir() else ():
                try:
                    found.append(read_record(folder))
                except StageError:  # not in this pipeline's way
                    continue
            records = [record for record in found if record]
            self._others[name] = sorted(records, key=lambda record: record.finished, reverse=True)
        return self._others[name]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is another: `budget_bytes 50000, was 60000`."""
    found = []
    for key in dict.fromkeys([*new, *old]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _changes(a, b, f"{prefix}{key}.")
        elif a != b and any(isinstance(value, list | Mapping) for value in (a, b)):
            found.append(f"{prefix}{key} changed")
        elif a != b:
            found.append(f"{prefix}{key} {_shown(b)}, was {_shown(a)}")
    return found


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


HASHES_NAME = "hashes.json"

Note = Callable[[str], None]
Recording = Callable[[Cell], AbstractContextManager[Callable[[Result], None]]]
"""Opened for a cell that has work to do; what it gives is called with the result."""


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One cell with the plan of its stages."""

    cell: Cell
    stages: list[Planned]


def plan_pipeline(cells: Sequence[Cell], root: Path, start: str = "", progress: Progress = silent) -> list[CellPlan]:
    """What `run_pipeline` would do. Writes nothing."""
    check_is_ours(root)
    hashes = FileHashes(root / HASHES_NAME, progress)
    pipelines = [build(cell.config, hashes) for cell in cells]
    planner = Planner(root, hashes, _forced(start, pipelines))
    return [CellPlan(cell, _plan(planner, pipeline)) for cell, pipeline in zip(cells, pipelines, strict=True)]


def run_pipeline(
    cells: Sequence[Cell],
    root: Path,
    *,
    start: str = "",
    progress: Progress = silent,
    note: Note = lambda text: None,
    recording: Recording | None = None,
) -> list[Result]:
    """Run what is not up to date in the run folder `root`; one result for each cell.

    A budget that cannot be met ends its cell alone where there are several.

    Args:
        start: run this stage and those after it again, up to date or not.
        note: called with a line for each stage that begins.
    Raises:
        ConfigError: another process works in `root`, or it is no run folder.
        StageError: a stage's folder is damaged.
        BudgetError: the budget of the only cell cannot be met.
    """
    check_is_ours(root)
    with locked_folder(root) as lock:
        hashes = FileHashes(root / HASHES_NAME, progress)
        pipelines = [build(cell.config, hashes) for cell in cells]
        hashes.save()
        planner = Planner(root, hashes, _forced(start, pipelines))
        runner = Runner(planner, lock, progress, note)
        try:
            is_only = len(cells) == 1
            results = [runner.cell(c, p, recording, is_only=is_only) for c, p in zip(cells, pipelines, strict=True)]
            write_results(results, root)
            return results
        finally:
            hashes.save()


class Runner:
    """Runs stages in a folder that this process has locked."""

    def __init__(self, planner: Planner, lock: int, progress: Progress, note: Note) -> None:
        self.planner, self.root, self.lock, self.progress, self.note = planner, planner.root, lock, progress, note
        self._was_run: set[str] = set()
        """Keys of stages that this process has run."""

    def cell(self, cell: Cell, pipeline: Pipeline, recording: Recording | None, *, is_only: bool) -> Result:
        """Run a cell and give its result."""
        has_work = any(planned.runs for planned in _plan(self.planner, pipeline))
        if has_work:
            pipeline.report.check()
        try:
            with recording(cell) if recording and has_work else nullcontext(_forget) as keep:
                times = [self._stage(planned) for planned in self._in_turn(pipeline)]
                result = result_of(cell, pipeline, self.root, times)
                keep(result)
                return result
        except BudgetError as error:
            if is_only:
                raise
            self.note(f"{cell.name}: {error}")
            return failed_result(cell, error)

    def _in_turn(self, pipeline: Pipeline) -> Iterator[Planned]:
        """Each stage, planned when those before it are done."""
        for stage in pipeline.stages:
            yield self.planner.plan(stage, self._was_run)

    def _stage(self, planned: Planned) -> StageTime:
        stage = planned.stage
        record = planned.record
        is_new = record is None
        if record is None:
            self.note(f"{stage.name} {stage.short_key}: {planned.why}")
            record = self._run(planned)
            self._was_run.add(stage.key)
            self.planner.is_done(stage, record)
        return StageTime(stage.name, stage.short_key, is_new, record.seconds, record.inside_seconds, record.attempts)

    def _run(self, planned: Planned) -> StageRecord:
        stage, folder = planned.stage, planned.stage.folder(self.root)
        attempt = Attempt(stage, folder, self.planner.made_from(stage), fresh=planned.is_forced)
        done = stage.work(Job(self.root, folder, attempt.timed(self.progress), self.lock))
        return attempt.finish(done, self.planner.hashes)


def _plan(planner: Planner, pipeline: Pipeline) -> list[Planned]:
    """All stages, none of them done by this."""
    runs: set[str] = set()
    plans = []
    for stage in pipeline.stages:
        planned = planner.plan(stage, runs)
        plans.append(planned)
        if planned.runs:
            runs.add(stage.key)
    return plans


def _forced(start: str, pipelines: Sequence[Pipeline]) -> tuple[str, ...]:
    """`start` and the stages after it. ConfigError if the pipeline has no such stage."""
    if not start:
        return ()
    known = [name for name in STAGES if any(stage.name == name for p in pipelines for stage in p.stages)]
    if start not in known:
        raise ConfigError(f"--from must be a stage of this pipeline ({', '.join(known)}), got {start!r}")
    return STAGES[STAGES.index(start) :]


def _forget(result: Result) -> None:
    """Where nothing is recorded."""
