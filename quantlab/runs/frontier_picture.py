"""Frontier and history as pictures: PNG, drawn by matplotlib."""

import importlib.util
import io
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, QuantlabError
from quantlab.printable import printable
from quantlab.runs.frontier import describe_data
from quantlab.runs.frontier_view import MOST_LABELS, TITLES, Frontier, Mark
from quantlab.runs.history import History

BLUE, ORANGE, GREEN, GREY, RED = "#1f5fa8", "#d9822b", "#2a9d74", "#8a8f98", "#b3261e"
COLOURS = {"trellis": BLUE, "gptq": ORANGE, "rtn": GREEN}
"""Colours of the methods that come with quantlab."""
MORE_COLOURS = ("#8a6fd1", "#c2609f", "#6b8e23", "#b5533c")
PACKAGES = {".png": "matplotlib", ".html": "jinja2"}
MOST_BUDGETS = 4
"""Most budgets that are named beside their lines."""


def check_format(output: Path) -> None:
    """Raise ConfigError unless the suffix is .png or .html, QuantlabError if the package for it is not installed."""
    if output.suffix not in PACKAGES:
        raise ConfigError(f"output {output} must end in {' or '.join(PACKAGES)}")
    package = PACKAGES[output.suffix]
    if importlib.util.find_spec(package) is None:
        raise QuantlabError(f"{output.suffix} needs the package {package}", hint=f"pip install {package}")


def short_bytes(size: float) -> str:
    """Return a size in decimal units, as budgets are: 250 kB, 16 MB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size:.0f} B"


def colour_of(method: str, methods: list[str]) -> str:
    """Return the colour of a method among those of one picture."""
    others = [name for name in methods if name not in COLOURS]
    return COLOURS.get(method) or (MORE_COLOURS[others.index(method) % len(MORE_COLOURS)] if method else GREY)


def draw_frontier(frontier: Frontier) -> bytes:
    """Return the frontier as PNG."""
    figure, (axes,) = _figure(1)
    for budget in frontier.budgets:
        _budget_line(axes, budget, is_named=len(frontier.budgets) <= MOST_BUDGETS)
    if frontier.float_score is not None:
        axes.axhline(frontier.float_score, color="#444444", linewidth=1, linestyle=":", label="float model")
    if frontier.envelope:
        style = {"drawstyle": "steps-post", "color": GREY, "linewidth": 1.2, "zorder": 2, "label": "lower envelope"}
        axes.plot([mark.x for mark in frontier.envelope], [mark.y for mark in frontier.envelope], **style)
    for method in frontier.methods:
        _draw_method(axes, frontier, method)
    drawn = {mark.candidate.method for mark in frontier.marks if not frontier.is_outside(mark)}
    for mark in frontier.marks:
        if frontier.is_outside(mark):
            _draw_arrow(axes, frontier, mark, is_named=mark.candidate.method not in drawn)
            drawn.add(mark.candidate.method)
    for mark in frontier.envelope if len(frontier.envelope) <= MOST_LABELS else []:
        _name(axes, mark.name, (mark.x, mark.y))
    axes.set(xlabel="artifact and code", ylabel=TITLES[frontier.measure], xlim=frontier.x_range, ylim=frontier.y_range)
    if frontier.measure == "kl":
        axes.set_yscale("log")
        axes.set_ylim(frontier.y_range)
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda value, _: f"{value:g}")
    axes.set_title(f"scored on {describe_data(frontier.data)}", fontsize=9, color="#444444", loc="left", pad=10)
    axes.xaxis.set_major_formatter(lambda size, _: short_bytes(size))
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    return _png(figure)


def _draw_method(axes: Any, frontier: Frontier, method: str) -> None:
    """Draw the marks of one method that are inside the axes: filled if valid, with their 95 % intervals, else hollow."""
    colour = colour_of(method, frontier.methods)
    mine = [mark for mark in frontier.marks if mark.candidate.method == method and not frontier.is_outside(mark)]
    name = printable(method) or "method not recorded"
    valid, invalid = [m for m in mine if m.is_valid], [m for m in mine if not m.is_valid]
    for mark in valid:
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.x, mark.x], [mark.low, mark.high], color=colour, linewidth=1.2, alpha=0.6, zorder=3)
    if valid:
        axes.scatter([m.x for m in valid], [m.y for m in valid], s=36, color=colour, label=name, zorder=4)
    if invalid:
        style = {"facecolors": "none", "edgecolors": colour, "label": f"{name}, not valid", "zorder": 3}
        axes.scatter([m.x for m in invalid], [m.y for m in invalid], s=34, **style)


def _draw_arrow(axes: Any, frontier: Frontier, mark: Mark, *, is_named: bool) -> None:
    """Draw a mark beyond the axes as an arrow at their edge, with its score."""
    x, y = frontier.place(mark)
    shape = ">" if mark.x > frontier.x_range[1] else "^" if mark.y > frontier.y_range[1] else "v"
    colour = colour_of(mark.candidate.method, frontier.methods)
    face = colour if mark.is_valid else "none"
    style = {"marker": shape, "s": 46, "facecolors": face, "edgecolors": colour, "clip_on": False, "zorder": 5}
    axes.scatter([x], [y], label=printable(mark.candidate.method) or "method not recorded" if is_named else None, **style)
    offset = (-8, 4) if shape == ">" else (6, -10)
    side = "right" if shape == ">" else "left"
    axes.annotate(f"{mark.y:.4g}", (x, y), xytext=offset, textcoords="offset points", fontsize=7, color="#555555", ha=side)


def draw_history(history: History) -> bytes:
    """Return two panels as PNG: the best valid score over time, and the size of every run against the budgets."""
    figure, (scores, sizes) = _figure(2)
    methods = sorted({moment.candidate.method for moment in history.moments})
    steps = history.steps
    if steps:
        last = max(moment.when for moment in history.moments)
        times, best = [m.when for m in steps] + [last], [m.candidate.bpb for m in steps]
        scores.plot(times, [*best, best[-1]], drawstyle="steps-post", color=BLUE, linewidth=1.5, label="best valid so far")
        span = max(best) - min(best) or LEAST_SPAN * max(best)
        scores.set_ylim(min(best) - 0.15 * span, max(best) + 0.6 * span)
        for moment in steps[-MOST_LABELS:]:
            _name(scores, moment.name, (moment.when, moment.candidate.bpb), side="left")
    for moment in history.moments:
        colour = colour_of(moment.candidate.method, methods)
        style = {"s": 28, "facecolors": colour if moment.is_valid else "none", "edgecolors": colour, "zorder": 3}
        scores.scatter([moment.when], [moment.candidate.bpb], **style)
        sizes.scatter([moment.when], [moment.candidate.total_bytes], **style | {"label": None})
    for budget in history.budgets:
        label = f"budget {short_bytes(budget)}" if len(history.budgets) <= MOST_BUDGETS else None
        sizes.axhline(budget, color=RED, linewidth=1, linestyle="--", label=label)
    scores.set(ylabel="bits per byte")
    sizes.set(ylabel="artifact and code", xlabel="when the packing began, UTC; hollow: not valid")
    sizes.yaxis.set_major_formatter(lambda size, _: short_bytes(size))
    for axes in (scores, sizes):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.autofmt_xdate()
    return _png(figure)


LEAST_SPAN = 0.01
"""Range of scores that is drawn around a single best one, as a share of it."""


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2 if panels == 1 else 7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    found = [figure.add_subplot(panels, 1, n + 1) for n in range(panels)]
    for axes in found:
        axes.grid(color="#e6e8eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure, found


def _budget_line(axes: Any, budget: int, *, is_named: bool) -> None:
    axes.axvline(budget, color=RED, linewidth=1, linestyle="--", alpha=0.7, zorder=1)
    if is_named:
        where = {"xy": (budget, 0.985), "xycoords": ("data", "axes fraction"), "xytext": (-3, 0)}
        style = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 8, "color": RED}
        axes.annotate(f"budget {short_bytes(budget)}", textcoords="offset points", **where, **style)


def _name(axes: Any, name: str, place: tuple[Any, float], *, side: str = "right") -> None:
    """Write a name below a point: on the frontier no valid point lies to its left."""
    style = {"fontsize": 8, "color": "#333333", "ha": side, "va": "top"}
    style["parse_math"] = False  # a name with two dollar signs is no formula
    axes.annotate(name, place, xytext=(-6 if side == "right" else 6, -4), textcoords="offset points", **style)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
