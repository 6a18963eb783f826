"""What the tables of a comparison show, as text for a terminal and for a page alike."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quantlab.report.compare import Comparison, FileRow, TensorRow, ratio

Cell = Callable[[FileRow], str]


@dataclass(frozen=True, slots=True)
class TensorColumn:
    """One column of the per-tensor table."""

    name: str
    value: Callable[[TensorRow], float | None]
    style: str

    def text(self, row: TensorRow) -> str:
        """The cell as it is shown."""
        return number(self.value(row), self.style)


def number(value: float | None, style: str = ",") -> str:
    """A number in a format, `-` where there is none."""
    return "-" if value is None else format(value, style)


def cost(value: float | None) -> str:
    """Nats per token with three digits."""
    return number(value, "#.3g")


def printable(text: str) -> str:
    """`text` on one line without control characters: names out of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def measures(files: Sequence[FileRow]) -> Iterator[tuple[str, Cell]]:
    """Name and cells of each line of the table of files; parts of a line above start with two spaces."""
    yield "method", lambda row: printable(row.method) or "-"
    for kind in dict.fromkeys(kind for row in files for kind in row.bytes_by_kind):
        yield f"  {printable(kind)}", lambda row, kind=kind: number(row.bytes_by_kind.get(kind))  # type: ignore[misc]
    yield "  code", lambda row: number(row.code_bytes)
    yield "total bytes", lambda row: number(row.total_bytes)
    yield "budget", lambda row: number(row.budget_bytes)
    yield "bits per weight", lambda row: number(row.bpw, ".3f")
    yield "predicted cost", lambda row: cost(row.predicted_cost)
    yield "KL", lambda row: cost(row.kl)
    yield "top-1 flips", lambda row: number(row.top1_flips, ".2%").replace("%", " %")
    yield "BPB before", lambda row: number(row.bpb_before, ".4f")
    yield "BPB after", lambda row: number(row.bpb_after, ".4f")
    yield "gap", lambda row: number(row.gap_bpb and row.gap_bpb[0], "+.4f")
    yield "  95 %", lambda row: "-" if row.gap_bpb is None else f"{row.gap_bpb[1]:+.4f} to {row.gap_bpb[2]:+.4f}"
    yield "valid", lambda row: "yes" if row.is_valid else "no"


def tensor_columns(comparison: Comparison) -> list[TensorColumn]:
    """Bytes, bits per weight and predicted cost of every file: of the first as they are, of the others against it.

    Of a file that does not tell its tensors' bytes the widths of the codes.
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
        return [absolute, bpw, TensorColumn(f"cost{mark}", _values("distortion", n), ".2e")]
    difference = TensorColumn(f"bytes{mark}-{first.strip()}", lambda row: _difference(row.values("bytes"), n), "+,")
    times = TensorColumn(f"cost{mark}/{first.strip()}", lambda row: _times(row.values("distortion"), n), "#.3g")
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
