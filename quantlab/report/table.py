"""A packing report as text for people."""

from rich.console import Group, RenderableType
from rich.table import Table

from quantlab.report.packing import PackReport


def render(report: PackReport) -> RenderableType:
    """Table of the tensors, then where the bytes went, then the line that matters."""
    return Group(_tensor_table(report), _bytes_line(report), *_summary(report))


def _tensor_table(report: PackReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", no_wrap=True)
    for column in ("shape", "width", "grid", "codec", "bytes", "bpw", "distortion"):
        table.add_column(column, justify="right", no_wrap=True)
    for t in report.tensors:
        shape = "x".join(map(str, t.shape))
        row = (f"{t.width_bits}", f"{t.grid_size:.3g}", t.codec, f"{t.bytes:,}", f"{t.bpw:.3f}", f"{t.distortion:.2e}")
        table.add_row(t.name, shape, *row)
    return table


def _bytes_line(report: PackReport) -> str:
    parts = [f"{kind} {count:,}" for kind, count in report.bytes_by_kind.items()]
    return "\nbytes: " + ", ".join([*parts, f"code {report.code_bytes:,}", f"slack {report.slack_bytes:,}"])


def _summary(report: PackReport) -> list[str]:
    share = 100 * report.total_bytes / report.budget_bytes
    return [
        f"total {report.total_bytes:,} of {report.budget_bytes:,} bytes ({share:.2f} %), {report.bpw:.3f} bits per weight "
        f"over {report.n_params:,} parameters",
        f"predicted cost {report.distortion:.5f} nats per token ({report.method}); "
        "decoded again by a fresh process: equal",  # or packing would have failed
        *_tuned_line(report),
    ]


def _tuned_line(report: PackReport) -> list[str]:
    if not report.tuned:
        return []
    before, after, kept = (report.tuned[key] for key in ("kl_before", "kl_after", "kept"))
    verdict = "kept" if kept else "not kept"
    return [f"tuning: KL on held-out calibration text {before:.5f} to {after:.5f} nats per token, {verdict}"]
