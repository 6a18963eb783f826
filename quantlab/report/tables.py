"""Tables for people: the rows and columns of a comparison, which the page shows too, and tables of rich for a terminal."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from quantlab.printable import printable
from quantlab.report.comparison import Comparison, EqualBytes, EqualKL, FileRow, TensorRow, ratio
from quantlab.report.pack_report import PackReport

TERMS = "terms: see the glossary (docs/glossary.md)"
SETTINGS = ("setting", "codec")
"""Columns of the table of a packing that may be equal for all tensors, and are then one line."""
LEAST_NAME = 16
"""Characters that names of tensors have at least in a narrow terminal."""
NAMED_TENSORS = 8
"""Most matrices without statistics of their own that are named."""
Cell = Callable[[FileRow], str]


@dataclass(frozen=True, slots=True)
class TensorColumn:
    """One column of the per-tensor table."""

    name: str
    value: Callable[[TensorRow], float | None]
    style: str

    def text(self, row: TensorRow) -> str:
        """Return the cell as it is shown."""
        return number(self.value(row), self.style)


def number(value: float | None, style: str = ",") -> str:
    """Return a number in a format, `-` for None."""
    return "-" if value is None else format(value, style)


def nats(value: float | None) -> str:
    """Return nats per token with three digits."""
    return number(value, "#.3g")


def part_name(key: str) -> str:
    """Return the name of a part of the size breakdown."""
    return printable(key).replace("_", " ")


def measures(files: Sequence[FileRow]) -> Iterator[tuple[str, Cell]]:
    """Yield name and cells of each line of the table of files; the parts of another line begin with two spaces."""
    yield "method", lambda row: printable(row.method) or "-"
    for kind in dict.fromkeys(kind for row in files for kind in row.size_breakdown):
        yield f"  {part_name(kind)}", lambda row, kind=kind: number(row.size_breakdown.get(kind))  # type: ignore[misc]
    yield "  code", lambda row: number(row.code_bytes)
    yield "total bytes", lambda row: number(row.total_bytes)
    yield "budget", lambda row: number(row.budget_bytes)
    yield "bits per weight", lambda row: number(row.bpw, ".3f")
    yield "predicted KL", lambda row: nats(row.predicted_kl)
    yield "KL", lambda row: nats(row.kl)
    yield "top-1 flips", lambda row: number(row.top1_flips, ".2%").replace("%", " %")
    yield "BPB before", lambda row: number(row.bpb_before, ".4f")
    yield "BPB after", lambda row: number(row.bpb_after, ".4f")
    yield "gap", lambda row: number(row.gap_bpb and row.gap_bpb[0], "+.4f")
    yield "  95 %", lambda row: "-" if row.gap_bpb is None else f"{row.gap_bpb[1]:+.4f} to {row.gap_bpb[2]:+.4f}"
    yield "valid", lambda row: "yes" if row.is_valid else "no"


def tensor_columns(comparison: Comparison) -> list[TensorColumn]:
    """Return the columns of the table of tensors: bytes, bits per weight and predicted KL of every file.

    Bytes of the later files are differences from the first file, their predicted KL is a ratio to it. A file whose tensors'
    bytes are not known has the width of the codes instead.
    """
    return [column for n in range(len(comparison.files)) for column in _columns_of(comparison, n)]


def _columns_of(comparison: Comparison, n: int) -> list[TensorColumn]:
    mark, first = (f" {row.label}" for row in (comparison.files[n], comparison.files[0]))
    if len(comparison.files) == 1:
        mark = ""
    if not _tells_bytes(comparison, n):
        return [TensorColumn(f"width{mark}", _values("width_bits", n), ",")]
    bpw = TensorColumn(f"bpw{mark}", _values("bpw", n), ".3f")
    if n == 0 or not _tells_bytes(comparison, 0):
        absolute = TensorColumn(f"bytes{mark}", _values("bytes", n), ",")
        return [absolute, bpw, TensorColumn(f"predicted KL{mark}", _values("predicted_kl", n), ".2e")]
    difference = TensorColumn(f"bytes{mark}-{first.strip()}", lambda row: _difference(row.values("bytes"), n), "+,")
    times = TensorColumn(f"predicted KL{mark}/{first.strip()}", lambda row: _times(row.values("predicted_kl"), n), "#.3g")
    return [difference, bpw, times]


def _tells_bytes(comparison: Comparison, n: int) -> bool:
    return any(row.values("bytes")[n] is not None for row in comparison.tensors)


def _values(key: str, n: int) -> Callable[[TensorRow], float | None]:
    return lambda row: row.values(key)[n]


def _difference(values: Sequence[float | None], n: int) -> float | None:
    value, base = values[n], values[0]
    return None if value is None or base is None else value - base


def _times(values: Sequence[float | None], n: int) -> float | None:
    return ratio(values[n], values[0])


def render_comparison(comparison: Comparison, *, top: int) -> RenderableType:
    """Return the names of the files, the table of files, that of the first `top` tensors, and what follows from them."""
    legend = [f"{row.label}  {printable(row.path)}" for row in comparison.files]
    tensors: list[RenderableType] = []
    if comparison.tensors and top:
        tensors = [_tensor_table(comparison, top), *_left_out(comparison, top), ""]
    return Group(*legend, "", _file_table(comparison.files), "", *tensors, *_sentences(comparison), TERMS)


def _file_table(files: Sequence[FileRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for row in files:
        table.add_column(row.label, justify="right", no_wrap=True)
    for name, cell in measures(files):
        table.add_row(name, *map(cell, files))
    return table


def _tensor_table(comparison: Comparison, top: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", no_wrap=True)
    columns = tensor_columns(comparison)
    for name in ("shape", *(column.name for column in columns)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.tensors[:top]:
        table.add_row(printable(row.name), "x".join(map(str, row.shape)), *(column.text(row) for column in columns))
    return table


def _left_out(comparison: Comparison, top: int) -> list[str]:
    rest = len(comparison.tensors) - top
    return [f"and {rest} more; --top {len(comparison.tensors)} shows all"] if rest > 0 else []


def _sentences(comparison: Comparison) -> Iterator[str]:
    yield from map(equal_bytes_line, comparison.equal_bytes)
    yield from map(equal_kl_line, comparison.equal_kl)
    for row in comparison.files:
        if row.problems:
            yield f"{row.label} is not valid: {', '.join(map(printable, row.problems))}"
    yield from (f"note: {printable(note)}" for note in comparison.notes)
    data = comparison.evaluation_data
    if data:
        yield (
            f"scored on {data.tokens:,} tokens, {data.bytes:,} bytes, {data.documents:,} documents ({printable(data.mode)}, "
            f"sequences of {data.seq_len:,}, token ids {printable(data.tokens_sha256[:12])})"
        )


def equal_bytes_line(group: EqualBytes) -> str:
    """Return a sentence: which of the files has the least KL, and the ratio of the others to it."""
    others = zip(group.labels[1:], group.kls[1:], group.ratios[1:], strict=True)
    more = "; ".join(f"{name} has {nats(value)}, {by:.3g} times that" for name, value, by in others)
    span = f"{min(group.total_bytes):,} to {max(group.total_bytes):,}"
    return f"at equal bytes ({span}): {group.labels[0]} has the least {group.measure}, {nats(group.kls[0])}; {more}"


def equal_kl_line(found: EqualKL) -> str:
    """Return a sentence: the bytes of a series at the KL of another file."""
    return (
        f"at equal {found.measure} ({nats(found.kl)}): {found.label} takes {found.total_bytes:,} bytes; the series of "
        f"{' and '.join(found.between)} would take {found.series_bytes:,.0f}, {found.ratio:.3g} times that (interpolated)"
    )


def render_report(report: PackReport) -> RenderableType:
    """Return the table of tensors, the size breakdown, and the totals."""
    return Group(_report_table(report), _bytes_line(report), *_summary(report), TERMS)


def _report_table(report: PackReport) -> RenderableType:
    """Return the table of tensors: columns that differ; what all have in common is a line below it."""
    columns: dict[str, list[str]] = {
        "shape": ["x".join(map(str, t.shape)) for t in report.tensors],
        "setting": [f"{t.setting:.3g}" for t in report.tensors],
        "codec": [t.codec for t in report.tensors],
        "bytes": [f"{t.bytes:,}" for t in report.tensors],
        "bpw": [f"{t.bpw:.3f}" for t in report.tensors],
        "predicted KL": [f"{t.predicted_kl:.2e}" for t in report.tensors],
    }
    same = {name: cells[0] for name, cells in columns.items() if name in SETTINGS and len(set(cells)) == 1}
    shown = [name for name in columns if name not in same]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold", min_width=LEAST_NAME)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for n, t in enumerate(report.tensors):
        table.add_row(printable(t.name), *(columns[name][n] for name in shown))
    common = [f"all tensors: {', '.join(f'{name} {printable(value)}' for name, value in same.items())}"] if same else []
    return Group(table, *common)


def _bytes_line(report: PackReport) -> str:
    parts = [f"{part_name(kind)} {count:,}" for kind, count in report.size_breakdown.items()]
    return "\nbytes: " + ", ".join([*parts, f"code {report.code_bytes:,}", f"slack {report.slack_bytes:,}"])


def _summary(report: PackReport) -> list[str]:
    share = 100 * report.total_bytes / report.budget_bytes
    return [
        f"total {report.total_bytes:,} of {report.budget_bytes:,} bytes ({share:.2f} %), {report.bpw:.3f} bits per weight "
        f"over {report.n_params:,} parameters",
        f"quantized {100 * report.quantized_share:.2f} % of the weights; {len(report.passthrough)} tensors are unquantized",
        *_named_line("never reached by the calibration, rounded by the mean of their siblings' statistics", report.priors),
        *_named_line("multiplied in parts, rounded without what the parts have in common", report.apart),
        f"predicted KL {report.predicted_kl:.5f} nats per token ({report.method}); "
        "decoded again by a fresh process: equal",  # or packing would have failed
        *_measured_lines(report),
        *_rounded_line(report),
        *_refined_line(report),
        *_tuned_line(report),
    ]


def _named_line(what: str, tensors: Sequence[str]) -> list[str]:
    """Return a line that says something of some tensors and names the first of them; no line where there are none."""
    if not tensors:
        return []
    names = ", ".join(map(printable, tensors[:NAMED_TENSORS]))
    more = f" and {len(tensors) - NAMED_TENSORS} more, all in the report" if len(tensors) > NAMED_TENSORS else ""
    return [f"{what}: {names}{more}"]


_SOURCES = {"self": "that the model wrote", "random": "at random"}


def _measured_lines(report: PackReport) -> Iterator[str]:
    if found := report.measured:
        where = _SOURCES.get(found.source, "of the calibration text's file")
        yield f"measured KL {found.kl:.5f} nats per token (held-out calibration: {found.tokens:,} tokens {where})"
        if found.kl_random is not None:
            yield f"measured KL {found.kl_random:.5f} nats per token on random tokens"
    collapse = report.calibration.get("collapse", {})
    if collapse.get("is_collapsed"):
        yield (
            f"warning: the calibration text has collapsed ({collapse['distinct_ids']:,} distinct ids, "
            f"{100 * collapse['looped']:.1f} % of its tokens in loops): predicted KL holds for such text alone"
        )


def _rounded_line(report: PackReport) -> list[str]:
    if not report.rounded_weights:
        return []
    quantized = sum(math.prod(t.shape) for t in report.tensors)
    return [
        f"rounded {report.rounded_weights:,} weights in all, {report.rounded_weights / quantized:.1f} times those there are"
    ]


def _refined_line(report: PackReport) -> list[str]:
    helped = [stage for stage in report.refined if stage["accepted"]]
    if not report.refined:
        return []
    bought = sum(stage["kl_before"] - stage["kl_after"] for stage in helped)
    return [f"refined in {len(report.refined)} stages, {len(helped)} of which lowered held-out KL, by {bought:.6f} in all"]


def _tuned_line(report: PackReport) -> list[str]:
    if not report.tuned:
        return []
    before, after, accepted = (report.tuned[key] for key in ("kl_before", "kl_after", "accepted"))
    verdict = "accepted" if accepted else "not accepted"
    return [f"tuning: KL on held-out calibration text {before:.5f} to {after:.5f} nats per token, {verdict}"]
