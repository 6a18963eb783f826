"""quantlab run"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json
from quantlab.cli.recording import recorder_of

if TYPE_CHECKING:
    from quantlab.pipeline.stages.execute import CellPlan
    from quantlab.pipeline.stages.read import Cell
    from quantlab.pipeline.stages.result import Result
    from quantlab.runs.recording import Recorder


def run(
    pipeline: Annotated[
        Path,
        typer.Argument(
            metavar="P.toml", help="Tables [data], [train], [calibrate], [pack], [evaluate], [report], [clock], [matrix]."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run folder.  [default: P.run beside P.toml]")
    ] = None,
    changes: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one key, like pack.budget=250kB; repeatable.")
    ] = [],  # noqa: B006
    start: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="Run this stage and those after it again, up to date or not.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which stages would run and why, and do nothing.")] = False,
    runs: options.Runs = None,
    no_run: options.NoRun = False,
    mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Train, calibrate, pack, evaluate and report as a file says; only what is not up to date.

    A second run does nothing, a changed option runs the stages that it reaches, a killed run goes on. Exit code 3: the byte
    budget cannot be met, or the clock's seconds were not enough.

    Example: quantlab run examples/laptop.toml --set pack.budget=250kB
    """
    from quantlab.errors import ConfigError
    from quantlab.pipeline.stages.execute import plan_pipeline, run_pipeline
    from quantlab.pipeline.stages.read import read_pipeline

    if "RANK" in os.environ:
        raise ConfigError("quantlab run starts its processes itself: set train.processes, and run it without torchrun")
    cells = read_pipeline(pipeline, changes)
    root = out or pipeline.with_name(f"{pipeline.stem}.run")
    recorder = recorder_of(runs, no_run, mirror)
    with ProgressDisplay() as progress:
        if dry_run:
            plans = plan_pipeline(cells, root, start, progress)
        else:
            recording = lambda cell: _recorded(recorder, pipeline, root, cell)  # noqa: E731
            results = run_pipeline(cells, root, start=start, progress=progress, note=note, recording=recording)
    if dry_run:
        _print_plan(plans, root, as_json)
    else:
        _print_results(results, root, as_json)


def _print_plan(plans: "Sequence[CellPlan]", root: Path, as_json: bool) -> None:
    from quantlab.cli.run_text import plan_dict, plan_lines

    if as_json:
        print_json({"out": str(root), "cells": plan_dict(plans)})
    else:
        print("\n".join(plan_lines(plans)))


def _print_results(results: "Sequence[Result]", root: Path, as_json: bool) -> None:
    """Raise BudgetError after them if one does not count."""
    from quantlab.cli.run_text import result_lines
    from quantlab.errors import BudgetError

    if as_json:
        print_json({"out": str(root), "cells": [result.to_dict() for result in results]})
    else:
        print("\n".join(result_lines(results)))
    if invalid := [result for result in results if result.problems]:
        name = f"{len(invalid)} of {len(results)} cells are not valid; {invalid[0].cell.name}: " if len(results) > 1 else ""
        raise BudgetError(name + invalid[0].problems[0])


@contextmanager
def _recorded(recorder: "Recorder", pipeline: Path, root: Path, cell: "Cell") -> "Iterator[Callable[[Result], None]]":
    """A run folder of `quantlab runs` around the work on one cell."""
    from quantlab.runs.record import Checkpoint, packing_of

    asked = {"pipeline": pipeline, "out": root, "cell": cell.name, **asdict(cell.config)}
    seeds = {"calibrate": cell.config.calibrate.seed}
    if cell.config.train:
        seeds["train"] = cell.config.train.config.seed
    with recorder.run("run", asked, seeds=seeds) as writer:

        def keep(result: "Result") -> None:
            score = result.evaluation
            against = score.against if score else None
            writer.result(
                checkpoint=Checkpoint(path=against.file, fingerprint=against.fingerprint) if against else None,
                artifact=result.artifact,
                packing=packing_of(result.packing) if result.packing else None,
                evaluation=score,
                metrics={"clock": result.clock, "stages": result.times},
                problems=result.problems,
                files=[path for path in result.files if path.suffix in (".json", ".txt", ".html")],
            )

        yield keep
