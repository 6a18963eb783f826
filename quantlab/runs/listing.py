"""Runs as flat keys and values, which `runs list` sorts and filters, `show` prints and `diff` compares; and as text for people.

Text has aligned columns and no control characters, so that no value of a record reaches a terminal as a command.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from quantlab.budget import parse_bytes
from quantlab.errors import ConfigError
from quantlab.printable import printable
from quantlab.runs.frontier import data_id
from quantlab.runs.run_record import plain
from quantlab.runs.store import JoinedRun

Row = dict[str, Any]
CONFIG = ("kind", "fingerprint", "options", "seeds", "environment", "versions", "git")
"""First parts of the keys of inputs and options."""
RESULTS = (
    *("status", "valid", "problems", "bpb", "loss", "bytes", "code_bytes", "budget"),
    *("bpw", "predicted_kl", "sha256", "data", "metrics"),
)
"""First parts of the keys of results."""
MOST_NAMED = 6
"""Most values that an error about a filter names."""
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")


def summary(joined: JoinedRun) -> Row:
    """Return the keys that every run has; a value that it does not have is None."""
    record, packing, score = joined.run.record, joined.packing, joined.evaluation
    artifact = record.artifact
    size = packing.total_bytes if packing else artifact.bytes if artifact else None
    return {
        "run": joined.run.name,
        "kind": record.kind,
        "status": joined.status,
        "valid": joined.is_valid,
        "problems": list(joined.problems),
        "started": record.started,
        "seconds": record.seconds or None,
        "bpb": score.val_bpb if score else record.metrics.get("val_bpb"),
        "loss": score.val_loss if score else record.metrics.get("val_loss"),
        "data": data_id(score.data) if score else None,
        "bytes": size,
        "code_bytes": packing.code_bytes if packing else None,
        "budget": packing.budget_bytes if packing else record.options.get("budget_bytes"),
        "bpw": packing.bpw if packing else None,
        "predicted_kl": packing.predicted_kl if packing else None,
        "artifact": artifact.path if artifact else None,
        "sha256": artifact.sha256 if artifact else None,
        "checkpoint": record.checkpoint.path if record.checkpoint else None,
        "fingerprint": record.checkpoint.fingerprint if record.checkpoint else None,
    }


def flat(joined: JoinedRun) -> Row:
    """Return the summary, and every option, metric, version and so on under a dotted key."""
    record = joined.run.record
    row = summary(joined)
    if joined.evaluation:
        row |= _dotted("data", asdict(joined.evaluation.data))
    for name in ("options", "seeds", "environment", "versions", "metrics"):
        if known := getattr(record, name):
            row |= _dotted(name, known)
    return row | (_dotted("git", plain(record.git)) if record.git else {})


def _dotted(prefix: str, value: Any) -> Row:
    if isinstance(value, Mapping) and value:
        return {key: item for name, part in value.items() for key, item in _dotted(f"{prefix}.{name}", part).items()}
    return {prefix: value}


def resolve(key: str, known: Iterable[str]) -> str:
    """Return the key itself, or the only known key that ends with it after a dot: `method` for `options.method`.

    Raises:
        ConfigError: no run has such a key, or several keys end so.
    """
    names = sorted(set(known))
    ending = [name for name in names if name.endswith(f".{key}")]
    if key in names or len(ending) == 1:
        return key if key in names else ending[0]
    if ending:
        raise ConfigError(f"key {key!r} may be any of {', '.join(ending)}")
    near = get_close_matches(key, [*names, *(name.rpartition(".")[2] for name in names)], n=1)
    raise ConfigError(f"no run has the key {key!r}", hint=f"did you mean {near[0]}?" if near else "see quantlab runs show RUN")


def check_wanted(name: str, values: Sequence[Any], wanted: str) -> None:
    """Raise ConfigError where no run has the wanted value and it looks like a mistake: a word among words or numbers.

    A number that no run has is a question with an empty answer; so is true or false.
    """
    known = [value for value in values if value is not None]
    if any(matches(value, wanted) for value in known) or _is_plain(wanted, known):
        return
    words = sorted({shown(value) for value in known})
    near = get_close_matches(wanted, words, n=1)
    there = f"there are {', '.join(words[:MOST_NAMED])}" + (", ..." if len(words) > MOST_NAMED else "")
    raise ConfigError(
        f"no run has {name} {wanted!r}", hint=f"did you mean {near[0]}?" if near else there if words else "no run has a value"
    )


def _is_plain(wanted: str, known: Sequence[Any]) -> bool:
    """Return whether the text is a number, a size, true, false or null, and the values are no words."""
    if any(isinstance(value, str) for value in known):
        return False
    try:
        parse_bytes(wanted)
        return True
    except ConfigError:
        pass
    try:
        return isinstance(json.loads(wanted), bool | int | float | None)
    except (ValueError, RecursionError):
        return False


def matches(value: Any, wanted: str) -> bool:
    """Whether a value equals what a user typed: a string, a number, true, false, null, or a size like 16MB."""
    if isinstance(value, str):
        return value == wanted
    try:
        return bool(value == json.loads(wanted))
    except (ValueError, RecursionError):
        pass
    try:
        return isinstance(value, int) and value == parse_bytes(wanted)
    except ConfigError:
        return False


def where(rows: Sequence[Row], conditions: Iterable[str]) -> list[Row]:
    """Return the rows that meet every `key=value`. ConfigError for another form, a key or a word that no row has."""
    found, known = list(rows), {key for row in rows for key in row}
    for condition in conditions:
        key, equals, wanted = condition.partition("=")
        if not equals or not key:
            raise ConfigError(f"--where must look like key=value, got {condition!r}")
        if rows:
            name = resolve(key, known)
            check_wanted(name, [row.get(name) for row in rows], wanted)
            found = [row for row in found if matches(row.get(name), wanted)]
    return found


def by_key(rows: Sequence[Row], key: str) -> list[Row]:
    """Return the rows sorted by one key, largest first with a minus before the key; rows without a value come last."""
    if not rows:
        return []
    name = resolve(key.removeprefix("-"), {key for row in rows for key in row})
    having = [row for row in rows if row.get(name) is not None]
    having.sort(key=lambda row: _order(row[name]), reverse=key.startswith("-"))
    return having + [row for row in rows if row.get(name) is None]


def _order(value: Any) -> tuple[int, Any]:
    """Return a sort key: numbers come before strings, and strings before the rest."""
    if isinstance(value, bool | int | float):
        return 0, value
    return (1, value) if isinstance(value, str) else (2, json.dumps(value))


def differences(left: Row, right: Row) -> list[tuple[str, Any, Any]]:
    """Return the keys of config and results, in that order, whose values differ; a missing key has the value None."""
    names = [n for n in dict.fromkeys([*left, *right]) if not n.startswith("data.") or (left["data"] and right["data"])]
    ordered = [n for part in (*CONFIG, *RESULTS) for n in names if n.partition(".")[0] == part]
    return [(n, left.get(n), right.get(n)) for n in ordered if left.get(n) != right.get(n)]


def shown(value: Any) -> str:
    """Return one value on one line: numbers with separators, lists with commas, characters that steer a terminal as escapes."""
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
    return printable(value if isinstance(value, str) else json.dumps(value))


def columns(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Return lines in which every column is as wide as its widest cell; spaces at the end are dropped."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    return [
        "  ".join(f"{cell:{'>' if r else '<'}{w}}" for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]


def show_lines(row: dict[str, Any]) -> list[str]:
    """Return one line for each key that has a value."""
    return columns(
        [(shown(key), shown(value)) for key, value in row.items() if value not in (None, "", [], {})], (False, False)
    )


def diff_lines(left: str, right: str, found: Sequence[tuple[str, Any, Any]]) -> list[str]:
    """Return three columns: the key and its value in either run. Hashes are shortened."""
    cells = [(shown(key), _HASH.sub(r"\1", shown(a)), _HASH.sub(r"\1", shown(b))) for key, a, b in found]
    return columns([("key", left, right), *cells], (False, False, False))
