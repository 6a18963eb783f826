"""Make the tables of the benchmark page from benchmarks/results/*.json when the site is built.

`<!-- results: rate_distortion.rows -->` in the page becomes the table of that list. Files and lists that the page does not name
are shown at `<!-- other results -->`, so that no result is left out.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
PAGE = "benchmarks.md"
OTHERS = "<!-- other results -->"
_MARK = re.compile(r"<!-- results: (\w+)\.(\w+) -->")
_VERSIONS = ("python", "torch", "triton", "numpy", "numba")

Row = dict[str, Any]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _plus_minus(row: Row, key: str, low: str, digits: int) -> str:
    return f"{row[key]:.{digits}f} ± {row[key] - row[low]:.{digits}f}"


def _stage(row: Row, name: str) -> str:
    """Return seconds, and GFLOP/s beside those of plain products where the benchmark has them."""
    text = f"{row['stages_s'].get(name, 0):.1f}"
    return text + " ({:.0f} of {:.0f})".format(*row["gflops"][name]) if name in row["gflops"] else text


COLUMNS: dict[str, dict[str, Callable[[Row], str]]] = {
    "rate_distortion": {
        "method": lambda r: r["method"],
        "file, bytes": lambda r: f"{r['bytes']:,}",
        "KL, nats per token": lambda r: _plus_minus(r, "kl_mean", "kl_low", 5),
        "KL q99": lambda r: f"{r['kl_q99']:.3f}",
        "BPB gap": lambda r: _plus_minus(r, "bpb_gap", "bpb_gap_low", 4),
        "top-1 flips": lambda r: _percent(r["top1_flips"]),
        "predicted": lambda r: f"{r['predicted']:.5f}" if "predicted" in r else "",
        "pack, s": lambda r: f"{r['pack_s']:.0f}",
        "unpack, s": lambda r: f"{r['unpack_s']:.1f}",
    },
    "peers": {
        "peer": lambda r: f"{r['peer']} {r['setting']}".strip(),
        "stored, bytes": lambda r: f"{r['stored_bytes']:,}",
        "after zstd or brotli": lambda r: f"{r['bytes']:,}",
        "KL, nats per token": lambda r: f"{r['kl']:.5f}",
        "KL x": lambda r: f"{r['kl_ratio']:.1f}" if "kl_ratio" in r else "",
        "seconds": lambda r: f"{r['seconds']:.1f}",
    },
    "estimate": {
        "model": lambda r: r["model"],
        "budget, bytes": lambda r: f"{r['budget_bytes']:,}",
        "bits a weight": lambda r: f"{r['bpw']:.1f}",
        "file, bytes": lambda r: f"{r['file_bytes']:,}",
        "KL measured": lambda r: f"{r['kl']:.3g}",
        "KL estimated": lambda r: f"{r['estimated_kl']:.3g}",
        "measured / estimated": lambda r: f"{r['ratio']:.2f}",
        "predicted": lambda r: f"{r['predicted_kl']:.3g}",
    },
    "packing": {
        "model": lambda r: r["model"],
        "processors": lambda r: str(r["processors"]),
        "calibration tokens": lambda r: f"{r['tokens']:,}",
        "seconds": lambda r: f"{r['seconds']:.0f}",
        "forecast": lambda r: f"{r['forecast_s']:.0f}",
        "sampling": lambda r: _stage(r, "sampling"),
        "statistics": lambda r: _stage(r, "statistics"),
        "rounding": lambda r: _stage(r, "rounding"),
        "tuning": lambda r: _stage(r, "tuning"),
        "roundings": lambda r: f"{r['roundings']:.1f}",
        "memory, GB": lambda r: f"{r['peak_gb']:.2f}",
    },
}
"""The columns of a file's lists, by the beginning of its name. Other files show all plain values of their rows."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the tables into the page."""
    if page.file.src_uri != PAGE:
        return markdown
    page.meta["hide"] = ["toc"]  # tables are wide
    named = {match.groups() for match in _MARK.finditer(markdown)}
    text = _MARK.sub(lambda match: _named_table(*match.groups()), markdown)
    return text.replace(OTHERS, others(named))


def others(named: set[tuple[str, str]]) -> str:
    """Return a section for each file with lists that the page does not name."""
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text())
        lists = [key for key, value in data.items() if is_rows(value) and (path.stem, key) not in named]
        if lists:
            parts += [f"## {path.name}", machine_line(data), *(named_table(path.stem, data[key]) for key in lists)]
    return "\n\n".join(parts)


def is_rows(value: Any) -> bool:
    """Return whether a value is a list of objects, which makes a table."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def machine_line(data: Row) -> str:
    """Return a sentence that says where the results were measured."""
    about = data.get("machine", {})
    place = [data["card"]] if "card" in data else [f"{about.get('processors')} processors ({about.get('processor')})"]
    versions = [f"{key} {about[key]}" for key in _VERSIONS if about.get(key)]
    commit = [f"commit {about['commit']}" + (" with changes" if about.get("dirty") else "")] if "commit" in about else []
    return f"Measured on {', '.join([*place, *versions, *commit])}."


def named_table(stem: str, rows: list[Row]) -> str:
    """Return the table of the rows, with the columns of their file or with all plain values."""
    if stem == "gaussian_source":
        rows, columns = _by_rate(rows)
    else:
        columns = next((c for start, c in COLUMNS.items() if stem.startswith(start)), None) or _plain_columns(rows)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(show(row) for show in columns.values()) + " |" for row in rows]
    return '<div class="results" markdown>\n\n' + "\n".join(lines) + "\n\n</div>"


def _by_rate(rows: list[Row]) -> tuple[list[Row], dict[str, Callable[[Row], str]]]:
    """Return a row for each target rate and a column for each number of states: the distance at the rate that came out."""
    states = list(dict.fromkeys(row["states"] for row in rows))
    at = {(row["target_bits"], row["states"]): f"{row['gap_bits']:.3f} at {row['rate_bits']:.2f}" for row in rows}
    titles = {n: "scalar" if n == 1 else f"{n} states" for n in states}
    columns: dict[str, Callable[[Row], str]] = {"bits aimed at": lambda r: f"{r['target_bits']:g}"}
    columns |= {titles[n]: lambda r, n=n: at[r["target_bits"], n] for n in states}
    return [{"target_bits": rate} for rate in dict.fromkeys(row["target_bits"] for row in rows)], columns


def _named_table(stem: str, key: str) -> str:
    path = RESULTS / f"{stem}.json"
    data = json.loads(path.read_text()) if path.is_file() else {}
    if not is_rows(data.get(key)):
        raise PluginError(f"{PAGE} names {stem}.{key}, but {path.name} has no such list")
    return f"{named_table(stem, data[key])}\n\n{machine_line(data)}"


def _plain_columns(rows: list[Row]) -> dict[str, Callable[[Row], str]]:
    flat = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    return {name.replace("_", " "): lambda row, name=name: dict(_flat(row)).get(name, "") for name in names}


def _flat(row: Row, before: str = "") -> list[tuple[str, str]]:
    """Return names and texts of the plain values; values of an inner object have its name before theirs."""
    found = []
    for key, value in row.items():
        if isinstance(value, dict):
            found += _flat(value, f"{before}{key} ")
        elif not isinstance(value, list):
            found.append((before + key, _text(value)))
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
