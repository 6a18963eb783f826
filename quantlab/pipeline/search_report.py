"""What a search has found: the frontier, which keys mattered, what was tried and why it lost, and what to try next."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from quantlab.pipeline.proposers import propose_by_chance, proposer_of
from quantlab.pipeline.search import spent_hours
from quantlab.pipeline.search_space import COMMAND, Axis, Space, Values
from quantlab.pipeline.search_store import RUNNING, Trial, best_of, frontier_of

NEXT = 3
FEWEST = 5
"""Scored trials from which a key's importance is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """How much of the differences in bits per byte goes with one key."""

    key: str
    share: float
    """Of ranks: squared Spearman correlation for numbers; share of variance between the choices for others. 0 to 1."""
    direction: str
    """What is better: higher, lower, or the best choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchReport:
    """The report of a search."""

    trials: int
    scored: int
    running: int
    hours: float
    best: Trial | None
    frontier: tuple[Trial, ...]
    importance: tuple[Importance, ...]
    lost: tuple[tuple[int, str], ...]
    """Number of a trial, and why it is not the best."""
    next: tuple[Values, ...]
    """Values that the proposer would try now; by chance where it is a program."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def report_of(space: Space, trials: Sequence[Trial]) -> SearchReport:
    """Return the report of the trials of a store."""
    best = best_of(trials)
    return SearchReport(
        trials=len(trials),
        scored=sum(trial.is_scored for trial in trials),
        running=sum(trial.state == RUNNING for trial in trials),
        hours=spent_hours(trials),
        best=best,
        frontier=tuple(frontier_of(trials)),
        importance=tuple(importance_of(space, trials)),
        lost=tuple((trial.number, _why(trial, best)) for trial in trials if best is None or trial.number != best.number),
        next=tuple(_next(space, trials)),
    )


def _why(trial: Trial, best: Trial | None) -> str:
    if not trial.is_scored or best is None or trial.bpb is None or best.bpb is None:
        return trial.problem or trial.state
    changed = [f"{key} {trial.values[key]} for {value}" for key, value in best.values.items() if trial.values.get(key) != value]
    return f"{trial.bpb - best.bpb:+.4f} BPB with {', '.join(changed) or 'the same values'}"


def importance_of(space: Space, trials: Sequence[Trial]) -> list[Importance]:
    """Return the keys, the one that matters most first; an empty list for too few trials."""
    scored = [trial for trial in trials if trial.is_scored]
    if len(scored) < FEWEST:
        return []
    scores = [float(trial.bpb or 0.0) for trial in scored]
    found = [_importance(axis, [trial.values.get(axis.key) for trial in scored], scores) for axis in space.axes]
    return sorted(found, key=lambda one: -one.share)


def _importance(axis: Axis, values: Sequence[Any], scores: Sequence[float]) -> Importance:
    if not axis.choices:
        numbers = [float(value) for value in values]
        if len(set(numbers)) < 2 or len(set(scores)) < 2:
            return Importance(key=axis.key, share=0.0, direction="not varied")
        rho = float(stats.spearmanr(numbers, scores).statistic)
        return Importance(key=axis.key, share=rho * rho, direction="higher" if rho < 0 else "lower")
    groups = [[s for v, s in zip(values, scores, strict=True) if v == choice] for choice in axis.choices]
    mean = sum(scores) / len(scores)
    total = sum((score - mean) ** 2 for score in scores)
    between = sum(len(group) * (sum(group) / len(group) - mean) ** 2 for group in groups if group)
    tried = [(sum(group) / len(group), choice) for group, choice in zip(groups, axis.choices, strict=True) if group]
    return Importance(key=axis.key, share=between / total if total else 0.0, direction=str(min(tried, key=lambda t: t[0])[1]))


def _next(space: Space, trials: Sequence[Trial]) -> list[Values]:
    """Return what would be tried next: each proposal counts as a trial at work for the one after it."""
    name = space.options.proposer
    propose = propose_by_chance if name.startswith(COMMAND) else proposer_of(name)
    found: list[Values] = []
    known = list(trials)
    for _ in range(NEXT if trials else 0):
        found.append(propose(space, known))
        known.append(Trial(number=len(known), values=dict(found[-1]), process=trials[0].process))
    return found


def report_lines(report: SearchReport) -> list[str]:
    """Return the report as text."""
    head = f"{report.scored} of {report.trials} trials scored, {report.running} at work, {report.hours:.2f} hours"
    if report.best is None:
        return [head, "no valid trial", *_lost_lines(report)]
    lines = [head, f"best: trial {report.best.number}, {_score(report.best)}, run {report.best.run or '-'}"]
    lines += [f"  {key} = {value}" for key, value in report.best.values.items()]
    lines += ["frontier:", *(f"  {_score(trial)}  trial {trial.number}" for trial in report.frontier)]
    if report.importance:
        lines.append("what mattered (share of the differences in bits per byte):")
        lines += [f"  {one.share:4.0%}  {one.key}  better: {one.direction}" for one in report.importance]
    else:
        lines.append(f"what mattered: {FEWEST} scored trials are needed")
    lines += _lost_lines(report)
    return [*lines, "next:", *("  " + ", ".join(f"{key}={value}" for key, value in one.items()) for one in report.next)]


def _lost_lines(report: SearchReport) -> list[str]:
    kinds = Counter("worse" if "BPB with" in why else "not scored" for _, why in report.lost)
    head = "why the others lost: " + (", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "there are none")
    return [head, *(f"  trial {number}: {why}" for number, why in report.lost)]


def _score(trial: Trial) -> str:
    return f"{trial.bpb:.4f} BPB, {trial.total_bytes:,} bytes"
