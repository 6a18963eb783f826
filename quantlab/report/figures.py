"""All figures of the HTML report.

Three show what is in the files: the size breakdown, bits per weight, and codes. Three show what the bytes achieve: bytes
against predicted KL, the slopes of these curves, and predicted against measured KL.
"""

from collections.abc import Iterator, Sequence

from quantlab.artifact.reader import MOST_COUNTED_CODE
from quantlab.report.comparison import Comparison
from quantlab.report.entry import Entry, TensorFacts, chosen_slope, place_of, slope_of
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
    short_count,
    short_nats,
    tensor_texts,
    text,
    ticks,
)
from quantlab.report.tables import part_name

MOST_ROLES = 14
"""Largest number of roles in the waterfall; the smallest beyond it are joined."""
TANGENT = (0.92, 0.96, 1.0, 1.04, 1.08)
"""Ends and inner points of the line with the file's slope, as shares of the chosen bytes."""
PER = 1000
"""Bytes in the unit of a slope."""
TOTAL = "#8896a5"
"""Colour of bars that are totals."""

Layer = tuple[str, int | None]
Line = list[tuple[float, float]]


def all_figures(comparison: Comparison, entries: Sequence[Entry], counts: Sequence[dict[str, list[int]]]) -> Iterator[Figure]:
    """Yield every figure that the files have data for; `counts` says how often each code occurs in each tensor of each file."""
    yield from waterfalls(comparison, entries)
    yield from heat_maps(comparison, entries)
    yield from rate_distortion(comparison, entries)
    yield from slopes(comparison, entries)
    yield from code_shares(comparison, counts)
    yield from predictions(comparison)


def waterfalls(comparison: Comparison, entries: Sequence[Entry]) -> list[Figure]:
    """Return for each file its size breakdown up to the budget, with the codes by role where a report has them."""
    longest = max(max(e.total_bytes, e.report.budget_bytes if e.report else 0) for e in entries)
    names = file_names(comparison)
    titles = names if len(names) > 1 else [""]
    return [_waterfall(n, names[n], titles[n], entry, longest) for n, entry in enumerate(entries)]


def _waterfall(n: int, name: str, title: str, entry: Entry, longest: int) -> Figure:
    steps = [(label, size, "relative") for label, size in _byte_steps(entry) if size]
    steps.append(("artifact", entry.artifact_bytes, "total"))
    if entry.report:
        code = [("code", entry.report.code_bytes, "relative")] if entry.report.code_bytes else []
        slack = entry.report.budget_bytes - entry.total_bytes
        steps += [*code, ("slack" if slack >= 0 else "over budget", slack, "relative")]
        steps.append(("budget", entry.report.budget_bytes, "total"))
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(steps))),
        "x": [size for _, size, _ in steps],
        "base": _bases(steps),
        "text": [f"{size:,}" for _, size, _ in steps],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": [_bar_colour(n, size, measure) for _, size, measure in steps]},
        "meta": {"measure": [measure for *_, measure in steps]},
        **hover([f"{label}: {size:,} bytes" for label, size, _ in steps]),
    }
    across = {"range": [0, 1.25 * longest], "nticks": 4, "tickformat": ".3~s"}
    down = rows([text(label) for label, *_ in steps])
    layout = layout_of(height=height_of(len(steps)), title=title, xaxis=across, yaxis=down)
    return Figure(f"bytes-{n}", f"Size breakdown of {name}", [trace], layout)


def _bases(steps: Sequence[tuple[str, int, str]]) -> list[int]:
    """Return where each bar begins: a relative one where the bars above it end, a total at 0."""
    bases, reached = [], 0
    for _, size, measure in steps:
        bases.append(0 if measure == "total" else reached)
        reached = size if measure == "total" else reached + size
    return bases


def _bar_colour(n: int, size: int, measure: str) -> str:
    return TOTAL if measure == "total" else COLOURS[n % len(COLOURS)] if size >= 0 else "var(--bad)"


def _byte_steps(entry: Entry) -> list[tuple[str, int]]:
    """Return label and bytes of each bar; codes are split by role where those of the tensors are known and add up."""
    parts, by_role = {part_name(key): size for key, size in entry.size_breakdown.items()}, dict[str, int]()
    for t in entry.tensors:
        role = place_of(t.name).role
        by_role[role] = by_role.get(role, 0) + t.code_bytes
    coded = sum(by_role.values())
    if not 0 < coded <= parts.get("codes", 0):
        return list(parts.items())
    ranked = sorted(by_role.items(), key=lambda item: -item[1])
    others = sum(size for _, size in ranked[MOST_ROLES:])
    return [*ranked[:MOST_ROLES], ("other roles", others), ("coder's state", parts.pop("codes") - coded), *parts.items()]


def heat_maps(comparison: Comparison, entries: Sequence[Entry]) -> list[Figure]:
    """Return for each file with known sizes its bits per weight by layer (down) and role (across), all on one scale."""
    places = {row.name: place_of(row.name) for row in comparison.tensors}
    layers = sorted({(p.stack, p.layer) for p in places.values()}, key=lambda at: (at[1] is not None, at[0], at[1] or 0))
    in_layers_first = sorted(places.values(), key=lambda p: (p.layer is None, p.role))
    roles = list(dict.fromkeys(p.role for p in in_layers_first))
    figures = []
    for n, (name, entry) in enumerate(zip(file_names(comparison), entries, strict=True)):
        cells = {(places[t.name].stack, places[t.name].layer, places[t.name].role): t.bpw for t in entry.tensors}
        if any(bpw is not None for bpw in cells.values()):
            z = [[cells.get((*layer, role)) for role in roles] for layer in layers]
            figures.append(_heat_map(n, name, name if len(entries) > 1 else "", z, layers, roles))
    values = [bpw for figure in figures for bpw in figure.data[0]["marker"]["color"]]
    for figure in figures:
        figure.data[0]["marker"] |= {"cmin": min(values), "cmax": max(values)}
    return figures


def _heat_map(n: int, name: str, title: str, z: list[list[float | None]], layers: list[Layer], roles: list[str]) -> Figure:
    """Return a map whose cells are bars of one width, each from its column's left edge."""
    stacks = {stack for stack, layer in layers if layer is not None}
    lines = ["no layer" if layer is None else f"{layer}" if len(stacks) < 2 else f"{stack} {layer}" for stack, layer in layers]
    cells = [(row, column, bpw) for row, line in enumerate(z) for column, bpw in enumerate(line) if bpw is not None]
    bar = {"thickness": 10, "outlinewidth": 0, "title": {"text": "bits", "side": "right"}, "tickfont": {"size": 10}}
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "x": [0.96] * len(cells),
        "base": [column - 0.48 for _, column, _ in cells],
        "y": [row for row, *_ in cells],
        "width": 0.94,
        "marker": {"color": [bpw for *_, bpw in cells], "colorscale": "Cividis", "showscale": True, "colorbar": bar},
        "text": [f"{bpw:.2f}" for *_, bpw in cells],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"size": 10},
        "meta": {"columns": len(roles)},
        **hover([f"{lines[row]}, {roles[column]}: {bpw:.3f} bits per weight" for row, column, bpw in cells]),
    }
    across = {**ticks([text(role) for role in roles]), "tickangle": -45, "showgrid": False, "tickfont": {"size": 11}}
    across["range"] = [-0.5, len(roles) - 0.5]
    down = {**rows([text(line) for line in lines]), "range": [len(lines) - 0.5, -0.5]}
    layout = layout_of(height=height_of(len(lines), 130), title=title, xaxis=across, yaxis=down, barmode="overlay")
    return Figure(f"bits-{n}", f"Bits per weight of {name} by layer and role", [trace], layout)


def code_shares(comparison: Comparison, counts: Sequence[dict[str, list[int]]]) -> list[Figure]:
    """Return the share of each code in all tensors of each file; codes.js draws single tensors from the same counts."""
    totals = [[sum(column) for column in zip(*one.values(), strict=True)] for one in counts]
    drawn = [(n, name, t) for n, (name, t) in enumerate(zip(file_names(comparison), totals, strict=True)) if sum(t[1:-1])]
    if not drawn:
        return []
    traces = [_shares(n, name, total) for n, name, total in drawn]
    values = [share for trace in traces for share in trace["y"] if share]
    end = max(_reach(total) for *_, total in drawn) + 0.5
    across = {"title": {"text": "code"}, "range": [-end, end], "nticks": 9}
    up = log_axis(values, "share of weights", lambda share: f"{100 * share:g} %")
    return [Figure("codes", "How often each code occurs", traces, layout_of(height=340, legend=True, xaxis=across, yaxis=up))]


def _shares(n: int, name: str, total: list[int]) -> Trace:
    """Return one file's trace. The ends of the tally count all codes beyond them too: their share is in the name, not drawn."""
    whole, beyond = sum(total), total[0] + total[-1]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "line": {"shape": "hvh", "width": 1.5, "color": COLOURS[n % len(COLOURS)]},
        "marker": marker(n, 4),
        "name": name + (f", {beyond / whole:.2%} beyond".replace("%", " %") if beyond else ""),
        "meta": {"file": n, "name": name},
        "x": list(range(1 - MOST_COUNTED_CODE, MOST_COUNTED_CODE)),
        "y": [count / whole or None for count in total[1:-1]],
        "hovertemplate": "code %{x}: %{y:.3%}<extra></extra>",
    }


def _reach(total: list[int]) -> int:
    """Return the code, 4 at least, within which all but a thousandth of the drawn codes lie."""
    left = sum(total[1:-1]) / 1000
    for reach in range(MOST_COUNTED_CODE - 1, 4, -1):
        left -= total[MOST_COUNTED_CODE - reach] + total[MOST_COUNTED_CODE + reach]
        if left < 0:
            return reach
    return 4


def rate_distortion(comparison: Comparison, entries: Sequence[Entry]) -> list[Figure]:
    """Return bytes against predicted KL of every tensor: the chosen point, other measured points, and the file's slope."""
    lines: list[Trace] = []
    points: list[Trace] = []
    for n, (name, entry) in enumerate(zip(file_names(comparison), entries, strict=True)):
        known = [t for t in entry.tensors if t.bytes and t.predicted_kl and t.predicted_kl > 0]
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
        yaxis=log_axis(y, "predicted KL, nats per token", short_nats),
    )
    return [Figure("curves", "Bytes against predicted KL of every tensor", traces, layout)]


def _curves(n: int, tensors: Sequence[TensorFacts]) -> list[Trace]:
    """Return one trace with a line for each tensor through all its points, which says the tensor under the mouse."""
    lines: list[Line] = []
    says: list[str] = []
    for t in tensors:
        if t.points and t.bytes and t.predicted_kl:
            line = sorted(p for p in {*t.points, (t.bytes, t.predicted_kl)} if p[0] > 0 and p[1] > 0)
            lines.append([(float(size), kl) for size, kl in line])
            says += [*(f"{t.name}: {kl:.3g} nats per token at {size:,} bytes" for size, kl in line), ""]
    style = {"color": COLOURS[n % len(COLOURS)], "width": 1}
    return [{**_broken(lines), "hoverinfo": "all", **hover(says), "line": style, "opacity": 0.55}] if lines else []


def _tangents(tensors: Sequence[TensorFacts], slope: float | None) -> list[Trace]:
    """Return one trace with a short line of the file's slope through each chosen point."""
    if slope is None:
        return []
    lines = []
    for t in tensors:
        size, kl = t.bytes or 0, t.predicted_kl or 0.0
        line = [(size * at, kl - slope * size * (at - 1)) for at in TANGENT]
        lines.append([point for point in line if point[1] > kl / 4])
    return [{**_broken(lines), "line": {"color": MUTED, "width": 1, "dash": "dot"}}]


def _broken(lines: Sequence[Line]) -> Trace:
    """Return one trace of many lines: plotly breaks a line where a value is missing."""
    both: list[tuple[float | None, float | None]] = [p for line in lines for p in (*line, (None, None))]
    values = {"x": [x for x, _ in both], "y": [y for _, y in both]}
    return {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False, **values}


def _chosen(n: int, name: str, tensors: Sequence[TensorFacts]) -> Trace:
    values = {"x": [t.bytes for t in tensors], "y": [t.predicted_kl for t in tensors]}
    says = hover([f"{t.name}: {t.bytes:,} bytes, {t.predicted_kl:.3g} nats per token" for t in tensors])
    return {"type": "scatter", "mode": "markers", "name": name, "marker": marker(n, 8), **values, **says}


def slopes(comparison: Comparison, entries: Sequence[Entry]) -> list[Figure]:
    """Return what 1,000 more bytes would save in each tensor, sorted by the first file's slopes, with each file's median."""
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
    across = log_axis([x for trace in traces for x in trace["x"]], "nats per token for 1,000 bytes", short_nats)
    layout = layout_of(height=height_of(len(names), 90), legend=len(entries) > 1, xaxis=across)
    layout |= {"yaxis": {**rows(tensor_texts(names)), "showgrid": True}, "shapes": medians}
    return [Figure("slopes", "What 1,000 more bytes would save in each tensor", traces, layout)]


def _vertical(x: float, n: int) -> Trace:
    line = {"color": COLOURS[n % len(COLOURS)], "width": 1.5, "dash": "dot"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def predictions(comparison: Comparison) -> list[Figure]:
    """Return predicted KL (across) against measured KL (up), one marker a file; on the dotted line the prediction is exact."""
    known = [(n, r.predicted_kl, r.kl) for n, r in enumerate(comparison.files) if r.predicted_kl and r.kl]
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
        xaxis=log_axis(ends, "predicted KL, nats per token", short_nats),
        yaxis=log_axis(ends, "measured KL, nats per token", short_nats),
    )
    return [Figure("predictions", "Predicted against measured KL", traces, layout)]
