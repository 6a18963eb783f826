"""Frontier and history as figures of a page, in plotly's format."""

import math
from datetime import datetime
from typing import Any

from quantlab.report.plot import Figure, Trace, hover, layout_of, log_axis, short_nats, text
from quantlab.runs.frontier_picture import GREY, MOST_BUDGETS, RED, colour_of, short_bytes
from quantlab.runs.frontier_view import MOST_LABELS, TITLES, Frontier, Mark
from quantlab.runs.history import History, Moment


def frontier_figure(frontier: Frontier, name: str) -> Figure:
    """Return the frontier: one trace for each method and validity, arrows for what is beyond the axes."""
    envelope = frontier.envelope
    traces: list[Trace] = []
    if envelope:
        line = {"shape": "hv", "color": GREY, "width": 1.2}
        xy = {"x": [mark.x for mark in envelope], "y": [mark.y for mark in envelope]}
        traces.append({"type": "scatter", "mode": "lines", "name": "lower envelope", "line": line, "hoverinfo": "skip", **xy})
    for method in frontier.methods:
        for is_valid in (True, False):
            mine = [m for m in frontier.marks if m.candidate.method == method and m.is_valid == is_valid]
            traces += _method(frontier, mine, method, is_valid=is_valid) if mine else []
    labels = [_label(mark) for mark in envelope] if len(envelope) <= MOST_LABELS else []
    shapes, names = _budget_lines(frontier)
    if frontier.float_score is not None:
        shapes.append(_line("paper", "y", 0, 1, frontier.float_score, frontier.float_score, "var(--muted)", "dot"))
        names.append(_note("float model", {"xref": "paper", "x": 0, "xanchor": "left", "y": frontier.float_score}))
    across = _axis(frontier.x_range, "artifact and code")
    up: dict[str, Any] = {"title": {"text": TITLES[frontier.measure]}, "range": list(frontier.y_range)}
    if frontier.measure == "kl":
        up = log_axis(frontier.y_range, TITLES["kl"], short_nats) | {"range": [math.log10(end) for end in frontier.y_range]}
    layout = layout_of(height=440, legend=True, xaxis=across, yaxis=up)
    layout |= {"shapes": shapes, "annotations": [*names, *labels]}
    return Figure(name, f"{TITLES[frontier.measure]} against bytes", traces, layout)


def _method(frontier: Frontier, marks: list[Mark], method: str, *, is_valid: bool) -> list[Trace]:
    colour = colour_of(method, frontier.methods)
    shapes = [_shape(frontier, mark, is_valid=is_valid) for mark in marks]
    style = {"color": colour, "size": 10, "symbol": shapes, "line": {"color": colour, "width": 1.5}}
    places = [frontier.place(mark) for mark in marks]
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": text(method or "method not recorded") + ("" if is_valid else ", not valid"),
        "x": [x for x, _ in places],
        "y": [y for _, y in places],
        "marker": style,
        "cliponaxis": False,
        **hover([_says(mark) for mark in marks]),
    }
    if is_valid and any(mark.high is not None and not frontier.is_outside(mark) for mark in marks):
        known = [None if mark.high is None or mark.low is None or frontier.is_outside(mark) else mark for mark in marks]
        above = [0.0 if mark is None or mark.high is None else mark.high - mark.y for mark in known]
        below = [0.0 if mark is None or mark.low is None else mark.y - mark.low for mark in known]
        bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2, "width": 3}
        trace["error_y"] = bars
    return [trace]


def _shape(frontier: Frontier, mark: Mark, *, is_valid: bool) -> str:
    shape = "circle"
    if frontier.is_outside(mark):
        right, above = mark.x > frontier.x_range[1], mark.y > frontier.y_range[1]
        shape = "triangle-right" if right else "triangle-up" if above else "triangle-down"
    return shape if is_valid else f"{shape}-open"


def _says(mark: Mark) -> str:
    c = mark.candidate
    ends = "" if mark.low is None or mark.high is None else f" ({mark.low:.4f} to {mark.high:.4f})"
    parts = [f"{mark.name}: {mark.y:.4f}{ends}", f"{c.total_bytes:,} bytes", c.method, f"run {c.run[-8:]}", *c.problems]
    return ", ".join(part for part in parts if part)


def _label(mark: Mark) -> dict[str, Any]:
    return _note(mark.name, {"x": mark.x, "y": mark.y, "xanchor": "right", "yanchor": "top", "xshift": -4})


def _note(words: str, place: dict[str, Any]) -> dict[str, Any]:
    style = {"showarrow": False, "font": {"size": 11, "color": "var(--muted)"}, "yanchor": "bottom"}
    return {"text": text(words), **style, **place}


def _line(xref: str, yref: str, x0: float, x1: float, y0: float, y1: float, colour: str, dash: str) -> dict[str, Any]:
    ends = {"xref": xref, "yref": yref, "x0": x0, "x1": x1, "y0": y0, "y1": y1}
    return {"type": "line", **ends, "line": {"color": colour, "width": 1.3, "dash": dash}}


def _budget_lines(frontier: Frontier) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of the budgets, and their names beside them where they are few."""
    lines = [_line("x", "paper", budget, budget, 0, 1, RED, "dash") for budget in frontier.budgets]
    if len(frontier.budgets) > MOST_BUDGETS:
        return lines, []
    place = {"yref": "paper", "y": 1, "yanchor": "top", "xanchor": "right", "textangle": -90}
    return lines, [_note(f"budget {short_bytes(b)}", {"x": b, **place}) for b in frontier.budgets]


def _axis(ends: tuple[float, float], title: str) -> dict[str, Any]:
    """Return an axis of bytes with about five round ticks."""
    step = 10 ** math.floor(math.log10(max((ends[1] - ends[0]) / 4, 1)))
    step = next(step * by for by in (1, 2, 5, 10) if (ends[1] - ends[0]) / (step * by) <= 6)
    marks = [n * step for n in range(math.ceil(max(ends[0], 0) / step), math.floor(ends[1] / step) + 1)]
    labels = {"tickvals": marks, "ticktext": [short_bytes(mark) for mark in marks], "tickangle": 0}
    return {"title": {"text": title}, "range": list(ends), **labels}


def history_figures(history: History, name: str) -> list[Figure]:
    """Return the best valid score over time with the runs that moved it, and the size of every run over time."""
    return [_best_figure(history, f"{name}-best"), _size_figure(history, f"{name}-size")]


def _best_figure(history: History, name: str) -> Figure:
    steps = history.steps
    traces = _moments(history, lambda moment: moment.candidate.bpb)
    up: dict[str, Any] = {"title": {"text": "bits per byte"}}
    labels = []
    if steps:
        best = [moment.candidate.bpb for moment in steps]
        last = max(moment.when for moment in history.moments)
        line = {"x": [_text(when) for when in (*(m.when for m in steps), last)], "y": [*best, best[-1]], "hoverinfo": "skip"}
        style = {"shape": "hv", "color": "#1f5fa8", "width": 1.8}
        traces.insert(0, {"type": "scatter", "mode": "lines", "name": "best valid so far", "line": style, **line})
        span = max(best) - min(best) or 0.01 * max(best)
        up["range"] = [min(best) - 0.15 * span, max(best) + 0.6 * span]
        at = {"xanchor": "left", "yanchor": "top", "xshift": 4}
        labels = [_note(m.name, {"x": _text(m.when), "y": m.candidate.bpb, **at}) for m in steps[-MOST_LABELS:]]
    layout = layout_of(height=320, legend=True, xaxis={"type": "date", "nticks": 5}, yaxis=up)
    return Figure(name, "Best valid bits per byte over time", traces, layout | {"annotations": labels})


def _size_figure(history: History, name: str) -> Figure:
    traces = _moments(history, lambda moment: moment.candidate.total_bytes)
    sizes = [*history.budgets, *(moment.candidate.total_bytes for moment in history.moments)]
    pad = max(0.08 * (max(sizes) - min(sizes)), 0.02 * max(sizes))
    layout = layout_of(height=280, legend=True, xaxis={"type": "date", "nticks": 5})
    layout["yaxis"] = _axis((min(sizes) - pad, max(sizes) + pad), "artifact and code")
    layout["shapes"] = [_line("paper", "y", 0, 1, b, b, RED, "dash") for b in history.budgets]
    if len(history.budgets) <= MOST_BUDGETS:
        at = {"xref": "paper", "x": 0, "xanchor": "left"}
        layout["annotations"] = [_note(f"budget {short_bytes(b)}", {"y": b, **at}) for b in history.budgets]
    return Figure(name, "Size of every run over time", traces, layout)


def _moments(history: History, value: Any) -> list[Trace]:
    """Return a trace of markers for each method and validity."""
    methods = sorted({moment.candidate.method for moment in history.moments})
    traces = []
    for method in methods:
        for is_valid in (True, False):
            mine = [m for m in history.moments if m.candidate.method == method and m.is_valid == is_valid]
            if mine:
                traces.append(_markers(mine, method, methods, value, is_valid=is_valid))
    return traces


def _markers(mine: list[Moment], method: str, methods: list[str], value: Any, *, is_valid: bool) -> Trace:
    colour = colour_of(method, methods)
    says = [
        ", ".join([m.name, f"{m.candidate.bpb:.4f} BPB", f"{m.candidate.total_bytes:,} bytes", *m.candidate.problems])
        for m in mine
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": text(method or "method not recorded") + ("" if is_valid else ", not valid"),
        "x": [_text(m.when) for m in mine],
        "y": [value(m) for m in mine],
        "marker": {"color": colour, "size": 9, "symbol": "circle" if is_valid else "circle-open"},
        **hover(says),
    }


def _text(when: datetime) -> str:
    """Return a time as plotly reads it, in UTC."""
    return when.strftime("%Y-%m-%d %H:%M:%S.%f")
