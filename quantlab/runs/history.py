"""What was reached when: the best valid score so far, the runs that moved it, and the size of every run against the budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from quantlab.runs.frontier import Candidate
from quantlab.runs.frontier_view import recognised_names


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """One artifact, when its packing began."""

    candidate: Candidate
    when: datetime
    name: str
    is_valid: bool
    is_better: bool
    """Whether it has the best valid score until then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """All artifacts that were scored on one evaluation data, in order of time."""

    moments: tuple[Moment, ...]
    budgets: tuple[int, ...]

    @property
    def steps(self) -> list[Moment]:
        """The moments at which the best score moved."""
        return [moment for moment in self.moments if moment.is_better]


def history_of(group: Sequence[Candidate], budget_bytes: int | None) -> History:
    """Return the history of the candidates on one evaluation data. With a budget, larger files count as not valid.

    A run whose record has no readable time is left out.
    """
    timed = sorted(((when, c) for c in group if (when := _time(c.started))), key=lambda pair: (pair[0], pair[1].run))
    moments, best = [], float("inf")
    for (when, candidate), name in zip(timed, recognised_names([c for _, c in timed]), strict=True):
        is_valid = not candidate.problems and (budget_bytes is None or candidate.total_bytes <= budget_bytes)
        is_better = is_valid and candidate.bpb < best
        best = candidate.bpb if is_better else best
        moments.append(Moment(candidate=candidate, when=when, name=name, is_valid=is_valid, is_better=is_better))
    budgets = {c.budget_bytes for c in group if c.budget_bytes} if budget_bytes is None else {budget_bytes}
    return History(moments=tuple(moments), budgets=tuple(sorted(budgets)))


def _time(text: str) -> datetime | None:
    """Return a time of a record in UTC; None where it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
