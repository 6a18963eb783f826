"""An estimate as a page with a slider, and as a picture: predicted KL against size."""

import io

from quantlab import __version__
from quantlab.budget import size_text
from quantlab.errors import ConfigError
from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.printable import printable
from quantlab.progress import duration_text
from quantlab.report.assets import render
from quantlab.report.estimates import Estimates
from quantlab.report.plot import COLOURS
from quantlab.report.slider import Slider
from quantlab.report.tables import nats


def estimate_page(found: Estimates, scored: EvaluationRecord | None = None) -> str:
    """Return the page of an estimate. ConfigError where it has fewer than two sizes.

    Args:
        scored: an evaluation of the float model, or of a packed one beside it, which tells bits per byte.
    """
    slider = Slider.of(found, found.points[len(found.points) // 2].total_bytes, scored)
    if slider is None:
        raise ConfigError("the page of an estimate needs two sizes or more, got 1", hint="pass --budgets FROM:TO")
    summary = (
        f"{found.n_params:,} parameters, method {found.method}, smallest reachable {size_text(found.smallest_bytes)}. "
        f"Packing one takes about {duration_text(found.pack_seconds)} and {found.peak_memory_bytes / 1e9:.1f} GB of memory."
    )
    return render(
        "estimate.html",
        scripts=("charts.js", "slider.js"),
        page_data={"figures": {f.id: f.to_dict() for f in slider.figures}, "estimate": slider.data},
        title=f"What sizes of {printable(found.checkpoint)} would lose",
        summary=printable(summary),
        slider=slider.words,
        sizes=[
            (f"{p.total_bytes:,}", f"{p.bpw:.2f}", nats(p.kl), f"{nats(p.low)} to {nats(p.high)}", nats(p.predicted_kl))
            for p in found.points
        ],
        producer=f"quantlab {__version__}",
    )


def estimate_picture(found: Estimates) -> bytes:
    """Return a PNG: predicted KL against size, with the band in which the measured KL should be."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = [point.total_bytes for point in found.points]
    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    band = [point.low for point in found.points], [point.high for point in found.points]
    axes.fill_between(sizes, *band, color=COLOURS[0], alpha=0.18, linewidth=0, label="band of it")
    axes.plot(sizes, [point.kl for point in found.points], "-o", color=COLOURS[0], label="KL that a packing should measure")
    predicted = [point.predicted_kl for point in found.points]
    axes.plot(sizes, predicted, ":", color=COLOURS[1], label="predicted KL, by the statistics")
    axes.set(xlabel="size of the file", ylabel="KL to the float model, nats per token", xscale="log", yscale="log")
    axes.set_xticks(sizes, [size_text(size) if size % 1000 == 0 else f"{size / 1e3:,.0f} kB" for size in sizes])
    axes.minorticks_off()
    axes.set_title(f"{found.checkpoint}, method {found.method}", fontsize=10, loc="left", parse_math=False)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
