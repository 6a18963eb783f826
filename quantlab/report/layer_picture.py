"""Where the bytes of a file go and what they lose, as PNG: bits per weight by layer and role, and predicted KL by layer."""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quantlab.printable import printable
from quantlab.report.entry import Place, place_of

MOST_NUMBERS = 160
"""Cells of the map that have their number in them; more would overlap."""
LONGEST_ROLE = 24


@dataclass(frozen=True, slots=True)
class Cell:
    """One tensor of the picture."""

    name: str
    weights: int
    bytes: int
    predicted_kl: float


def layer_picture(tensors: Iterable[Cell], title: str) -> bytes:
    """Return the picture; tensors without a layer are in the first line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {cell: place_of(cell.name) for cell in tensors}
    layers = sorted({_layer(place) for place in found.values()}, key=lambda at: (at[1] is not None, at[0], at[1] or 0))
    roles = list(dict.fromkeys(place.role for place in found.values()))
    size = (max(6.0, 2.6 + 0.62 * len(roles)) + 3, max(3.2, 1.9 + 0.34 * len(layers)))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[max(len(roles), 4), 4])
    names = ["no layer" if layer is None else printable(f"{stack} {layer}".strip()) for stack, layer in layers]
    _draw_map(figure, left, found, layers, roles)
    left.set_yticks(range(len(layers)), names, fontsize=8)
    losses = [sum(cell.predicted_kl for cell, place in found.items() if _layer(place) == layer) for layer in layers]
    right.barh(range(len(layers)), losses, color="#3b82c4", height=0.7)
    right.set(ylim=(len(layers) - 0.5, -0.5), yticks=[], xlabel="predicted KL, nats per token")
    right.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    right.spines[["top", "right"]].set_visible(False)
    figure.suptitle(printable(title), fontsize=10, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _layer(place: Place) -> tuple[str, int | None]:
    return place.stack, place.layer


def _draw_map(figure: Any, axes: Any, found: dict[Cell, Place], layers: list[tuple[str, int | None]], roles: list[str]) -> None:
    """Draw bits per weight, with numbers where there is room."""
    bits = [[math.nan] * len(roles) for _ in layers]
    for cell, place in found.items():
        bits[layers.index(_layer(place))][roles.index(place.role)] = 8 * cell.bytes / max(cell.weights, 1)
    image = axes.imshow(bits, cmap="cividis", aspect="auto")
    labels = [role if len(role) <= LONGEST_ROLE else f"…{role[1 - LONGEST_ROLE :]}" for role in map(printable, roles)]
    axes.set_xticks(range(len(roles)), labels, rotation=40, ha="right", fontsize=8, parse_math=False)
    known = [value for line in bits for value in line if not math.isnan(value)]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    if len(layers) * len(roles) <= MOST_NUMBERS:
        for row, line in enumerate(bits):
            for column, value in enumerate(line):
                if not math.isnan(value):
                    ink = "white" if value < middle else "black"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=axes, label="bits per weight", fraction=0.05, pad=0.02)
