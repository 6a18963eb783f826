"""The HTML report: one page that needs no network, for one packed model or for several side by side."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from quantlab import __version__
from quantlab.budget import size_text
from quantlab.printable import printable
from quantlab.report.assets import render
from quantlab.report.comparison import Comparison, FileRow
from quantlab.report.entry import Entry
from quantlab.report.estimates import Estimates
from quantlab.report.figures import all_figures
from quantlab.report.plot import COLOURS
from quantlab.report.slider import Slider
from quantlab.report.tables import equal_bytes_line, equal_kl_line, measures, nats, number, tensor_columns

SCRIPTS = ("charts.js", "codes.js", "tables.js", "slider.js")


def render_page(
    comparison: Comparison,
    entries: Sequence[Entry],
    counts: Sequence[dict[str, list[int]]],
    estimates: Estimates | None = None,
) -> str:
    """Return the whole page.

    Args:
        counts: for each file how often each code occurs, by tensor; empty where that is not known.
        estimates: what other sizes would be, which the page shows under a slider.
    """
    figures = list(all_figures(comparison, entries, counts))
    slider = Slider.of(estimates, entries[0].total_bytes, entries[0].evaluation) if estimates else None
    return render(
        "page.html",
        scripts=SCRIPTS,
        page_data={
            "figures": {figure.id: figure.to_dict() for figure in (*figures, *(slider.figures if slider else ()))},
            "codes": [{printable(name): tally for name, tally in one.items()} for one in counts],
            "estimate": slider.data if slider else None,
        },
        title=_title(comparison),
        cards=[_card(n, row) for n, row in enumerate(comparison.files)],
        comparison=comparison,
        sentences=[*map(equal_bytes_line, comparison.equal_bytes), *map(equal_kl_line, comparison.equal_kl)],
        measures=[(name, [cell(row) for row in comparison.files]) for name, cell in measures(comparison.files)],
        figures=[(figure.id, figure.label) for figure in figures],
        slider=slider.words if slider else None,
        columns=[column.name for column in tensor_columns(comparison)],
        tensors=list(_tensor_rows(comparison)),
        code_names=list(dict.fromkeys(printable(name) for one in counts for name in one)),
        options=list(_options(entries)),
        producer=f"quantlab {__version__}",
    )


def _title(comparison: Comparison) -> str:
    """Return the names of the files with their methods and sizes."""
    return ", ".join(f"{_name(row)} ({_method(row)}, {size_text(row.total_bytes)})" for row in comparison.files)


def _method(row: FileRow) -> str:
    return printable(row.method) or "method not known"


def _name(row: FileRow) -> str:
    return printable(row.path.rpartition("/")[2])


def _card(n: int, row: FileRow) -> dict[str, Any]:
    """Return the headline numbers of one file."""
    share = f"{row.total_bytes / row.budget_bytes:.2%}".replace("%", "\u00a0%") if row.budget_bytes else ""
    return {
        "label": row.label,
        "name": _name(row),
        "method": _method(row),
        "colour": COLOURS[n % len(COLOURS)],
        "problems": [printable(problem) for problem in row.problems],
        "bytes": number(row.total_bytes),
        "of": f"of {row.budget_bytes:,} bytes, {share}" if row.budget_bytes else "bytes",
        "before": number(row.bpb_before, ".4f"),
        "after": number(row.bpb_after, ".4f"),
        "gap": "-" if row.gap_bpb is None else f"{row.gap_bpb[0]:+.4f}",
        "interval": "" if row.gap_bpb is None else f"{row.gap_bpb[1]:+.4f} to {row.gap_bpb[2]:+.4f}",
        "kl": nats(row.kl),
        "bpw": number(row.bpw, ".3f"),
    }


def _tensor_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield name, shape, number of weights, and text and value of each cell."""
    columns = tensor_columns(comparison)
    for row in comparison.tensors:
        cells = [(column.text(row), column.value(row)) for column in columns]
        weights = 1
        for n in row.shape:
            weights *= n
        yield {"name": printable(row.name), "shape": " × ".join(map(str, row.shape)), "weights": weights, "cells": cells}


def _options(entries: Sequence[Entry]) -> Iterator[tuple[str, list[str], bool]]:
    """Yield the name of each option or fingerprint, its value in each file, and whether the values differ."""
    columns = [dict(_facts(entry)) for entry in entries]
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column.get(name, "-") for column in columns]
        yield name, values, len(set(values)) > 1


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    report, evaluation, file = entry.report, entry.evaluation, entry.file
    if file:
        yield from _flat("file", {"path": entry.path, "sha256": file.sha256, **file.about})
    if report:
        keys = (
            "checkpoint",
            "method",
            "options",
            "predictor",
            "effort",
            "tuned",
            "refined",
            "seed",
            "code_files",
            "calibration",
        )
        yield from _flat("pack", {key: getattr(report, key) for key in (*keys, "tensors_sha256", "timings_s", "producer")})
    if evaluation:
        data = {key: getattr(evaluation.data, key) for key in evaluation.data.__slots__}
        reference = {"file": entry.against.file, "fingerprint": entry.against.fingerprint} if entry.against else {}
        yield from _flat("eval", {**data, "device": evaluation.device, "against": reference, "producer": evaluation.producer})


def _flat(name: str, value: Any, depth: int = 3) -> Iterator[tuple[str, str]]:
    """Yield names like `pack effort states` with their values as text; below the depth a value stays JSON."""
    if isinstance(value, dict) and depth:
        for key, part in value.items():
            yield from _flat(f"{name} {key}", part, depth - 1)
    elif isinstance(value, list | tuple) and all(isinstance(part, str | int | float) for part in value):
        yield printable(name), printable(", ".join(map(str, value)))
    else:
        yield printable(name), printable(value if isinstance(value, str) else json.dumps(value))
