"""All runs of a folder as one page without a network request: pictures, and a table to sort, with links to reports."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quantlab import __version__
from quantlab.printable import printable
from quantlab.report.assets import POLICY, render
from quantlab.report.plot import Figure
from quantlab.runs.frontier import by_data, candidates, data_id, describe_data
from quantlab.runs.frontier_view import Frontier, frontier_of
from quantlab.runs.history import history_of
from quantlab.runs.run_figures import frontier_figure, history_figures
from quantlab.runs.run_record import FileRef
from quantlab.runs.run_table import COLUMNS, MEANINGS, RIGHT, TableRow, constant_columns, table_rows
from quantlab.runs.store import Store, join

MOST_GROUPS = 4
"""Evaluation data whose scores are drawn, those with most scores first."""
LIVE_POLICY = POLICY + "; connect-src 'self'"
"""Policy of the page that a server of quantlab sends: it may ask that server, and nobody else."""


def runs_page(store: Store, *, beside: Path | None, budget_bytes: int | None = None, version: str = "") -> str:
    """Return the page.

    Args:
        beside: folder that the page will lie in, to which links to reports are relative; None for the page of the server,
            which finds reports under runs/.
        budget_bytes: as of `frontier_of`.
        version: names the state of the runs, for the page of the server; empty for a page that stands still.
    """
    joined = join(store.runs)
    rows = table_rows(joined)
    figures: list[Figure] = []
    groups = []
    for number, (data, group) in enumerate(list(by_data(candidates(store.runs)).items())[:MOST_GROUPS]):
        frontier = frontier_of(data, group, budget_bytes)
        mine = [
            frontier_figure(frontier, f"frontier-{number}"),
            *history_figures(history_of(group, budget_bytes), f"time-{number}"),
        ]
        figures += mine
        title = f"Scores on data {data_id(data)}"
        groups.append({"title": title, "note": note_of(frontier), "figures": [(f.id, f.label) for f in mine]})
    valid = sum(one.is_valid for one in joined)
    same = constant_columns(rows) if rows else {}
    shown = [name for name in COLUMNS if name not in same or name == COLUMNS[-1]]  # the last one has the links
    return render(
        "runs.html",
        scripts=("charts.js", "tables.js", *(("live.js",) if version else ())),
        policy=LIVE_POLICY if version else POLICY,
        page_data={"figures": {f.id: f.to_dict() for f in figures}, "version": version},
        title="Runs",
        summary=f"{len(joined)} runs, {valid} of them valid.",
        broken=[printable(line) for line in store.broken],
        live=bool(version),
        groups=groups,
        columns=[(name, "number" if name in RIGHT else "text") for name in shown],
        rows=[_row(row, shown, beside) for row in reversed(rows)],
        meanings="; ".join([*_same(rows), *(MEANINGS[name] for name in shown if name in MEANINGS)]),
        producer=f"quantlab {__version__}",
    )


def picture_page(figures: Sequence[Figure], title: str, summary: str) -> str:
    """Return a page with figures alone."""
    return render(
        "picture.html",
        scripts=("charts.js",),
        page_data={"figures": {f.id: f.to_dict() for f in figures}},
        title=title,
        summary=printable(summary),
        figures=[(f.id, f.label) for f in figures],
        producer=f"quantlab {__version__}",
    )


def note_of(frontier: Frontier) -> str:
    """Return what a reader of a frontier must know, in sentences."""
    parts = [
        printable(describe_data(frontier.data)),
        "Hollow marks are not valid; a mark at an edge lies beyond it, its text says where",
        "The bars are the 95 % interval of the difference to the float model",
    ]
    if frontier.without:
        parts.append(f"{frontier.without} scores have no value of this measure")
    return ". ".join(parts) + "."


def _same(rows: Sequence[TableRow]) -> list[str]:
    """Return what all rows have in common, as one phrase."""
    known = [f"{name} {cell}" for name, cell in constant_columns(rows).items() if cell != "-"] if rows else []
    return ["all rows: " + ", ".join(known)] if known else []


def _row(row: TableRow, names: Sequence[str], beside: Path | None) -> dict[str, Any]:
    cells = [(row.cells[name], _value(row, name), _style(row, name)) for name in names]
    words = [*row.cells.values(), *row.problems]
    return {
        "cells": cells,
        "text": " ".join(words),
        "problems": ", ".join(row.problems),
        "links": list(_links(row, beside)),
    }


def _value(row: TableRow, name: str) -> Any:
    """Return what a column sorts by: numbers behind texts with units, and the rest as it is shown."""
    joined, cell = row.run, row.cells[name]
    packing, artifact = joined.packing, joined.run.record.artifact
    if name == "size":
        return packing.total_bytes if packing else artifact.bytes if artifact else ""
    if name == "budget" and packing:
        return packing.budget_bytes
    if name == "started":
        return printable(joined.run.record.started)
    return "" if cell == "-" else cell


def _style(row: TableRow, name: str) -> str:
    if name == "status":
        return f"left status-{row.cells[name].replace(' ', '-')}"
    return "" if name in RIGHT else "left"


def _links(row: TableRow, beside: Path | None) -> Iterator[tuple[str, str]]:
    """Yield name and address of each report and page that lies in the run folder as a copy."""
    run = row.run.run
    for file in run.record.files:
        if file.copy and is_plain_copy(file):
            folder = f"runs/{run.name}" if beside is None else Path(os.path.relpath(run.folder, beside)).as_posix()
            yield printable(file.copy), quote(f"{folder}/{file.copy}")


def is_plain_copy(file: FileRef) -> bool:
    """Return whether the copy is a name in the run folder, not a path out of it."""
    return Path(file.copy).name == file.copy and file.copy not in (".", "..") and "\\" not in file.copy
