"""TOML files with changes from the command line, and back to text."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The file's keys; `what` it is stands in error texts. ConfigError if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path} is not TOML: {error}") from error


def apply_changes_(raw: dict[str, Any], changes: Sequence[str]) -> None:
    """Change keys as `--set` says: "key=value", keys with a dot for tables, values as in TOML (a text needs no quotes)."""
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set must look like key=value, got {change!r}")
        set_key_(raw, key.strip(), parse_value(text.strip()))


def set_key_(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; its tables appear as needed. ConfigError if one of them is a value."""
    *tables, name = key.split(".")
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{key}: {table} is not a table")
    raw[name] = value


def parse_value(text: str) -> Any:
    """As TOML reads it; what is no TOML value is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def to_toml(values: Mapping[str, Any]) -> str:
    """Inverse of reading for texts, numbers, booleans and tables of them."""
    lines = [f"{key} = {_value(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    for key, table in values.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{key}]", *(f"{name} = {_value(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML forbids only this beyond JSON
    return repr(value)
