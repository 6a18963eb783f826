"""The table of `quantlab runs list`: a row for each result, the columns that say something and fit, and lines that explain it.

A packing and the scores of its file are one row. A column whose cells are all equal is one line below the table.
"""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from quantlab.budget import size_text
from quantlab.printable import printable
from quantlab.runs.frontier import data_id, describe_data
from quantlab.runs.listing import summary
from quantlab.runs.run_record import DONE
from quantlab.runs.store import JoinedRun

ID_LENGTH = 8
"""Characters at the end of a run's name that name it."""
COLUMNS = ("id", "kind", "status", "BPB", "gap", "predicted KL", "size", "bits", "budget", "method", "data", "started", "file")
RIGHT = {"BPB", "gap", "predicted KL", "size", "bits", "budget"}
DROPPED_FIRST = ("started", "bits", "gap", "predicted KL", "budget", "method", "kind", "data")
"""Columns that are left out where the terminal is narrow, in this order."""
NEEDED = ("id",)
LEAST_NAME, MOST_NAME = 10, 36
"""Characters that the name of a file is cut to."""
MOST_DATA = 4
"""Most evaluation data that are described below the table."""
VALID, NOT_VALID = "valid", "not valid"
MEANINGS = {
    "BPB": "BPB: bits per byte of the packed model",
    "gap": "gap: BPB above the float model on the same data",
    "predicted KL": "predicted KL: nats per token that rounding costs, before tuning",
    "size": "size: the artifact and counted code",
    "bits": "bits: of the whole file for each weight",
    "started": "started: month-day and time, UTC",
}
Paint = Callable[[str, str], str]
"""Colours a text by a status."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One line of the table."""

    cells: dict[str, str]
    problems: tuple[str, ...]
    run: JoinedRun


def uncoloured(text: str, status: str) -> str:
    """Return the text as it is."""
    return text


def table_rows(found: Sequence[JoinedRun]) -> list[TableRow]:
    """Return a row for each run, but none for a score that the row of its packing shows already."""
    ids = _ids(found)
    packed = {_identity(joined): joined.run.name for joined in found if joined.run.record.packing}
    folded: Counter[str] = Counter()
    shown = []
    for joined in found:
        owner = packed.get(_identity(joined))
        if owner is not None and joined.run.record.packing is None:
            folded[owner] += 1
        else:
            shown.append(joined)
    return [_row(joined, ids[joined.run.name], folded[joined.run.name]) for joined in shown]


def _ids(found: Sequence[JoinedRun]) -> dict[str, str]:
    """Return the last characters of each name; the whole name where two end alike."""
    ends = Counter(joined.run.name[-ID_LENGTH:] for joined in found)
    return {joined.run.name: end if ends[end := joined.run.name[-ID_LENGTH:]] == 1 else joined.run.name for joined in found}


def _identity(joined: JoinedRun) -> tuple[str, str, float | None, bool]:
    """Return what a packing and its score have in common: the file, the data, the score and whether it is valid."""
    score, artifact = joined.evaluation, joined.run.record.artifact
    sha256 = artifact.sha256 if artifact else joined.run.name
    return sha256, data_id(score.data) if score else "", score.val_bpb if score else None, joined.is_valid


def _row(joined: JoinedRun, name: str, scores: int) -> TableRow:
    known, packing, score = summary(joined), joined.packing, joined.evaluation
    gap = score.against.gap_bpb if score and score.against else None
    kind = joined.run.record.kind + ("+eval" if scores == 1 else f"+{scores} evals" if scores else "")
    cells = {
        "id": name,
        "kind": kind,
        "status": status_of(joined),
        "BPB": _number(known["bpb"], ".4f"),
        "gap": _number(gap and gap[0], "+.4f"),
        "predicted KL": _number(packing.predicted_kl if packing and packing.predicted_kl else None, "#.3g"),
        "size": size_text(known["bytes"]) if known["bytes"] else "-",
        "bits": _number(packing.bpw if packing and packing.bpw else None, ".3f"),
        "budget": size_text(known["budget"]) if isinstance(known["budget"], int) and known["budget"] > 0 else "-",
        "method": printable(packing.method or "-") if packing else "-",
        "data": known["data"] or "-",
        "started": joined.run.record.started[5:16].replace("T", " "),
        "file": printable(known["artifact"] or "-"),
    }
    problems = tuple(printable(problem) for problem in joined.problems if problem != joined.status)
    return TableRow(cells={key: printable(cell) for key, cell in cells.items()}, problems=problems, run=joined)


def status_of(joined: JoinedRun) -> str:
    """Return valid or not valid for a run that is done, else how it stands: running, failed or interrupted."""
    if joined.status != DONE:
        return joined.status
    return VALID if joined.is_valid else NOT_VALID


def _number(value: float | None, style: str) -> str:
    return format(value, style) if isinstance(value, int | float) else "-"


def table_lines(rows: Sequence[TableRow], width: int, paint: Paint = uncoloured) -> Iterator[str]:
    """Yield the table in at most `width` characters a line, as far as its shortest columns allow, and its explanations.

    Args:
        paint: colours a cell of the column `status`.
    """
    same = constant_columns(rows)
    names = [name for name in COLUMNS if name not in same]
    left_out = _narrow_(names, rows, width)
    yield from _lines(rows, names, width, paint)
    for line in ("", *_explanations(rows, names, same, left_out)):
        yield from textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) or [""]


def constant_columns(rows: Sequence[TableRow]) -> dict[str, str]:
    """Return the columns in which all rows have the same cell, with that cell; with one row those that are empty."""
    same = {name: rows[0].cells[name] for name in COLUMNS if name not in NEEDED and len({r.cells[name] for r in rows}) == 1}
    return same if len(rows) > 1 else {name: cell for name, cell in same.items() if cell == "-"}


def _narrow_(names: list[str], rows: Sequence[TableRow], width: int) -> list[str]:
    """Remove columns until the others fit; return those that were removed."""
    removed = []
    for name in DROPPED_FIRST:
        if _width(names, rows) <= width:
            break
        if name in names:
            names.remove(name)
            removed.append(name)
    return removed


def _width(names: Sequence[str], rows: Sequence[TableRow]) -> int:
    """Return the characters of a line in which names of files are as short as they may be."""
    longest = {name: max(len(name), *(len(row.cells[name]) for row in rows)) for name in names}
    if "file" in longest:
        longest["file"] = min(longest["file"], LEAST_NAME)
    return sum(longest.values()) + 2 * (len(names) - 1)


def _lines(rows: Sequence[TableRow], names: Sequence[str], width: int, paint: Paint) -> Iterator[str]:
    room = max(LEAST_NAME, min(MOST_NAME, width - _width([n for n in names if n != "file"], rows) - 2))
    table = [list(names)] + [[cut(r.cells[n], room) if n == "file" else r.cells[n] for n in names] for r in rows]
    widths = [max(len(line[n]) for line in table) for n in range(len(names))]
    for number, line in enumerate(table):
        cells = [f"{cell:{'>' if name in RIGHT else '<'}{w}}" for cell, name, w in zip(line, names, widths, strict=True)]
        cells[-1] = cells[-1].rstrip()
        if number and "status" in names:
            at = names.index("status")
            cells[at] = paint(cells[at], line[at])
        yield "  ".join(cells)


def cut(path: str, room: int) -> str:
    """Return a path in at most `room` characters: its end, which has the name.

    >>> cut("demo/model.qlab", 20), cut("runs/laptop/deep/model.qlab", 20), cut("a_very_long_name_of_one.qlab", 12)
    ('demo/model.qlab', '…/deep/model.qlab', '…of_one.qlab')
    """
    if len(path) <= room:
        return path
    parts = PurePath(path).parts
    ends = ("…/" + "/".join(parts[n:]) for n in range(1, len(parts)))
    return next((end for end in ends if len(end) <= room), "…" + path[1 - room :])


def _explanations(
    rows: Sequence[TableRow], names: Sequence[str], same: dict[str, str], left_out: Sequence[str]
) -> Iterator[str]:
    known = [f"{name} {cell}" for name, cell in same.items() if cell != "-"]
    if known:
        yield "all rows: " + ", ".join(known)
    shown = {*names, *same}
    yield from _data_lines(rows) if "data" in shown or "data" in left_out else ()
    meanings = [MEANINGS[name] for name in COLUMNS if name in names and name in MEANINGS]
    if any("+" in row.cells["kind"] for row in rows) and "kind" in shown:
        meanings.append("pack+eval: a packing and the score of its file, under the id of the packing")
    yield "; ".join(meanings)
    if left_out:
        columns = ", ".join(name for name in COLUMNS if name in left_out)
        yield f"left out at this width: {columns} (a wider terminal or --json shows them)"
    yield from (f"{row.cells['id']} {row.cells['status']}: {', '.join(row.problems)}" for row in rows if row.problems)


def _data_lines(rows: Iterable[TableRow]) -> Iterator[str]:
    found = dict.fromkeys(row.run.evaluation.data for row in rows if row.run.evaluation)
    yield from (f"data {printable(describe_data(data))}" for data in list(found)[:MOST_DATA])
    if len(found) > MOST_DATA:
        yield f"and {len(found) - MOST_DATA} other data; quantlab runs show RUN describes each"
