"""All figures of the HTML report."""

from collections.abc import Iterator, Sequence

from quantlab.report.byte_figures import code_shares, heat_maps, waterfalls
from quantlab.report.compare import Comparison
from quantlab.report.cost_figures import predictions, rate_distortion, slopes
from quantlab.report.entry import Entry
from quantlab.report.plot import Figure


def all_figures(comparison: Comparison, entries: Sequence[Entry], counts: Sequence[dict[str, list[int]]]) -> Iterator[Figure]:
    """Every figure that the files have something to say for; `counts` says how often each code occurs in each tensor."""
    yield from waterfalls(comparison, entries)
    yield from heat_maps(comparison, entries)
    yield from rate_distortion(comparison, entries)
    yield from slopes(comparison, entries)
    yield from code_shares(comparison, counts)
    yield from predictions(comparison)
