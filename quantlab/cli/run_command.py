"""quantlab run: a pipeline's plan and results, for people and for programs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantlab.cli import options
from quantlab.cli.display import ProgressDisplay, note, print_json, say
from quantlab.errors import BudgetError, ConfigError, QuantlabError

if TYPE_CHECKING:
    from quantlab.pipeline.execute import CellPlan
    from quantlab.pipeline.result import Clock, Result


def run(
    pipeline: Annotated[
        Path,
        typer.Argument(
            metavar="P.toml", help="Tables [data], [train], [calibrate], [pack], [evaluate], [report], [clock], [matrix]."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The output directory.  [default: P.out beside P.toml]")
    ] = None,
    changes: options.Changes = [],  # noqa: B006
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

    A second call does nothing, a changed option runs the stages that it reaches, a killed one goes on. Exit code 3: the byte
    budget cannot be met, or the clock's seconds were not enough.

    Example: quantlab run examples/laptop.toml --set pack.budget=250kB
    """
    from quantlab.pipeline.execute import plan_pipeline, run_pipeline
    from quantlab.pipeline.read import read_pipeline
    from quantlab.pipeline.recorded import WatchedProgress, recorded

    if "RANK" in os.environ:
        raise ConfigError("quantlab run starts its processes itself: set train.processes, and run it without torchrun")
    cells = read_pipeline(pipeline, changes)
    root = out or pipeline.with_name(f"{pipeline.stem}.out")
    recorder = options.recorder_of(runs, no_run, mirror)
    with ProgressDisplay() as progress:
        if dry_run:
            plans = plan_pipeline(cells, root, start, progress)
        else:
            watched = WatchedProgress(progress)
            recording = lambda cell: recorded(recorder, pipeline, root, cell, watched=watched)  # noqa: E731
            results = run_pipeline(cells, root, start=start, progress=watched, note=note, recording=recording)
    if dry_run:
        _print_plan(plans, root, as_json)
    else:
        _print_results(results, root, as_json)


def _print_plan(plans: "Sequence[CellPlan]", root: Path, as_json: bool) -> None:
    if as_json:
        print_json({"out": str(root), "cells": _plan_dict(plans)})
    else:
        say(*_plan_lines(plans))


def _print_results(results: "Sequence[Result]", root: Path, as_json: bool) -> None:
    """Print the results; after them raise BudgetError if one exceeds a limit, QuantlabError if another is not valid."""
    if as_json:
        print_json({"out": str(root), "cells": [result.to_dict() for result in results]})
    else:
        say(*_result_lines(results))
    late = [result for result in results if result.limit_problems]
    if invalid := [result for result in results if result.problems]:
        first = (late or invalid)[0]
        name = f"{len(invalid)} of {len(results)} cells are not valid; {first.cell.name}: " if len(results) > 1 else ""
        raise (BudgetError if late else QuantlabError)(name + first.problems[0])


def _plan_dict(plans: "Sequence[CellPlan]") -> list[dict[str, Any]]:
    """Return each cell's stages for JSON."""
    return [
        {
            "cell": plan.cell.name,
            "values": plan.cell.values,
            "stages": [{"stage": p.stage.name, "key": p.stage.short_key, "runs": p.runs, "why": p.why} for p in plan.stages],
        }
        for plan in plans
    ]


def _plan_lines(plans: "Sequence[CellPlan]") -> Iterator[str]:
    """Yield a line for each stage, and how many of them run."""
    first: dict[str, str] = {}
    yield f"{'stage':<10} {'key':<12}  plan"
    for plan in plans:
        if plan.cell.name:
            yield f"cell {plan.cell.name}"
        for p in plan.stages:
            what = "up to date" if not p.runs else f"runs: {p.why}"
            if p.runs and p.stage.key in first:
                what = f"as in {first[p.stage.key]}"
            elif p.runs:
                first[p.stage.key] = plan.cell.name
            yield f"{p.stage.name:<10} {p.stage.short_key:<12}  {what}"
    total = len({p.stage.key for plan in plans for p in plan.stages})
    yield f"{len(first)} of {total} stages to run"


def _result_lines(results: "Sequence[Result]") -> Iterator[str]:
    """Yield the time by stage where there is one cell, and for each cell the line that matters."""
    if len(results) == 1 and results[0].clock:
        yield from _time_lines(results[0], results[0].clock)
    for result in results:
        yield _result_line(result)


def _time_lines(result: "Result", clock: "Clock") -> Iterator[str]:
    yield f"{'stage':<10} {'key':<12}  {'':<10}  {'inside':>10}  {'outside':>10}"
    for time in result.times:
        what = "ran" if time.is_new else "up to date"
        inside = f"{clock.inside[time.stage]:.1f} s" if time.stage in clock.inside else ""
        again = f"  {time.attempts} attempts" if time.attempts > 1 else ""
        yield f"{time.stage:<10} {time.key:<12}  {what:<10}  {inside:>10}  {clock.outside[time.stage]:>8.1f} s{again}"
    allowed = f" of {clock.max_seconds:g} s" if clock.max_seconds else ""
    yield f"clock: {clock.inside_seconds:.1f} s{allowed} inside, {sum(clock.outside.values()):.1f} s outside"


def _result_line(result: "Result") -> str:
    if result.packing is None or result.artifact is None:
        return f"{result.cell.name}: {result.budget_problem}, not valid"
    from quantlab.report.tables import number

    packing, score = result.packing, result.evaluation
    parts = [f"{result.artifact}: {packing.total_bytes:,} of {packing.budget_bytes:,} bytes"]
    if score is None:
        parts.append("not scored")
    elif score.against is None:
        parts.append(f"BPB {number(score.val_bpb, '.4f')}")
    else:
        parts.append(f"BPB {number(score.against.val_bpb, '.4f')} before, {number(score.val_bpb, '.4f')} after")
        parts.append(f"KL {score.against.kl_mean:.5f} nats per token")
    return ", ".join([*parts, "not valid" if result.problems else "valid"])
