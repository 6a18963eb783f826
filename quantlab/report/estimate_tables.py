"""Tables of estimates: sizes against predicted KL, and what each tensor, layer and role of one size costs and would gain."""

from collections.abc import Callable, Iterable
from math import prod

from rich.console import Group, RenderableType
from rich.table import Table

from quantlab.budget import size_text
from quantlab.printable import printable
from quantlab.progress import duration_text
from quantlab.report.entry import place_of
from quantlab.report.estimates import DryRun, Estimates, SizeEstimate, TensorEstimate
from quantlab.report.tables import nats

MOST_ROWS = 12
"""Tensors that the table of sensitivity names."""


def render_estimates(found: Estimates) -> RenderableType:
    """Return the table of sizes, which fits 60 columns, and what its columns mean."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("size", "bits", "KL", "should be within", "predicted"):
        table.add_column(name, justify="right")
    for point in found.points:
        band = f"{nats(point.low)} to {nats(point.high)}"
        table.add_row(size_text(point.total_bytes), f"{point.bpw:.2f}", nats(point.kl), band, nats(point.predicted_kl))
    return Group(
        table,
        "",
        f"smallest reachable {size_text(found.smallest_bytes)}, {found.n_params:,} parameters, "
        f"method {printable(found.method)}",
        "bits: of the whole file for each weight; KL to the float model: nats per token, measured on the",
        "rounding of each size, less what tuning buys; predicted: by the statistics, before tuning",
        f"packing one takes about {duration_text(found.pack_seconds)} and {found.peak_memory_bytes / 1e9:.1f} GB of memory",
    )


def dry_run_lines(found: DryRun) -> list[str]:
    """Return what a packing would give and take, in lines that fit 80 columns but for long paths."""
    point, stages = found.point, ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in found.stages_s.items())
    code = f" and {size_text(found.code_bytes)} of counted code" if found.code_bytes else ""
    lines = [
        f"size    at most {size_text(found.budget_bytes)}: an artifact of {size_text(point.total_bytes)}{code}, "
        f"{point.bpw:.2f} bits a weight",
        f"        (the smallest reachable artifact has {size_text(found.smallest_bytes)})",
        f"KL      about {nats(point.kl)} nats per token ({nats(point.low)} to {nats(point.high)}); "
        f"predicted KL {nats(point.predicted_kl)}",
    ]
    if found.calibration_tokens < found.packing_tokens:
        lines.append(
            f"        (from {found.calibration_tokens:,} calibration tokens; the packing takes {found.packing_tokens:,})"
        )
    lines += [
        f"time    about {duration_text(found.total_s)}: {stages}",
        f"memory  about {found.peak_memory_bytes / 1e9:.1f} GB",
        f"files   {', '.join(map(printable, found.outputs))}",
        "dry run: nothing was written",
    ]
    return lines


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
