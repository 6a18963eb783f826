"""Figures of what bytes buy: rate and distortion, slopes, predicted and measured cost."""

from collections.abc import Sequence

from quantlab.report.compare import Comparison
from quantlab.report.entry import Entry, TensorFacts
from quantlab.report.plot import (
    COLOURS,
    MUTED,
    Figure,
    Trace,
    file_names,
    height_of,
    hover,
    layout_of,
    log_axis,
    marker,
    rows,
    short_cost,
    short_count,
    tensor_texts,
)
from quantlab.report.slopes import chosen_slope, slope_of

TANGENT = (0.92, 0.96, 1.0, 1.04, 1.08)
"""Of the chosen bytes, where the line of the file's slope is drawn."""
PER = 1000
"""Bytes in the unit of a slope."""

Line = list[tuple[float, float]]


def rate_distortion(comparison: Comparison, entries: Sequence[Entry]) -> list[Figure]:
    """Bytes against predicted cost of every tensor: the chosen point, what else was measured, and the file's slope."""
    lines: list[Trace] = []
    points: list[Trace] = []
    for n, (name, entry) in enumerate(zip(file_names(comparison), entries, strict=True)):
        known = [t for t in entry.tensors if t.bytes and t.distortion and t.distortion > 0]
        if known:
            lines += [*_curves(n, known), *_tangents(known, chosen_slope(known))]
            points.append(_chosen(n, name, known))
    if not points:
        return []
    traces = [*lines, *points]
    x, y = ([v for trace in traces for v in trace[axis] if v] for axis in "xy")
    layout = layout_of(
        height=440,
        legend=len(entries) > 1,
        xaxis=log_axis(x, "bytes of the tensor", short_count),
        yaxis=log_axis(y, "predicted cost, nats per token", short_cost),
    )
    return [Figure("curves", "Bytes against predicted cost of every tensor", traces, layout)]


def _curves(n: int, tensors: Sequence[TensorFacts]) -> list[Trace]:
    """A line for each tensor through all its points, in one trace."""
    lines: list[Line] = []
    for t in tensors:
        if t.points and t.bytes and t.distortion:
            lines.append(sorted(p for p in {*t.points, (t.bytes, t.distortion)} if p[0] > 0 and p[1] > 0))
    style = {"color": COLOURS[n % len(COLOURS)], "width": 1}
    return [{**_broken(lines), "line": style, "opacity": 0.55}] if lines else []


def _tangents(tensors: Sequence[TensorFacts], slope: float | None) -> list[Trace]:
    """Through each chosen point a short piece of a line of the file's slope."""
    if slope is None:
        return []
    lines = []
    for t in tensors:
        size, cost = t.bytes or 0, t.distortion or 0.0
        line = [(size * at, cost - slope * size * (at - 1)) for at in TANGENT]
        lines.append([point for point in line if point[1] > cost / 4])
    return [{**_broken(lines), "line": {"color": MUTED, "width": 1, "dash": "dot"}}]


def _broken(lines: Sequence[Line]) -> Trace:
    """One trace of many lines: plotly breaks a line where a value is missing."""
    both: list[tuple[float | None, float | None]] = [p for line in lines for p in (*line, (None, None))]
    values = {"x": [x for x, _ in both], "y": [y for _, y in both]}
    return {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False, **values}


def _chosen(n: int, name: str, tensors: Sequence[TensorFacts]) -> Trace:
    values = {"x": [t.bytes for t in tensors], "y": [t.distortion for t in tensors]}
    says = hover([f"{t.name}: {t.bytes:,} bytes, {t.distortion:.3g} nats per token" for t in tensors])
    return {"type": "scatter", "mode": "markers", "name": name, "marker": marker(n, 8), **values, **says}


def slopes(comparison: Comparison, entries: Sequence[Entry]) -> list[Figure]:
    """What 1,000 more bytes would save in each tensor, by the first file's slopes, with the median of each file."""
    found = [{t.name: PER * slope for t in e.tensors if (slope := slope_of(t)) is not None} for e in entries]
    names = sorted({name for one in found for name in one}, key=lambda name: [-one.get(name, 0.0) for one in found])
    if not names:
        return []
    traces, medians = [], []
    for n, (label, entry, one) in enumerate(zip(file_names(comparison), entries, found, strict=True)):
        at = [(row, name, one[name]) for row, name in enumerate(names) if name in one]
        if at:
            values = {"x": [slope for *_, slope in at], "y": [row for row, *_ in at]}
            says = hover([f"{name}: {slope:.3g}" for _, name, slope in at])
            traces.append({"type": "scatter", "mode": "markers", "name": label, "marker": marker(n, 9), **values, **says})
            medians.append(_vertical(PER * (chosen_slope(entry.tensors) or 0.0), n))
    across = log_axis([x for trace in traces for x in trace["x"]], "nats per token for 1,000 bytes", short_cost)
    layout = layout_of(height=height_of(len(names), 90), legend=len(entries) > 1, xaxis=across)
    layout |= {"yaxis": {**rows(tensor_texts(names)), "showgrid": True}, "shapes": medians}
    return [Figure("slopes", "What 1,000 more bytes would save in each tensor", traces, layout)]


def _vertical(x: float, n: int) -> Trace:
    line = {"color": COLOURS[n % len(COLOURS)], "width": 1.5, "dash": "dot"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def predictions(comparison: Comparison) -> list[Figure]:
    """Predicted cost across, measured KL up, one marker a file; on the dotted line the prediction is exact."""
    known = [(n, r.predicted_cost, r.kl) for n, r in enumerate(comparison.files) if r.predicted_cost and r.kl]
    known = [(n, predicted, kl) for n, predicted, kl in known if predicted > 0 and kl > 0]
    if not known:
        return []
    both = [value for _, *pair in known for value in pair]
    ends = [min(both) / 1.5, max(both) * 1.5]
    traces: list[Trace] = [{**_broken([[(end, end) for end in ends]]), "line": {"color": MUTED, "width": 1, "dash": "dot"}}]
    names = file_names(comparison)
    for n, predicted, kl in known:
        says = hover([f"predicted {predicted:.3g}, measured {kl:.3g}"])
        point = {"x": [predicted], "y": [kl], "name": names[n], "marker": marker(n, 11)}
        traces.append({"type": "scatter", "mode": "markers", **point, **says})
    layout = layout_of(
        height=380,
        legend=True,
        xaxis=log_axis(ends, "predicted cost, nats per token", short_cost),
        yaxis=log_axis(ends, "measured KL, nats per token", short_cost),
    )
    return [Figure("predictions", "Predicted cost against measured KL", traces, layout)]
