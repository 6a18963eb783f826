"""Record the work on one cell of a pipeline as a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from quantlab.pipeline.read import Cell
from quantlab.pipeline.result import Result
from quantlab.progress import Progress, silent
from quantlab.runs.recording import Recorder
from quantlab.runs.run_record import Checkpoint, packing_of


class WatchedProgress:
    """A progress that is kept in the folder of the run that is recorded now."""

    def __init__(self, show: Progress) -> None:
        self.show = self.now = show

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show and keep that `done` of `total` units of `stage` are finished."""
        self.now(stage, done, total, note)


@contextmanager
def recorded(
    recorder: Recorder,
    pipeline: Path,
    root: Path,
    cell: Cell,
    named: Callable[[str], None] = lambda name: None,
    *,
    watched: WatchedProgress | None = None,
) -> Iterator[Callable[[Result], None]]:
    """Record the block as a run of kind `run`; yield the function that takes its result.

    Args:
        named: is told the name of the run folder, if there is one.
        watched: the progress of the work, kept in the run folder meanwhile.
    """
    watched = watched or WatchedProgress(silent)
    asked = {"pipeline": pipeline, "out": root, "cell": cell.name, **asdict(cell.config)}
    seeds = {"calibrate": cell.config.calibrate.seed}
    if cell.config.train:
        seeds["train"] = cell.config.train.config.seed
    with recorder.run("run", asked, seeds=seeds) as writer:
        if writer.folder is not None:
            named(writer.folder.name)

        def keep(result: Result) -> None:
            score = result.evaluation
            against = score.against if score else None
            writer.result(
                checkpoint=Checkpoint(path=against.file, fingerprint=against.fingerprint) if against else None,
                artifact=result.artifact,
                packing=packing_of(result.packing) if result.packing else None,
                evaluation=score,
                metrics={"clock": result.clock, "stages": result.times},
                problems=result.limit_problems,
                files=[path for path in result.files if path.suffix in (".json", ".txt", ".html")],
            )

        watched.now = writer.watched(watched.show)
        try:
            yield keep
        finally:
            watched.now = watched.show
