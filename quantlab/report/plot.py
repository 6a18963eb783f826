"""What all figures of the HTML report share: plotly's own JSON as plain dicts, no plotly needed.

Colours of text and lines are CSS variables (`var(--muted)`), which page.js fills in for light and dark. Text out of files is
escaped here: plotly reads a few tags in its labels. Positions stand for labels on axes, so that equal labels stay apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from quantlab.report.comparison import Comparison
from quantlab.report.entry import SUFFIX
from quantlab.report.tables import printable

COLOURS = ("#3b82c4", "#e0862b", "#2a9d74", "#c2609f", "#8a6fd1", "#b5533c")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
MUTED = "var(--muted)"
ROW_PX = 22
LONGEST_NAME = 26

Trace = dict[str, Any]
Layout = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot: its place in the page, what a screen reader says, and plotly's data and layout."""

    id: str
    label: str
    data: list[Trace]
    layout: Layout

    def to_dict(self) -> dict[str, Any]:
        """What page.js draws."""
        return {"data": self.data, "layout": self.layout}


def file_names(comparison: Comparison) -> list[str]:
    """`A model.qlab`, escaped; without a letter where there is one file."""
    names = [text(row.path.rpartition("/")[2]) for row in comparison.files]
    if len(names) == 1:
        return names
    return [f"{row.label} {name}" for row, name in zip(comparison.files, names, strict=True)]


def text(name: str) -> str:
    """A label out of a file: short, on one line, and nothing but text to plotly."""
    name = printable(name)
    return _escaped(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}…{name[-8:]}")


def _escaped(words: str) -> str:
    return escape(words, quote=False)  # plotly does not know the entities of quotes


def tensor_texts(names: Sequence[str]) -> list[str]:
    """Labels of tensors, without the suffix if all share it."""
    same = all(name.endswith(SUFFIX) for name in names)
    return [text(name.removesuffix(SUFFIX) if same else name) for name in names]


def marker(n: int, size: int) -> dict[str, Any]:
    """The marker of file `n`: files differ in colour and in shape."""
    return {"color": COLOURS[n % len(COLOURS)], "symbol": SYMBOLS[n % len(SYMBOLS)], "size": size}


def hover(lines: Sequence[str]) -> dict[str, Any]:
    """What each point says when it is pointed at."""
    return {"customdata": [_escaped(printable(line)) for line in lines], "hovertemplate": "%{customdata}<extra></extra>"}


def layout_of(*, height: int, title: str = "", legend: bool = False, **more: Any) -> Layout:
    """A layout with little around it; `title` is markup already."""
    layout: Layout = {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 34 if title or legend else 10, "b": 8},
        "showlegend": legend,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0},
        "dragmode": False,
        "hovermode": "closest",
    }
    if title:
        layout["title"] = {"text": title, "font": {"size": 13}, "x": 0.01, "xanchor": "left"}
    return layout | more


def height_of(rows: int, extra: int = 70) -> int:
    """Pixels of a figure with so many labelled rows."""
    return ROW_PX * rows + extra


def ticks(labels: Sequence[str]) -> dict[str, Any]:
    """Labels, markup already, at 0, 1, 2 and so on."""
    return {"tickvals": list(range(len(labels))), "ticktext": list(labels), "zeroline": False}


def rows(labels: Sequence[str]) -> dict[str, Any]:
    """A y axis of labelled rows, the first on top."""
    return {**ticks(labels), "range": [len(labels) - 0.4, -0.6], "showgrid": False, "tickfont": {"size": 11}}


def log_axis(values: Sequence[float], title: str, show: Callable[[float], str]) -> dict[str, Any]:
    """A logarithmic axis around positive values, with ticks that stay apart on a phone."""
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.04 * (high - low), 0.04)
    low, high = low - pad, high + pad
    steps = (1,) if high - low > 2.5 else (1, 2, 5) if high - low > 0.8 else (1, 1.5, 2, 3, 4, 5, 7)
    marks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high)) for step in steps]
    inside = [mark for mark in marks if low <= math.log10(mark) <= high]
    labels = {"tickvals": inside, "ticktext": [show(mark) for mark in inside]}
    return {"type": "log", "range": [low, high], "title": {"text": title}, "tickangle": 0, **labels}


def short_count(value: float) -> str:
    """2000 as 2k."""
    power = 2 if value >= 1e6 else 1 if value >= 1e3 else 0
    return f"{value / 1000**power:g}{('', 'k', 'M')[power]}"


def short_cost(value: float) -> str:
    """0.0002 as 2e-4."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if value < 0.01 else f"{value:g}"
