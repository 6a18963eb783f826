"""Runs as text for people: aligned columns, and nothing that a terminal could take for a command."""

import json
import re
from collections.abc import Sequence
from typing import Any

RIGHT = {"bpb", "bytes", "budget"}
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")
LIST = ("run", "kind", "status", "bpb", "data", "bytes", "budget", "artifact")


def shown(value: Any) -> str:
    """One value in one line: numbers with separators, lists with commas, control characters as question marks."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value) or "-"
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def columns(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Lines with every column as wide as its widest cell; spaces at the end are dropped."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    return [
        "  ".join(f"{cell:{'>' if r else '<'}{w}}" for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]


def list_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table of `runs list`; a last column says what is wrong where something is."""
    names = (*LIST, "problems") if any(_problems(row) for row in rows) else LIST
    cells = [[_cell(row, name) for name in names] for row in rows]
    return columns([names, *cells], [name in RIGHT for name in names])


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if name == "problems":
        return _problems(row)
    if name == "bpb" and isinstance(value, float):
        return f"{value:.4f}"
    return "invalid" if name == "status" and value == "done" and not row["valid"] else shown(value)


def _problems(row: dict[str, Any]) -> str:
    """What the column `status` does not say already."""
    return ", ".join(shown(problem) for problem in row["problems"] if problem != row["status"])


def show_lines(row: dict[str, Any]) -> list[str]:
    """One key a line; keys without a value are left out."""
    return columns(
        [(shown(key), shown(value)) for key, value in row.items() if value not in (None, "", [], {})], (False, False)
    )


def diff_lines(left: str, right: str, found: Sequence[tuple[str, Any, Any]]) -> list[str]:
    """Three columns: key, one run, the other. Hashes are cut to what tells them apart."""
    cells = [(shown(key), _HASH.sub(r"\1", shown(a)), _HASH.sub(r"\1", shown(b))) for key, a, b in found]
    return columns([("key", left, right), *cells], (False, False, False))
