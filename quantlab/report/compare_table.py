"""A comparison as text for people."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from quantlab.report.columns import cost, measures, printable, tensor_columns
from quantlab.report.compare import Comparison, FileRow
from quantlab.report.summaries import EqualBytes, EqualCost


def render(comparison: Comparison, *, top: int) -> RenderableType:
    """Which file is which, the table of files, that of the `top` first tensors, then what follows from them."""
    legend = [f"{row.label}  {printable(row.path)}" for row in comparison.files]
    tensors: list[RenderableType] = []
    if comparison.tensors and top:
        tensors = [_tensor_table(comparison, top), *_left_out(comparison, top), ""]
    return Group(*legend, "", _file_table(comparison.files), "", *tensors, *_sentences(comparison))


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
    yield from map(equal_cost_line, comparison.equal_cost)
    for row in comparison.files:
        if row.problems:
            yield f"{row.label} is not valid: {', '.join(row.problems)}"
    yield from (f"note: {printable(note)}" for note in comparison.notes)
    data = comparison.evaluation_data
    if data:
        yield (
            f"scored on {data.tokens:,} tokens, {data.bytes:,} bytes, {data.documents:,} documents ({printable(data.mode)}, "
            f"sequences of {data.seq_len:,}, token ids {printable(data.tokens_sha256[:12])})"
        )


def equal_bytes_line(group: EqualBytes) -> str:
    """Which of the files has the least cost, and by what ratio."""
    others = zip(group.labels[1:], group.costs[1:], group.ratios[1:], strict=True)
    more = "; ".join(f"{name} has {cost(value)}, {by:.3g} times that" for name, value, by in others)
    span = f"{min(group.total_bytes):,} to {max(group.total_bytes):,}"
    return f"at equal bytes ({span}): {group.labels[0]} has the least {group.measure}, {cost(group.costs[0])}; {more}"


def equal_cost_line(found: EqualCost) -> str:
    """The bytes of a series at the cost of another file."""
    return (
        f"at equal {found.measure} ({cost(found.cost)}): {found.label} takes {found.total_bytes:,} bytes; the series of "
        f"{' and '.join(found.between)} {found.series_bytes:,.0f}, {found.ratio:.3g} times that, between its two sizes"
    )
