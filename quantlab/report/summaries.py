"""What files of a comparison say at equal bytes and at equal cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from quantlab.report.entry import Entry

EQUAL_BYTES = 0.005
"""Totals this close, as a share of the smallest, count as equal."""
MOST_APART = 4.0
"""Two files of a series are interpolated between if their costs differ by no more: 4 is one bit a weight at high rates."""

Measure = Literal["KL", "predicted cost"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualBytes:
    """Files of about the same total, least cost first."""

    measure: Measure
    labels: tuple[str, ...]
    total_bytes: tuple[int, ...]
    costs: tuple[float, ...]
    """Nats per token."""
    ratios: tuple[float, ...]
    """Each cost by the least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualCost:
    """The bytes that one series of files would take for the cost of another file."""

    measure: Measure
    label: str
    cost: float
    """Nats per token."""
    total_bytes: int
    between: tuple[str, str]
    """The files of the series with the next larger and the next smaller cost."""
    series_bytes: float
    """Interpolated: bytes are linear in log(cost)."""
    ratio: float
    """series_bytes / total_bytes."""


@dataclass(frozen=True, slots=True)
class _Point:
    label: str
    total_bytes: int
    cost: float
    series: str


def equal_bytes(labels: Sequence[str], entries: Sequence[Entry]) -> tuple[EqualBytes, ...]:
    """Groups of two files or more within EQUAL_BYTES of the smallest; none where costs cannot be compared."""
    groups: list[list[int]] = []
    for n in sorted(range(len(entries)), key=lambda n: entries[n].total_bytes):
        if groups and entries[n].total_bytes <= (1 + EQUAL_BYTES) * entries[groups[-1][0]].total_bytes:
            groups[-1].append(n)
        else:
            groups.append([n])
    found = []
    for group in groups:
        measure, points = _comparable([labels[n] for n in group], [entries[n] for n in group])
        if len(points) > 1:
            points.sort(key=lambda p: p.cost)
            found.append(
                EqualBytes(
                    measure=measure,
                    labels=tuple(p.label for p in points),
                    total_bytes=tuple(p.total_bytes for p in points),
                    costs=tuple(p.cost for p in points),
                    ratios=tuple(p.cost / points[0].cost for p in points),
                )
            )
    return tuple(found)


def equal_cost(labels: Sequence[str], entries: Sequence[Entry]) -> tuple[EqualCost, ...]:
    """For each file and each series that it is not of: the series' bytes at the file's cost, where two of its files enclose it.

    A series is files that differ in nothing but their budget. Nothing is extrapolated.
    """
    measure, points = _comparable(labels, entries)
    series: dict[str, list[_Point]] = {}
    for point in sorted(points, key=lambda p: p.cost):
        series.setdefault(point.series, []).append(point)
    found = []
    for point in points:
        for name, members in series.items():
            pair = next(((b, a) for a, b in pairwise(members) if a.cost <= point.cost <= b.cost), None)
            if name == point.series or pair is None or pair[0].cost > MOST_APART * pair[1].cost:
                continue
            size = _interpolate(pair, point.cost)
            found.append(
                EqualCost(
                    measure=measure,
                    label=point.label,
                    cost=point.cost,
                    total_bytes=point.total_bytes,
                    between=(pair[0].label, pair[1].label),
                    series_bytes=size,
                    ratio=size / point.total_bytes,
                )
            )
    return tuple(found)


def _interpolate(pair: tuple[_Point, _Point], cost: float) -> float:
    """Bytes at `cost`, which lies between the costs of the pair."""
    (high, low), span = pair, math.log(pair[0].cost / pair[1].cost)
    share = math.log(high.cost / cost) / span if span else 0.0
    return high.total_bytes + share * (low.total_bytes - high.total_bytes)


def _comparable(labels: Sequence[str], entries: Sequence[Entry]) -> tuple[Measure, list[_Point]]:
    """Measured KL of the files that have one, if all are to one reference; else predicted costs of one kind."""
    pairs = list(zip(labels, entries, strict=True))
    measured = [(n, e, e.against.kl_mean) for n, e in pairs if e.against and e.against.kl_mean > 0]
    if len(measured) > 1 and len({e.against.fingerprint for _, e, _ in measured if e.against}) == 1:
        return "KL", [_point(*one) for one in measured]
    predicted = [(n, e, e.report.distortion) for n, e in pairs if e.report and e.report.distortion > 0]
    kinds = {(repr(e.report.calibration.get("fingerprint")), e.method == "trellis") for _, e, _ in predicted if e.report}
    return "predicted cost", [_point(*one) for one in predicted] if len(kinds) == 1 else []


def _point(label: str, entry: Entry, cost: float) -> _Point:
    return _Point(label, entry.total_bytes, cost, _series(entry) or label)


def _series(entry: Entry) -> str:
    """Names everything that decides a file but its budget; empty without a report."""
    r = entry.report
    return repr((r.method, r.calibration, r.effort, r.widths, r.seed)) if r else ""
