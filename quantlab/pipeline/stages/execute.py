"""Do what is to be done, cell by cell, stage by stage; a stage that several cells share is done once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from quantlab.errors import BudgetError, ConfigError
from quantlab.pipeline.progress import Progress, silent
from quantlab.pipeline.stages.attempt import Attempt
from quantlab.pipeline.stages.build import Pipeline, build
from quantlab.pipeline.stages.clock import StageTime
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.lock import check_is_ours, locked_folder
from quantlab.pipeline.stages.options import STAGES
from quantlab.pipeline.stages.plan import Planned, Planner
from quantlab.pipeline.stages.read import Cell
from quantlab.pipeline.stages.record import StageRecord
from quantlab.pipeline.stages.result import Result, failed_result, result_of, write_results
from quantlab.pipeline.stages.stage import Job

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
