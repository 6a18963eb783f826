"""The frontier as points and axes, for any way of drawing: what lies inside the axes, what is an arrow at their edge.

The axis of scores is that of the lower envelope, so that one bad run does not flatten the others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from quantlab.errors import ConfigError, QuantlabError
from quantlab.evaluation.evaluation_record import EvaluationData
from quantlab.printable import printable
from quantlab.runs.frontier import Candidate, lower_envelope

Measure = Literal["bpb", "gap", "kl"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
TITLES = {"bpb": "bits per byte", "gap": "bits per byte above the float model", "kl": "KL to the float model, nats per token"}
LEAST_WIDTH = 0.04
"""Smallest range of the axis of bytes, as a share of the largest size: in a smaller range all ticks would read the same."""
BEYOND = 1.5
"""A file that is not valid and larger than this multiple of all others is an arrow at the right edge."""
ROOM_ABOVE, ROOM_BELOW = 0.8, 0.12
"""What the axis of scores has above and below the envelope and the float model, as shares of their range."""
LEAST_HEIGHT = 0.004
"""Smallest range of scores, as a share of the largest on the envelope."""
PLAIN_NAMES = {"model", "m", "packed", "artifact", "final_model", "out"}
"""Stems of files that say nothing without their folder."""
MOST_LABELS = 12
"""Largest number of points on the envelope that are labelled with their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One artifact with its score."""

    candidate: Candidate
    x: int
    """Bytes of artifact and counted code."""
    y: float
    low: float | None
    """Lower end of the 95 % interval of the difference to the float model, around y; None where it is not known."""
    high: float | None
    name: str
    is_valid: bool
    is_best: bool
    """Whether it is on the lower envelope."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """What is drawn, on one evaluation data."""

    data: EvaluationData
    measure: Measure
    marks: tuple[Mark, ...]
    budgets: tuple[int, ...]
    float_score: float | None
    """Score of the float model; None where it is not known or there are several."""
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    without: int
    """Candidates that have no value of this measure."""

    @property
    def envelope(self) -> list[Mark]:
        """Valid marks that no other one dominates, smallest first."""
        return sorted((mark for mark in self.marks if mark.is_best), key=lambda mark: mark.x)

    @property
    def valid(self) -> list[Mark]:
        """Valid marks."""
        return [mark for mark in self.marks if mark.is_valid]

    @property
    def invalid(self) -> list[Mark]:
        """Marks that are not valid."""
        return [mark for mark in self.marks if not mark.is_valid]

    @property
    def methods(self) -> list[str]:
        """Methods of the marks, the most frequent one first."""
        counts = Counter(mark.candidate.method for mark in self.marks)
        return sorted(counts, key=lambda method: (-counts[method], method))

    def is_outside(self, mark: Mark) -> bool:
        """Return whether a mark is an arrow at an edge."""
        return mark.x > self.x_range[1] or not self.y_range[0] <= mark.y <= self.y_range[1]

    def place(self, mark: Mark) -> tuple[float, float]:
        """Return where a mark is drawn: where it is, or at the edge nearest to it."""
        (left, right), (low, high) = self.x_range, self.y_range
        return min(max(mark.x, left), right), min(max(mark.y, low), high)


def frontier_of(data: EvaluationData, group: Sequence[Candidate], budget_bytes: int | None, measure: str = "bpb") -> Frontier:
    """Return the picture of the candidates on one evaluation data. With a budget, larger files count as not valid.

    Raises:
        ConfigError: there is no such measure.
        QuantlabError: no candidate has a value of it.
    """
    if measure not in MEASURES:
        raise ConfigError(f"y must be one of {', '.join(MEASURES)}, got {measure!r}")
    kind: Measure = measure  # type: ignore[assignment]  # checked above
    known = [c for c in group if _value(c, kind) is not None]
    if not known:
        raise QuantlabError(f"no run has a {measure} on this data", hint="score with quantlab eval --against CKPT")
    valid = [c for c in known if not c.problems and (budget_bytes is None or c.total_bytes <= budget_bytes)]
    best = {id(valid[n]) for n in lower_envelope([(c.total_bytes, _value(c, kind) or 0.0) for c in valid])}
    names, right = recognised_names(known), {id(c) for c in valid}
    marks = tuple(_mark(c, kind, names[n], is_valid=id(c) in right, is_best=id(c) in best) for n, c in enumerate(known))
    budgets = {c.budget_bytes for c in valid if c.budget_bytes} if budget_bytes is None else {budget_bytes}
    float_score = _float_score(known, kind)
    return Frontier(
        data=data,
        measure=kind,
        marks=marks,
        budgets=tuple(sorted(budgets)),
        float_score=float_score,
        x_range=_x_range(marks, budgets),
        y_range=_y_range(marks, float_score, is_kl=kind == "kl"),
        without=len(group) - len(known),
    )


def _value(candidate: Candidate, measure: Measure) -> float | None:
    against = candidate.evaluation.against
    if measure == "bpb":
        return candidate.bpb
    if against is None:
        return None
    return against.kl_mean if measure == "kl" else against.gap_bpb[0] if against.gap_bpb else None


def _mark(candidate: Candidate, measure: Measure, name: str, *, is_valid: bool, is_best: bool) -> Mark:
    y = _value(candidate, measure)
    assert y is not None
    gap = candidate.evaluation.against.gap_bpb if candidate.evaluation.against and measure != "kl" else None
    return Mark(
        candidate=candidate,
        x=candidate.total_bytes,
        y=y,
        low=y + gap[1] - gap[0] if gap else None,
        high=y + gap[2] - gap[0] if gap else None,
        name=name,
        is_valid=is_valid,
        is_best=is_best,
    )


def recognised_names(found: Sequence[Candidate]) -> list[str]:
    """Return a name for each: the file's stem, with its folder where that says more, and the run where two are alike.

    >>> recognised_names([])
    []
    """
    names = []
    for candidate in found:
        path = PurePath(candidate.artifact)
        stem, folder = path.name.removesuffix(".qlab"), path.parent.name
        names.append(printable(f"{folder}/{stem}" if stem in PLAIN_NAMES and folder else stem))
    counts = Counter(names)
    return [n if counts[n] == 1 else f"{n} {c.run[-8:]}" for n, c in zip(names, found, strict=True)]


def _float_score(found: Sequence[Candidate], measure: Measure) -> float | None:
    """Return the score of the float model that all files were compared with; None where it is not one."""
    references = {(a.fingerprint, a.val_bpb) for c in found if (a := c.evaluation.against)}
    if len(references) != 1 or measure == "kl":
        return None
    return 0.0 if measure == "gap" else next(iter(references))[1]


def _x_range(marks: Sequence[Mark], budgets: set[int]) -> tuple[float, float]:
    """Return both ends of the axis of bytes: valid files and budgets, and others that are not far beyond them."""
    inside = [*budgets, *(mark.x for mark in marks if mark.is_valid)] or [mark.x for mark in marks]
    sizes = inside + [mark.x for mark in marks if not mark.is_valid and mark.x <= BEYOND * max(inside)]
    middle, half = (min(sizes) + max(sizes)) / 2, 0.56 * (max(sizes) - min(sizes))
    half = max(half, LEAST_WIDTH / 2 * max(sizes))
    return middle - half, middle + half


def _y_range(marks: Sequence[Mark], float_score: float | None, *, is_kl: bool) -> tuple[float, float]:
    """Return both ends of the axis of scores: the envelope and the float model with room around them."""
    inside = [mark.y for mark in marks if mark.is_best] or [min(mark.y for mark in marks)]
    inside += [] if float_score is None else [float_score]
    low, high = min(inside), max(inside)
    if is_kl:  # the axis is logarithmic
        return max(low, 1e-9) / 1.5, max(high, 1e-9) * 2.5
    span = max(high - low, LEAST_HEIGHT * abs(high), 1e-9)
    return low - ROOM_BELOW * span, high + ROOM_ABOVE * span
