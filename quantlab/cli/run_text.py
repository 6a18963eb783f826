"""A pipeline's plan and results as lines for people."""

from collections.abc import Iterator, Sequence
from typing import Any

from quantlab.pipeline.stages.clock import Clock
from quantlab.pipeline.stages.execute import CellPlan
from quantlab.pipeline.stages.result import Result


def plan_dict(plans: Sequence[CellPlan]) -> list[dict[str, Any]]:
    """Each cell's stages for JSON."""
    return [
        {
            "cell": plan.cell.name,
            "values": plan.cell.values,
            "stages": [{"stage": p.stage.name, "key": p.stage.short_key, "runs": p.runs, "why": p.why} for p in plan.stages],
        }
        for plan in plans
    ]


def plan_lines(plans: Sequence[CellPlan]) -> Iterator[str]:
    """A line for each stage, and how many of them run."""
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


def result_lines(results: Sequence[Result]) -> Iterator[str]:
    """Time by stage where there is one cell, and for each cell the line that matters."""
    if len(results) == 1 and results[0].clock:
        yield from _time_lines(results[0], results[0].clock)
    for result in results:
        yield _result_line(result)


def _time_lines(result: Result, clock: Clock) -> Iterator[str]:
    yield f"{'stage':<10} {'key':<12}  {'':<10}  {'inside':>10}  {'outside':>10}"
    for time in result.times:
        what = "ran" if time.is_new else "up to date"
        inside = f"{clock.inside[time.stage]:.1f} s" if time.stage in clock.inside else ""
        again = f"  {time.attempts} attempts" if time.attempts > 1 else ""
        yield f"{time.stage:<10} {time.key:<12}  {what:<10}  {inside:>10}  {clock.outside[time.stage]:>8.1f} s{again}"
    allowed = f" of {clock.max_seconds:g} s" if clock.max_seconds else ""
    yield f"clock: {clock.inside_seconds:.1f} s{allowed} inside, {sum(clock.outside.values()):.1f} s outside"


def _result_line(result: Result) -> str:
    if result.packing is None or result.artifact is None:
        return f"{result.cell.name}: {result.budget_problem}, not valid"
    packing, score = result.packing, result.evaluation
    parts = [f"{result.artifact}: {packing.total_bytes:,} of {packing.budget_bytes:,} bytes"]
    if score is None:
        parts.append("not scored")
    elif score.against is None:
        parts.append(f"BPB {score.val_bpb:.4f}")
    else:
        parts.append(f"BPB {score.against.val_bpb:.4f} before, {score.val_bpb:.4f} after")
        parts.append(f"KL {score.against.kl_mean:.5f} nats per token")
    return ", ".join([*parts, "not valid" if result.problems else "valid"])
