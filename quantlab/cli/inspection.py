"""The text of `quantlab inspect`: a table of tensors in the terminal's width, and lines that say what they add up to."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantlab.printable import printable

if TYPE_CHECKING:
    from quantlab.jobs.inspect import InspectedTensor, Inspection

SHORT = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Names of dtypes in the table; others are written out."""
RIGHT = ("shape", "size")
"""Columns that are aligned to the right."""
DROPPED_FIRST = ("kind", "dtype", "stored")
"""Columns that are left out where the terminal is narrow, in this order."""
LEAST_NAME = 16
"""Characters that the names of tensors have at least."""


def inspection_lines(found: "Inspection", width: int) -> Iterator[str]:
    """Yield the lines of a checkpoint; nothing of a file is in them that is not printable."""
    rows = [_row(tensor) for tensor in found.tensors]
    yield from _table(("tensor", "shape", "dtype", "packing"), rows, width)
    yield from _wrapped(_sentences(found), width)


def artifact_lines(about: Mapping[str, Any], width: int) -> Iterator[str]:
    """Yield the lines of an artifact that describes itself (`Artifact.describe`)."""
    rows = [
        (printable(t["name"]), _shape(t["shape"]), t["kind"], printable(t["stored"]), f"{t['bytes']:,} B")
        for t in about["tensors"]
    ]
    yield from _table(("tensor", "shape", "kind", "stored", "size"), rows, width)
    yield from _wrapped(_artifact_sentences(about), width)


def _artifact_sentences(about: Mapping[str, Any]) -> Iterator[str]:
    parts = [f"{part.replace('_', ' ')} {count:,} B" for part, count in about["size_breakdown"].items() if count]
    yield f"{about['artifact']}: {about['artifact_bytes']:,} B, format version {about['version']}, {about['producer']}"
    yield "size breakdown: " + ", ".join(parts)
    yield (
        "size of a tensor: its codes, by the tables of the file; of an unquantized one before the codec that all share. Scales "
        "and tables are parts of their own"
    )
    for key in ("model", "tokenizer", "origin"):
        if about[key]:
            yield f"{key}: " + ", ".join(f"{k} {v}" for k, v in about[key].items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield a table whose first column is cut to what the others leave; a column of equal cells is a line below it."""
    same = {} if len(rows) < 2 else {n: rows[0][n] for n in range(1, len(head)) if len({row[n] for row in rows}) == 1}
    kept = [n for n in range(len(head)) if n not in same]
    widest = [max(len(line[n]) for line in (head, *rows)) for n in range(len(head))]
    left_out = []
    for name in DROPPED_FIRST:
        if LEAST_NAME + sum(widest[n] + 2 for n in kept[1:]) > width and name in head and head.index(name) in kept:
            kept.remove(head.index(name))
            left_out.append(name)
    table = [[line[n] for n in kept] for line in (head, *rows)]
    widths = [widest[n] for n in kept]
    widths[0] = max(LEAST_NAME, min(widths[0], width - sum(widths[1:]) - 2 * (len(kept) - 1)))
    for line in table:
        cells = [f"{_cut(line[0], widths[0]):{widths[0]}}"]
        for at, cell, cell_width in zip(kept[1:], line[1:], widths[1:], strict=True):
            cells.append(f"{cell:{'>' if head[at] in RIGHT else '<'}{cell_width}}")
        yield "  ".join(cells)[:width].rstrip()
    yield ""
    if same:
        yield "all rows: " + ", ".join(f"{head[n]} {cell}" for n, cell in same.items())
    if left_out:
        yield f"left out at this width: {', '.join(left_out)}"


def _wrapped(sentences: Iterator[str], width: int) -> Iterator[str]:
    for sentence in sentences:
        yield from textwrap.wrap(printable(sentence), width, subsequent_indent="  ", break_on_hyphens=False) or [""]


def _row(tensor: "InspectedTensor") -> tuple[str, str, str, str]:
    return printable(tensor.name), _shape(tensor.shape), SHORT.get(tensor.dtype, tensor.dtype), tensor.packing


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _cut(text: str, width: int) -> str:
    """Return the text, or its end after an ellipsis: layers have their kind at the end of their names."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _sentences(found: "Inspection") -> Iterator[str]:
    from quantlab.jobs.inspect import CODED, REASONS

    yield f"{found.checkpoint}: {found.bytes:,} bytes of weights, adapter {found.adapter}"
    if found.about:
        yield ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.about.items())
    if found.tokenizer:
        yield "tokenizer: " + ", ".join(f"{name} {size:,} bytes" for name, size in found.tokenizer.items())
    total = found.weights()
    yield f"{total:,} parameters in {len(found.tensors):,} tensors"
    for reason, meaning in REASONS.items():
        rows = [tensor for tensor in found.tensors if tensor.packing == reason]
        if rows:
            weights = sum(tensor.weights for tensor in rows)
            share = f" ({100 * weights / total:.2f} %)" if reason == CODED and total else ""
            many = "tensor" if len(rows) == 1 else "tensors"
            yield f"{reason}: {len(rows):,} {many}, {weights:,} weights{share}: {meaning}"
    yield from (f"{tensor.name} is {tensor.alias_of}" for tensor in found.tensors if tensor.alias_of)
    if found.problem:
        yield f"cannot be packed as it is: {found.problem}"
        if found.hint:
            yield f"hint: {found.hint}"
