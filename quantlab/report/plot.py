"""Parts that all figures of the HTML report share: plotly's JSON format as plain dicts, made without plotly.

Colours of text and lines are CSS variables (`var(--muted)`), which charts.js replaces for light and dark. Text from files is
escaped here, because plotly interprets a few tags in its labels. Axes have positions as values and labels as their text: two
equal labels stay two rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from quantlab.printable import printable
from quantlab.report.comparison import Comparison
from quantlab.report.entry import SUFFIX

COLOURS = ("#3b82c4", "#e0862b", "#2a9d74", "#c2609f", "#8a6fd1", "#b5533c")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
MUTED = "var(--muted)"
ROW_PX = 22
LONGEST_NAME = 26

Trace = dict[str, Any]
Layout = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot: the id of its element in the page, its label for screen readers, and plotly's data and layout."""

    id: str
    label: str
    data: list[Trace]
    layout: Layout

    def to_dict(self) -> dict[str, Any]:
        """Return the part that charts.js draws."""
        return {"data": self.data, "layout": self.layout}


def file_names(comparison: Comparison) -> list[str]:
    """Return the names of the files, escaped, like `A model.qlab`; a single file has no letter."""
    names = [text(row.path.rpartition("/")[2]) for row in comparison.files]
    if len(names) == 1:
        return names
    return [f"{row.label} {name}" for row, name in zip(comparison.files, names, strict=True)]


def text(name: str) -> str:
    """Return a name from a file as a label: short, on one line, and without markup for plotly."""
    name = printable(name)
    return _escaped(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}…{name[-8:]}")


def _escaped(words: str) -> str:
    return escape(words, quote=False)  # plotly does not know the entities of quotes


def tensor_texts(names: Sequence[str]) -> list[str]:
    """Return labels of tensors, without the suffix `.weight` if all have it."""
    same = all(name.endswith(SUFFIX) for name in names)
    return [text(name.removesuffix(SUFFIX) if same else name) for name in names]


def marker(n: int, size: int) -> dict[str, Any]:
    """Return the marker of file `n`: files differ in colour and in symbol."""
    return {"color": COLOURS[n % len(COLOURS)], "symbol": SYMBOLS[n % len(SYMBOLS)], "size": size}


def hover(lines: Sequence[str]) -> dict[str, Any]:
    """Return the parts of a trace that show a line of text for each point under the mouse."""
    return {"customdata": [_escaped(printable(line)) for line in lines], "hovertemplate": "%{customdata}<extra></extra>"}


def layout_of(*, height: int, title: str = "", legend: bool = False, **more: Any) -> Layout:
    """Return a layout with small margins; `title` is escaped already."""
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
    """Return the pixels of a figure with a number of labelled rows."""
    return ROW_PX * rows + extra


def ticks(labels: Sequence[str]) -> dict[str, Any]:
    """Return an axis with labels, escaped already, at 0, 1, 2 and so on."""
    return {"tickvals": list(range(len(labels))), "ticktext": list(labels), "zeroline": False}


def rows(labels: Sequence[str]) -> dict[str, Any]:
    """Return a y axis of labelled rows, the first on top."""
    return {**ticks(labels), "range": [len(labels) - 0.4, -0.6], "showgrid": False, "tickfont": {"size": 11}}


def log_axis(values: Sequence[float], title: str, show: Callable[[float], str]) -> dict[str, Any]:
    """Return a logarithmic axis around positive values, with ticks that do not overlap on a phone."""
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.04 * (high - low), 0.04)
    low, high = low - pad, high + pad
    steps = (1,) if high - low > 2.5 else (1, 2, 5) if high - low > 0.8 else (1, 1.5, 2, 3, 4, 5, 7)
    marks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high)) for step in steps]
    inside = [mark for mark in marks if low <= math.log10(mark) <= high]
    labels = {"tickvals": inside, "ticktext": [show(mark) for mark in inside]}
    return {"type": "log", "range": [low, high], "title": {"text": title}, "tickangle": 0, **labels}


def short_count(value: float) -> str:
    """Return a count in short: 2000 as 2k."""
    power = 2 if value >= 1e6 else 1 if value >= 1e3 else 0
    return f"{value / 1000**power:g}{('', 'k', 'M')[power]}"


def short_nats(value: float) -> str:
    """Return nats in short: 0.0002 as 2e-4."""
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if value < 0.01 else f"{value:g}"
