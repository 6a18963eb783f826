"""Plan and run a pipeline: each stage whose result is not up to date runs, once for all cells that share it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import BudgetError, ConfigError, StageError
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.markdown_report import REPORT_NAME, pipeline_report
from quantlab.pipeline.packing_stages import Pipeline, build
from quantlab.pipeline.pipeline_config import STAGES
from quantlab.pipeline.read import Cell
from quantlab.pipeline.result import Result, StageTime, failed_result, result_of, write_changed, write_results
from quantlab.pipeline.stage import Stage, StageJob
from quantlab.pipeline.stage_folder import (
    ATTEMPT_NAME,
    PRODUCER,
    Attempt,
    StageRecord,
    check_files,
    check_output_directory,
    locked_folder,
    read_record,
)
from quantlab.progress import Progress, silent

HASHES_NAME = "hashes.json"
LONGEST_VALUE = 20
"""Characters of a value in the reason why a stage runs."""

Note = Callable[[str], None]
Recording = Callable[[Cell], AbstractContextManager[Callable[[Result], None]]]
"""Opened for a cell that has work to do; yields a function that is called with the result."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage and whether it will run."""

    stage: Stage
    record: StageRecord | None
    """Record of its result if that is up to date; None if the stage will run."""
    why: str
    """Why it will run; empty if it is up to date."""
    is_forced: bool = False
    """Whether it begins with an empty folder, whatever is there."""

    @property
    def runs(self) -> bool:
        """Whether there is work to do."""
        return self.record is None


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One cell with the plan of its stages."""

    cell: Cell
    stages: list[PlannedStage]


def plan_pipeline(cells: Sequence[Cell], root: Path, start: str = "", progress: Progress = silent) -> list[CellPlan]:
    """Return what `run_pipeline` would do; write nothing. The arguments and errors are those of `run_pipeline`."""
    check_output_directory(root)
    hashes = FileHashes(root / HASHES_NAME, progress)
    pipelines = [build(cell.config, hashes) for cell in cells]
    planner = StagePlanner(root, hashes, _forced(start, pipelines))
    return [CellPlan(cell, planner.plan_all(pipeline)) for cell, pipeline in zip(cells, pipelines, strict=True)]


def run_pipeline(
    cells: Sequence[Cell],
    root: Path,
    *,
    start: str = "",
    progress: Progress = silent,
    note: Note = lambda text: None,
    recording: Recording | None = None,
) -> list[Result]:
    """Run every stage that is not up to date in the output directory `root`; return one result for each cell.

    A budget that cannot be met ends its cell alone where there are several.

    Args:
        start: stage to run again together with those after it, up to date or not; empty for none.
        note: called with one line for each stage that begins.
    Raises:
        ConfigError: another process works in `root`, it is not an output directory, or the pipeline has no stage `start`.
        StageError: a stage's folder is damaged.
        BudgetError: the budget of the only cell cannot be met.
    """
    with locked_folder(root) as lock:
        hashes = FileHashes(root / HASHES_NAME, progress)
        pipelines = [build(cell.config, hashes) for cell in cells]
        hashes.save()
        planner = StagePlanner(root, hashes, _forced(start, pipelines))
        runner = _Runner(planner, lock, progress, note)
        try:
            is_only = len(cells) == 1
            results = [runner.cell(c, p, recording, is_only=is_only) for c, p in zip(cells, pipelines, strict=True)]
            write_results(results, root)
            write_changed(root / REPORT_NAME, pipeline_report(results).encode())
            return results
        finally:
            hashes.save()


def _forced(start: str, pipelines: Sequence[Pipeline]) -> tuple[str, ...]:
    """Return `start` and the stages after it. ConfigError if the pipeline has no such stage."""
    if not start:
        return ()
    known = [name for name in STAGES if any(stage.name == name for p in pipelines for stage in p.stages)]
    if start not in known:
        raise ConfigError(f"--from must be a stage of this pipeline ({', '.join(known)}), got {start!r}")
    return STAGES[STAGES.index(start) :]


class StagePlanner:
    """Compares the keys of stages with the records in one output directory.

    `forced` has the names of stages to run again, the one that the user named first; each key is run once.
    """

    def __init__(self, root: Path, hashes: FileHashes, forced: Sequence[str] = ()) -> None:
        self.root, self.hashes, self.forced = root, hashes, forced
        self._done: dict[str, StageRecord] = {}
        """Results that are up to date or were made by this process, by key."""
        self._finished: dict[str, list[StageRecord]] = {}
        """All finished stages in the output directory, by name."""

    def plan_all(self, pipeline: Pipeline) -> list[PlannedStage]:
        """Return the plan of all stages, before any of them has run."""
        runs: set[str] = set()
        plans = []
        for stage in pipeline.stages:
            plans.append(planned := self.plan(stage, runs))
            if planned.runs:
                runs.add(stage.key)
        return plans

    def plan(self, stage: Stage, runs_before: Collection[str] = ()) -> PlannedStage:
        """Return the plan for a stage; `runs_before` has the keys of stages that run, or have run, before it.

        Raises:
            StageError: its folder is damaged, and is not to be made anew.
        """
        if stage.key in self._done:
            return PlannedStage(stage, self._done[stage.key], "")
        if stage.name in self.forced:
            return PlannedStage(stage, None, f"forced by --from {self.forced[0]}", is_forced=True)
        if running := [before.name for before in stage.after if before.key in runs_before]:
            return PlannedStage(stage, None, f"{running[-1]} is new")
        record = read_record(stage.folder(self.root))
        if record is None:
            return PlannedStage(stage, None, self._why_new(stage))
        check_files(record, stage, stage.folder(self.root), self.hashes)
        if stale := [name for name, digest in self.made_from(stage).items() if record.made_from.get(name) != digest]:
            return PlannedStage(stage, None, f"made from another result of {stale[0]}")
        self._done[stage.key] = record
        return PlannedStage(stage, record, "")

    def made_from(self, stage: Stage) -> dict[str, str]:
        """Return the digests of the results that a stage reads; all stages before it are done."""
        return {before.name: self._done[before.key].digest for before in stage.after}

    def is_done(self, stage: Stage, record: StageRecord) -> None:
        """Take note that this process has run the stage."""
        self._done[stage.key] = record

    def _why_new(self, stage: Stage) -> str:
        """Return why a stage without a result has none, as the changes from the most similar result there is."""
        if (stage.folder(self.root) / ATTEMPT_NAME).exists():
            return "unfinished"
        others = self._finished_stages(stage.name)
        if not others:
            return "no result yet"
        nearest = min(others, key=lambda other: len(_changes(other.inputs, stage.inputs)))
        changes = _changes(nearest.inputs, stage.inputs)
        if not changes:
            return "no result yet" if nearest.producer == PRODUCER else f"the last result is of {nearest.producer}"
        return ", ".join(changes[:2]) + (", ..." if len(changes) > 2 else "")

    def _finished_stages(self, name: str) -> list[StageRecord]:
        """Return the records of all finished stages of this name, the last one first; damaged ones are left out."""
        if name not in self._finished:
            found = []
            for folder in sorted(self.root.glob(f"{name}-*")) if self.root.is_dir() else ():
                try:
                    found.append(read_record(folder))
                except StageError:  # this pipeline does not need it
                    continue
            records = [record for record in found if record]
            self._finished[name] = sorted(records, key=lambda record: record.finished, reverse=True)
        return self._finished[name]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return each difference as text: `budget_bytes 50000, was 60000`."""
    found = []
    for key in dict.fromkeys([*new, *old]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{key}.{change}" for change in _changes(a, b)]
        elif a != b and any(isinstance(value, list | Mapping) for value in (a, b)):
            found.append(f"{key} changed")
        elif a != b:
            found.append(f"{key} {_shown(b)}, was {_shown(a)}")
    return found


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:12]}..."


class _Runner:
    """Runs stages in an output directory that this process has locked."""

    def __init__(self, planner: StagePlanner, lock: int, progress: Progress, note: Note) -> None:
        self.planner, self.root, self.lock, self.progress, self.note = planner, planner.root, lock, progress, note
        self._were_run: set[str] = set()
        """Keys of stages that this process has run."""

    def cell(self, cell: Cell, pipeline: Pipeline, recording: Recording | None, *, is_only: bool) -> Result:
        """Run a cell and return its result. BudgetError if its budget cannot be met and it is the only cell."""
        has_work = any(planned.runs for planned in self.planner.plan_all(pipeline))
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

    def _in_turn(self, pipeline: Pipeline) -> Iterator[PlannedStage]:
        """Yield each stage, planned after those before it are done."""
        for stage in pipeline.stages:
            yield self.planner.plan(stage, self._were_run)

    def _stage(self, planned: PlannedStage) -> StageTime:
        """Run a stage unless it is up to date; return the time that its result took."""
        stage, record = planned.stage, planned.record
        if record is None:
            self.note(f"{stage.name} {stage.short_key}: {planned.why}")
            record = self._run(planned)
            self._were_run.add(stage.key)
            self.planner.is_done(stage, record)
        return StageTime(stage.name, stage.short_key, planned.runs, record.seconds, record.inside_seconds, record.attempts)

    def _run(self, planned: PlannedStage) -> StageRecord:
        stage, folder = planned.stage, planned.stage.folder(self.root)
        attempt = Attempt(stage, folder, self.planner.made_from(stage), fresh=planned.is_forced)
        outcome = stage.work(StageJob(self.root, folder, attempt.timed(self.progress), self.lock))
        return attempt.finish(outcome, self.planner.hashes)


def _forget(result: Result) -> None:
    """Take a result where nothing is recorded."""
