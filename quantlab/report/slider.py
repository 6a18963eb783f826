"""The slider of a page: what another budget would give, from the sizes of an estimate, for slider.js to interpolate."""

import math
from dataclasses import dataclass
from typing import Any

from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.printable import printable
from quantlab.report.entry import place_of
from quantlab.report.estimates import Estimates, TensorEstimate
from quantlab.report.plot import (
    COLOURS,
    MUTED,
    Figure,
    Trace,
    height_of,
    hover,
    layout_of,
    log_axis,
    rows,
    short_count,
    short_nats,
    text,
)

STEPS = 1000
"""Positions of the slider, as in slider.html."""


@dataclass(frozen=True, slots=True)
class Slider:
    """The parts of a page that belong to its slider."""

    figures: list[Figure]
    data: dict[str, Any]
    """What slider.js reads: points with bytes by tensor, the place and weights of each tensor, and how KL becomes BPB."""
    words: dict[str, Any]
    """What the template writes."""

    @classmethod
    def of(cls, found: Estimates, start_bytes: int, scored: EvaluationRecord | None = None) -> "Slider | None":
        """Return the slider of an estimate that begins near a size; None where there are fewer than two sizes.

        Args:
            scored: an evaluation of the float model, or of a packed one beside it: it tells bits per byte.
        """
        if len(found.points) < 2:
            return None
        places = [(printable(place.role), _layer(t)) for t in found.points[0].tensors for place in [place_of(t.name)]]
        bpb = _bpb(scored)
        data = {
            "n_params": found.n_params,
            "places": [{"role": role, "layer": layer} for role, layer in places],
            "weights": [math.prod(t.shape) for t in found.points[0].tensors],
            "bpb": bpb,
            "points": [
                {
                    "total_bytes": point.total_bytes,
                    "kl": point.kl,
                    "low": point.low,
                    "high": point.high,
                    "bytes": [t.bytes for t in point.tensors],
                }
                for point in found.points
            ],
        }
        figures = [_curve(found)]
        for name, labels in (("roles", [role for role, _ in places]), ("layers", [layer for _, layer in places])):
            figures.append(_bars(f"budget-{name}", list(dict.fromkeys(labels))))
        low, high = (math.log(point.total_bytes) for point in (found.points[0], found.points[-1]))
        start = min(max((math.log(max(start_bytes, 1)) - low) / (high - low), 0.0), 1.0)
        words = {"sizes": len(found.points), "start": round(STEPS * start), "has_bpb": bpb is not None}
        return cls(figures, data, words)


def _layer(tensor: TensorEstimate) -> str:
    place = place_of(tensor.name)
    return "no layer" if place.layer is None else printable(f"{place.stack} {place.layer}".strip())


def _bpb(scored: EvaluationRecord | None) -> dict[str, float] | None:
    """Return the float model's bits per byte, and the bits per byte of a nat per token; None where they are not known."""
    if scored is None or not scored.data.bytes:
        return None
    own = scored.against.val_bpb if scored.against else scored.val_bpb
    return None if own is None else {"float": own, "per_nat": scored.data.tokens / (math.log(2) * scored.data.bytes)}


def _curve(found: Estimates) -> Figure:
    """Return KL against size with its band, and a marker that slider.js moves."""
    sizes = [point.total_bytes for point in found.points]
    band = [*(point.low for point in found.points), *(point.high for point in reversed(found.points))]
    says = hover([f"{point.total_bytes:,} bytes: {point.kl:.3g} nats per token" for point in found.points])
    traces: list[Trace] = [
        {
            **{"type": "scatter", "mode": "lines", "x": [*sizes, *reversed(sizes)], "y": band, "fill": "toself"},
            **{"fillcolor": "rgba(59,130,196,0.15)", "line": {"width": 0}, "hoverinfo": "skip"},
        },
        {
            **{"type": "scatter", "mode": "lines+markers", "x": sizes, "y": [point.kl for point in found.points]},
            **{"line": {"color": COLOURS[0], "width": 2}, "marker": {"color": COLOURS[0], "size": 6}, **says},
        },
        {
            **{"type": "scatter", "mode": "markers", "x": [sizes[0]], "y": [found.points[0].kl], "hoverinfo": "skip"},
            "marker": {"color": COLOURS[1], "size": 13, "line": {"color": MUTED, "width": 1}},
        },
    ]
    layout = layout_of(
        height=320,
        xaxis=log_axis(sizes, "bytes of the file", short_count),
        yaxis=log_axis([value for value in band if value > 0] or [1.0], "KL, nats per token", short_nats),
    )
    return Figure("budget-curve", "KL against size", traces, layout)


def _bars(name: str, labels: list[str]) -> Figure:
    """Return empty bars, which slider.js fills."""
    trace = {"type": "bar", "orientation": "h", "x": [], "y": [], "marker": {"color": COLOURS[2]}, **hover([])}
    layout = layout_of(height=height_of(len(labels), 90), yaxis=rows([text(label) for label in labels]))
    return Figure(
        name,
        f"Bits per weight by {name.removeprefix('budget-').removesuffix('s')}",
        [trace | {"textposition": "outside", "cliponaxis": False}],
        layout,
    )
