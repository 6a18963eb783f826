"""The frontier as a picture: bits per byte against bytes, as PNG (matplotlib) or as one HTML file without requests (plotly)."""

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, QuantlabError
from quantlab.evaluation.evaluation_record import EvaluationData
from quantlab.printable import printable
from quantlab.runs.frontier import Candidate, describe_data, lower_envelope

BLUE, GREY, RED = "#1f5fa8", "#8a8f98", "#b3261e"
PACKAGES = {".png": "matplotlib", ".html": "plotly"}
MOST_LABELS = 12
"""Largest number of points on the envelope that are labelled with their names."""
LEAST_WIDTH = 0.04
"""Smallest range of the axis of bytes, as a share of the largest size: in a smaller range all ticks would read the same."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>quantlab frontier</title><style>html, body {{ height: 100%; margin: 0 }}</style></head>
<body>{figure}</body></html>
"""


@dataclass(frozen=True, slots=True)
class Frontier:
    """The points and lines of one picture."""

    data: EvaluationData
    valid: list[Candidate]
    invalid: list[Candidate]
    envelope: list[Candidate]
    """Valid candidates that no other dominates, smallest first."""
    budgets: list[int]

    @property
    def dominated(self) -> list[Candidate]:
        """Valid candidates that are not on the envelope."""
        return [c for c in self.valid if c not in self.envelope]


def frontier_of(data: EvaluationData, group: list[Candidate], budget_bytes: int | None) -> Frontier:
    """Return the picture of the candidates on one evaluation data. With a budget, larger files count as not valid."""
    valid = [c for c in group if not c.problems and (budget_bytes is None or c.total_bytes <= budget_bytes)]
    envelope = [valid[i] for i in lower_envelope([(c.total_bytes, c.bpb) for c in valid])]
    budgets = sorted({c.budget_bytes for c in valid if c.budget_bytes}) if budget_bytes is None else [budget_bytes]
    return Frontier(data, valid, [c for c in group if c not in valid], envelope, budgets)


def check_format(output: Path) -> None:
    """Raise ConfigError unless the suffix is .png or .html, QuantlabError if the package for it is not installed."""
    if output.suffix not in PACKAGES:
        raise ConfigError(f"output {output} must end in {' or '.join(PACKAGES)}")
    package = PACKAGES[output.suffix]
    if importlib.util.find_spec(package) is None:
        raise QuantlabError(f"{output.suffix} needs the package {package}", hint=f"pip install {package}")


def draw(frontier: Frontier, suffix: str) -> bytes:
    """Return the picture's file, by suffix."""
    return _png(frontier) if suffix == ".png" else _html(frontier)


def short_bytes(size: float) -> str:
    """Return a size in decimal units, as budgets are: 250 kB, 16 MB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size:.0f} B"


def size_range(frontier: Frontier) -> tuple[float, float]:
    """Return both ends of the axis of bytes: all points and budgets, with a margin."""
    sizes = [*frontier.budgets, *(c.total_bytes for c in (*frontier.valid, *frontier.invalid))]
    middle = (min(sizes) + max(sizes)) / 2
    half = max(0.56 * (max(sizes) - min(sizes)), LEAST_WIDTH / 2 * max(sizes))
    return middle - half, middle + half


def _png(frontier: Frontier) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _lines(axes, frontier)
    _points(axes, frontier)
    axes.set(xlabel="artifact and code, bytes", ylabel="bits per byte", xlim=size_range(frontier))
    axes.set_title(f"scored on {describe_data(frontier.data)}", fontsize=9, color="#444444", loc="left", pad=10)
    axes.xaxis.set_major_formatter(lambda size, _: short_bytes(size))
    axes.margins(y=0.12)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _lines(axes: Any, frontier: Frontier) -> None:
    only = len(frontier.budgets) == 1
    for number, budget in enumerate(frontier.budgets):
        label = f"budget {short_bytes(budget)}" if only else "budgets" if number == 0 else None
        axes.axvline(budget, color=RED, linewidth=1, linestyle="--", alpha=1 if only else 0.5, label=label, zorder=1)


def _points(axes: Any, frontier: Frontier) -> None:
    if frontier.envelope:
        style = {"drawstyle": "steps-post", "linewidth": 1.5, "markersize": 6.5, "color": BLUE, "zorder": 4}
        axes.plot(*_xy(frontier.envelope), "-o", label="lower envelope", **style)
    if frontier.dominated:
        axes.scatter(*_xy(frontier.dominated), s=26, color=BLUE, alpha=0.45, linewidths=0, label="valid, dominated", zorder=3)
    if frontier.invalid:
        axes.scatter(*_xy(frontier.invalid), s=34, facecolors="none", edgecolors=GREY, label="not valid", zorder=3)
    for c in frontier.envelope if len(frontier.envelope) <= MOST_LABELS else []:
        style = {"fontsize": 8, "color": "#333333", "ha": "right", "va": "top"}  # no valid point lies on that side
        style["parse_math"] = False  # a name with two dollar signs is no formula
        axes.annotate(
            printable(Path(c.artifact).stem), (c.total_bytes, c.bpb), xytext=(-6, -4), textcoords="offset points", **style
        )


def _xy(found: list[Candidate]) -> tuple[list[int], list[float]]:
    return [c.total_bytes for c in found], [c.bpb for c in found]


def _html(frontier: Frontier) -> bytes:
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, found, style in (
        ("not valid", frontier.invalid, {"marker": {"color": GREY, "size": 9, "symbol": "circle-open"}}),
        ("valid, dominated", frontier.dominated, {"marker": {"color": BLUE, "size": 7, "opacity": 0.45}}),
        ("lower envelope", frontier.envelope, {"marker": {"color": BLUE, "size": 10}, "line": {"shape": "hv", "color": BLUE}}),
    ):
        sizes, scores = _xy(found)
        mode = "lines+markers" if "line" in style else "markers"
        figure.add_scatter(x=sizes, y=scores, name=name, mode=mode, text=[_hover(c) for c in found], hoverinfo="text", **style)
    for budget in frontier.budgets:
        line = {"color": RED, "dash": "dash", "width": 1}
        figure.add_vline(x=budget, line=line, annotation_text=f"budget {short_bytes(budget)}", annotation_position="top left")
    figure.update_layout(
        template="plotly_white",
        title={"text": f"scored on {describe_data(frontier.data).replace(', ', '<br>', 1)}", "font": {"size": 13}},
        xaxis={"title": "artifact and code, bytes", "tickformat": ".4~s", "ticksuffix": "B", "range": size_range(frontier)},
        yaxis={"title": "bits per byte"},
        legend={"orientation": "h", "y": -0.2},
        margin={"l": 60, "r": 20, "t": 80, "b": 60},
    )
    config = {"responsive": True, "displayModeBar": False}
    inside = figure.to_html(include_plotlyjs=True, full_html=False, div_id="frontier", default_height="95vh", config=config)
    return _PAGE.format(figure=inside).encode()


def _hover(c: Candidate) -> str:
    """Return the lines of text for a point under the mouse; no part of a name can become markup."""
    lines = [f"{c.bpb:.4f} BPB, {c.total_bytes:,} bytes", c.artifact, c.run, *c.problems]
    return "<br>".join(printable(line).replace("&", "&amp;").replace("<", "&lt;") for line in lines)
