"""The text of `quantlab inspect CKPT`: a table of tensors and what they add up to, in lines of 80 characters."""

import textwrap
from collections.abc import Iterator

from quantlab.jobs.inspect import CODED, REASONS, InspectedTensor, Inspection
from quantlab.printable import printable

WIDTH = 80
SHORT = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Names of dtypes in the table; others are written out."""


def inspection_lines(found: Inspection) -> Iterator[str]:
    """Yield the lines; nothing of a file is in them that is not printable."""
    yield from _table(found.tensors)
    yield ""
    for sentence in _sentences(found):
        yield from textwrap.wrap(printable(sentence), WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]


def _table(tensors: tuple[InspectedTensor, ...]) -> Iterator[str]:
    rows = [("tensor", "shape", "dtype", "packing"), *map(_row, tensors)]
    shape, dtype, packing = (max(len(row[n]) for row in rows) for n in (1, 2, 3))
    longest = max(len(row[0]) for row in rows)
    name = max(8, min(longest, WIDTH - 6 - shape - dtype - packing))
    for row in rows:
        line = f"{_cut(row[0], name):{name}}  {row[1]:>{shape}}  {row[2]:{dtype}}  {row[3]}"
        yield line[:WIDTH].rstrip()


def _row(tensor: InspectedTensor) -> tuple[str, str, str, str]:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return printable(tensor.name), shape, SHORT.get(tensor.dtype, tensor.dtype), tensor.packing


def _cut(text: str, width: int) -> str:
    """Return the text, or its end after an ellipsis: layers have their kind at the end of their names."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _sentences(found: Inspection) -> Iterator[str]:
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
