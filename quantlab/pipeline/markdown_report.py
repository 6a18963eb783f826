"""report.md: all cells of a pipeline as one Markdown file: what each is, what it scores, what it took, how to verify it."""

from collections.abc import Iterator, Sequence

from quantlab.budget import size_text
from quantlab.pipeline.packing_stages import PAGE_NAME
from quantlab.pipeline.result import CELLS, Result
from quantlab.printable import printable
from quantlab.progress import duration_text
from quantlab.report.card import card_sections, code_span, markdown_table
from quantlab.report.entry import Entry
from quantlab.report.tables import nats, number

REPORT_NAME = "report.md"


def pipeline_report(results: Sequence[Result]) -> str:
    """Return the file. It names artifacts relative to the output directory, in which it lies."""
    parts = ["# Report of a pipeline\n", _summary(results), _table(results)]
    for result in results:
        parts += list(_cell(result, is_only=len(results) == 1))
    return "\n".join(part for part in parts if part)


def _summary(results: Sequence[Result]) -> str:
    valid = sum(not result.problems for result in results)
    return f"{len(results)} {'cell' if len(results) == 1 else 'cells'}, {valid} valid.\n"


def _table(results: Sequence[Result]) -> str:
    head = ("cell", "size", "budget", "BPB before", "BPB after", "gap", "KL", "valid")
    return markdown_table(head, [_row(result) for result in results])


def _row(result: Result) -> tuple[str, ...]:
    packing, against = result.packing, result.evaluation.against if result.evaluation else None
    gap = against.gap_bpb if against else None
    return (
        code_span(result.cell.name or "the only one"),
        size_text(packing.total_bytes) if packing else "-",
        size_text(result.cell.config.pack.budget_bytes),
        number(against.val_bpb if against else None, ".4f"),
        number(result.evaluation.val_bpb if result.evaluation else None, ".4f"),
        number(gap[0] if gap else None, "+.4f"),
        nats(against.kl_mean if against else None),
        "yes" if not result.problems else "no",
    )


def _cell(result: Result, *, is_only: bool) -> Iterator[str]:
    """Yield the sections of one cell."""
    place = "" if is_only else f"{CELLS}/{result.cell.name}/"
    if not is_only:
        yield f"## {code_span(result.cell.name)}\n"
    yield from (f"- not valid: {code_span(problem)}\n" for problem in result.problems)
    if result.packing and result.artifact:
        entry = Entry(path=f"{place}{result.artifact.name}", report=result.packing, evaluation=result.evaluation)
        yield card_sections(entry, level="##" if is_only else "###")
    if any(path.name == PAGE_NAME for path in result.files):
        yield f"Every tensor, with pictures: [{PAGE_NAME}](<{printable(place)}{PAGE_NAME}>)\n"
    if result.times:
        yield _times(result, "##" if is_only else "###")


def _times(result: Result, level: str) -> str:
    clock = result.clock
    rows = []
    for time in result.times:
        inside = clock.inside.get(time.stage) if clock else None
        outside = clock.outside.get(time.stage) if clock else None
        cells = ["-" if seconds is None else duration_text(seconds) for seconds in (inside, outside)]
        rows.append((time.stage, f"`{time.key}`", *cells, str(time.attempts)))
    lines = [f"{level} Time\n", markdown_table(("stage", "key", "inside the clock", "outside", "attempts"), rows)]
    if clock and clock.max_seconds:
        lines.append(f"{duration_text(clock.inside_seconds)} inside the clock of {duration_text(clock.max_seconds)}\n")
    return "\n".join(lines)
