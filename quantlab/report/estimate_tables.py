"""Tables of estimates: sizes against predicted KL, and what each tensor, layer and role of one size costs and would gain."""

from collections.abc import Callable, Iterable
from math import prod

from rich.console import Group, RenderableType
from rich.table import Table

from quantlab.printable import printable
from quantlab.report.entry import place_of
from quantlab.report.estimates import Estimates, SizeEstimate, TensorEstimate
from quantlab.report.tables import nats

MOST_ROWS = 12
"""Tensors that the table of sensitivity names."""


def render_estimates(found: Estimates) -> RenderableType:
    """Return the table of sizes, which fits 80 columns, and what its columns mean."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("bytes", "bits a weight", "predicted KL", "measured KL should be"):
        table.add_column(name, justify="right")
    for point in found.points:
        band = f"{nats(point.low)} to {nats(point.high)}"
        table.add_row(f"{point.total_bytes:,}", f"{point.bpw:.2f}", nats(point.predicted_kl), band)
    return Group(
        table,
        f"smallest reachable {found.smallest_bytes:,} bytes, {found.n_params:,} parameters, method {printable(found.method)}",
        "KL to the float model in nats per token; without tuning and refinement, which lower it",
    )


def render_sensitivity(point: SizeEstimate) -> RenderableType:
    """Return the tables of one size: by role, by layer, and the tensors that would gain most from more bytes."""
    gains = sorted(point.tensors, key=lambda t: -(t.kl_per_kilobyte or 0.0))[:MOST_ROWS]
    return Group(
        f"{point.total_bytes:,} bytes, {point.bpw:.2f} bits a weight, predicted KL {nats(point.predicted_kl)} nats per token\n",
        _grouped("role", point.tensors, lambda t: place_of(t.name).role),
        "",
        _grouped("layer", point.tensors, _layer_of),
        "",
        _table("tensor", ((printable(t.name.removesuffix(".weight")), [t]) for t in gains)),
        "\n+1 kB saves: millionths of a nat per token that 1,000 more bytes there would save; equal where all are spent well",
    )


def _layer_of(tensor: TensorEstimate) -> str:
    place = place_of(tensor.name)
    return "-" if place.layer is None else f"{place.stack} {place.layer}".strip()


def _grouped(head: str, tensors: Iterable[TensorEstimate], key: Callable[[TensorEstimate], str]) -> Table:
    groups: dict[str, list[TensorEstimate]] = {}
    for tensor in tensors:
        groups.setdefault(printable(key(tensor)), []).append(tensor)
    return _table(head, groups.items())


def _table(head: str, rows: Iterable[tuple[str, list[TensorEstimate]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(head, overflow="fold", max_width=32)
    for name in ("weights", "bytes", "bits", "predicted KL", "+1 kB saves"):
        table.add_column(name, justify="right")
    for name, tensors in rows:
        weights, size = sum(prod(t.shape) for t in tensors), sum(t.bytes for t in tensors)
        kl = sum(t.predicted_kl for t in tensors)
        saves = [t.kl_per_kilobyte for t in tensors if t.kl_per_kilobyte is not None]
        gain = f"{1e6 * sum(saves) / len(saves):.2f}" if saves else "-"
        table.add_row(name, f"{weights:,}", f"{size:,}", f"{8 * size / weights:.2f}", f"{kl:.2e}", gain)
    return table
