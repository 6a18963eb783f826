"""Packed models side by side: a row for each file and each tensor, and what follows at equal bytes and at equal KL.

Everything is computed from entries that were read before; no file is opened here.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from quantlab.errors import ConfigError
from quantlab.evaluation.evaluation_record import EvaluationData
from quantlab.report.entry import Entry, TensorFacts

Sort = Literal["bytes", "predicted_kl", "bpw", "name"]
SORTS: tuple[Sort, ...] = get_args(Sort)
Measure = Literal["KL", "predicted KL"]
EQUAL_BYTES = 0.005
"""Totals this close, as a share of the smallest, count as equal."""
MOST_APART = 4.0
"""Largest ratio of KL between two files of a series to interpolate between: 4 is one bit a weight at high rates."""
EFFORT_OPTIONS = ("effort", "tune", "tune_steps", "refine_steps", "time_limit")
"""Options of the trellis whose outcome is the report's effort."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """One file of the table. A value that is not known is None."""

    label: str
    """A, B, C and so on, in the order given."""
    path: str
    method: str
    budget_bytes: int | None
    artifact_bytes: int
    code_bytes: int | None
    total_bytes: int
    slack_bytes: int | None
    size_breakdown: dict[str, int]
    n_params: int
    bpw: float | None
    """8 · artifact_bytes / n_params."""
    predicted_kl: float | None
    """Nats per token."""
    bpb_before: float | None
    """Bits per byte of the reference on the same data."""
    bpb_after: float | None
    gap_bpb: tuple[float, float, float] | None
    """Bits per byte after minus before, paired by token, and both ends of its 95 % interval."""
    kl: float | None
    """Mean KL to the reference, nats per token."""
    kl_q99: float | None
    """99th percentile over positions, nats."""
    top1_flips: float | None
    """Share of positions whose most likely token differs from the reference's."""
    is_valid: bool
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRow:
    """One tensor in all files. The cell of a file that does not have it is None."""

    name: str
    shape: tuple[int, ...]
    cells: tuple[TensorFacts | None, ...]

    def values(self, key: str) -> list[float | None]:
        """Return one field of every file's cell."""
        return [None if cell is None else getattr(cell, key) for cell in self.cells]


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualBytes:
    """Files of about the same total bytes, sorted by KL or predicted KL."""

    measure: Measure
    labels: tuple[str, ...]
    total_bytes: tuple[int, ...]
    kls: tuple[float, ...]
    """Nats per token."""
    ratios: tuple[float, ...]
    """Each KL divided by the smallest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualKL:
    """The bytes that one series of files would take at the KL of another file."""

    measure: Measure
    label: str
    kl: float
    """Nats per token."""
    total_bytes: int
    between: tuple[str, str]
    """Files of the series with the next larger and the next smaller KL."""
    series_bytes: float
    """Interpolated: bytes are taken as linear in log(KL)."""
    ratio: float
    """series_bytes / total_bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The whole comparison, ready for a table, JSON or a page."""

    files: tuple[FileRow, ...]
    tensors: tuple[TensorRow, ...]
    evaluation_data: EvaluationData | None
    """The data that all scores were measured on."""
    equal_bytes: tuple[EqualBytes, ...]
    equal_kl: tuple[EqualKL, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON types."""
        return asdict(self)


def compare_entries(entries: Sequence[Entry], *, sort: Sort = "bytes") -> Comparison:
    """Return the comparison of `entries`; `sort` orders its tensors, largest difference from the first file first.

    Raises:
        ConfigError: scores of different evaluation data, or an unknown sort.
    """
    if sort not in SORTS:
        raise ConfigError(f"sort must be one of {', '.join(SORTS)}, got {sort!r}")
    labels = [label(n) for n in range(len(entries))]
    return Comparison(
        files=tuple(map(_file_row, labels, entries)),
        tensors=tuple(sorted(_tensor_rows(entries), key=lambda row: _order(row, sort))),
        evaluation_data=_common_data(entries),
        equal_bytes=equal_bytes(labels, entries),
        equal_kl=equal_kl(labels, entries),
        notes=tuple(_notes(labels, entries)),
    )


def label(number: int) -> str:
    """Return the label of a file: A to Z, then F27 and so on."""
    return chr(ord("A") + number) if number < 26 else f"F{number + 1}"


def _file_row(name: str, entry: Entry) -> FileRow:
    report, evaluation, against = entry.report, entry.evaluation, entry.against
    return FileRow(
        label=name,
        path=entry.path,
        method=entry.method,
        budget_bytes=report.budget_bytes if report else None,
        artifact_bytes=entry.artifact_bytes,
        code_bytes=report.code_bytes if report else None,
        total_bytes=entry.total_bytes,
        slack_bytes=report.budget_bytes - entry.total_bytes if report else None,
        size_breakdown=entry.size_breakdown,
        n_params=entry.n_params,
        bpw=8 * entry.artifact_bytes / entry.n_params if entry.n_params else None,
        predicted_kl=report.predicted_kl if report else None,
        bpb_before=against.val_bpb if against else None,
        bpb_after=evaluation.val_bpb if evaluation else None,
        gap_bpb=against.gap_bpb if against else None,
        kl=against.kl_mean if against else None,
        kl_q99=against.kl_q99 if against else None,
        top1_flips=against.top1_flips if against else None,
        is_valid=not entry.problems,
        problems=entry.problems,
    )


def _tensor_rows(entries: Sequence[Entry]) -> list[TensorRow]:
    columns = [{t.name: t for t in entry.tensors} for entry in entries]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = []
    for name in names:
        cells = tuple(column.get(name) for column in columns)
        first = next(cell for cell in cells if cell)
        rows.append(TensorRow(name=name, shape=first.shape, cells=cells))
    return rows


def _order(row: TensorRow, sort: Sort) -> tuple[float, str]:
    """Return a sort key: the largest difference from the first file comes first; with one file, the largest value."""
    return (0.0 if sort == "name" else -spread(row.values(sort)), row.name)


def spread(values: Sequence[float | None]) -> float:
    """Return the largest difference from the first value; with one value, the value itself. 0 where the first is missing."""
    if values[0] is None:
        return 0.0
    if len(values) == 1:
        return values[0]
    return max((abs(v - values[0]) for v in values[1:] if v is not None), default=0.0)


def _common_data(entries: Sequence[Entry]) -> EvaluationData | None:
    """Return the data that all scores were measured on. ConfigError, naming fields, values and files, if it is not one."""
    scored = [(e.path, e.evaluation.data) for e in entries if e.evaluation]
    if not scored:
        return None
    first = scored[0][1]
    names = {name: None for _, data in scored for name in first.differences(data)}
    if names:
        raise ConfigError(
            "scores of different evaluation data cannot be compared: " + "; ".join(_difference(n, scored) for n in names),
            hint="run quantlab eval --save --force on the same data with the same options for all of them",
        )
    return first


def _difference(name: str, scored: Sequence[tuple[str, EvaluationData]]) -> str:
    """Return the values of one field, like `seq_len is 256 in a.qlab, 1024 in b.qlab and c.qlab`."""
    by_value: dict[Any, list[str]] = {}
    for path, data in scored:
        by_value.setdefault(getattr(data, name), []).append(path)
    short = {value: value[:12] if name.endswith("sha256") else value for value in by_value}
    return f"{name} is " + ", ".join(f"{short[value]} in {' and '.join(paths)}" for value, paths in by_value.items())


def _notes(labels: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    """Return remarks that a reader of the scores must know."""
    notes = []
    references = {e.against.fingerprint for e in entries if e.against}
    if len(references) > 1:
        notes.append("the files were evaluated against different references: each KL and gap is to its own")
    for name, entry in zip(labels, entries, strict=True):
        packed = entry.file.checkpoint if entry.file else ""
        if entry.against and packed and entry.against.fingerprint != packed:
            notes.append(f"{name}: the reference {entry.against.file} is not the model that was packed")
    devices = {e.evaluation.device for e in entries if e.evaluation}
    if len(devices) > 1:
        notes.append(f"scores were computed on different devices ({', '.join(sorted(devices))}), whose arithmetic differs")
    modes = {e.evaluation.data.mode for e in entries if e.evaluation and e.against}
    if modes - {"chunked"}:
        notes.append(f"bits per byte are {', '.join(sorted(modes))}; gap and KL are of sequences that do not overlap")
    return notes


def ratio(value: float | None, base: float | None) -> float | None:
    """Return value / base; None unless both are known and positive and the ratio is finite."""
    if value is None or base is None or not (value > 0 and base > 0 and math.isfinite(value / base)):
        return None
    return value / base


@dataclass(frozen=True, slots=True)
class _Point:
    label: str
    total_bytes: int
    kl: float
    series: str


def equal_bytes(labels: Sequence[str], entries: Sequence[Entry]) -> tuple[EqualBytes, ...]:
    """Return groups of two or more files within EQUAL_BYTES of their smallest, but for files whose KL cannot be compared."""
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
            points.sort(key=lambda p: p.kl)
            found.append(
                EqualBytes(
                    measure=measure,
                    labels=tuple(p.label for p in points),
                    total_bytes=tuple(p.total_bytes for p in points),
                    kls=tuple(p.kl for p in points),
                    ratios=tuple(p.kl / points[0].kl for p in points),
                )
            )
    return tuple(found)


def equal_kl(labels: Sequence[str], entries: Sequence[Entry]) -> tuple[EqualKL, ...]:
    """Return, for each file and each series of other files, the bytes that the series would take at the file's KL.

    A series is files that differ in nothing but their budget. Two of its files must enclose the KL: nothing is extrapolated.
    """
    measure, points = _comparable(labels, entries)
    series: dict[str, list[_Point]] = {}
    for point in sorted(points, key=lambda p: p.kl):
        series.setdefault(point.series, []).append(point)
    found = []
    for point in points:
        for name, members in series.items():
            pair = next(((b, a) for a, b in pairwise(members) if a.kl <= point.kl <= b.kl), None)
            if name == point.series or pair is None or pair[0].kl > MOST_APART * pair[1].kl:
                continue
            size = _interpolate(pair, point.kl)
            found.append(
                EqualKL(
                    measure=measure,
                    label=point.label,
                    kl=point.kl,
                    total_bytes=point.total_bytes,
                    between=(pair[0].label, pair[1].label),
                    series_bytes=size,
                    ratio=size / point.total_bytes,
                )
            )
    return tuple(found)


def _interpolate(pair: tuple[_Point, _Point], kl: float) -> float:
    """Return the bytes at `kl`, which lies between the KL of both points."""
    (high, low), span = pair, math.log(pair[0].kl / pair[1].kl)
    share = math.log(high.kl / kl) / span if span else 0.0
    return high.total_bytes + share * (low.total_bytes - high.total_bytes)


def _comparable(labels: Sequence[str], entries: Sequence[Entry]) -> tuple[Measure, list[_Point]]:
    """Return the measured KL of the files that have one, if all are to one reference; else their predicted KL.

    Predictions are compared only where one predictor made all of them from the same calibration.
    """
    pairs = list(zip(labels, entries, strict=True))
    measured = [(n, e, e.against.kl_mean) for n, e in pairs if e.against and e.against.kl_mean > 0]
    if len(measured) > 1 and len({e.against.fingerprint for _, e, _ in measured if e.against}) == 1:
        return "KL", [_point(*one) for one in measured]
    predicted = [(n, e, e.report.predicted_kl) for n, e in pairs if e.report and e.report.predicted_kl > 0]
    origins = {(repr(e.report.calibration.get("fingerprint")), e.report.predictor) for _, e, _ in predicted if e.report}
    is_same = len(origins) == 1 and all(predictor for _, predictor in origins)
    return "predicted KL", [_point(*one) for one in predicted] if is_same else []


def _point(label: str, entry: Entry, kl: float) -> _Point:
    return _Point(label, entry.total_bytes, kl, _series(entry) or label)


def _series(entry: Entry) -> str:
    """Return a name of everything but the budget that decides a file; empty without a report."""
    r = entry.report
    if r is None:
        return ""
    options = {name: value for name, value in r.options.items() if name not in EFFORT_OPTIONS}
    return repr((r.method, options, r.effort, r.calibration, r.seed))
