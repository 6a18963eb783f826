"""TOML files: reading, changes from the command line, and writing."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, why_not
from quantlab.files import read_regular


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return what a TOML file holds. ConfigError, which calls the file a `what`, if it cannot be read or is not TOML."""
    text = read_regular(path, ConfigError, what)
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # errors of TOML, of UTF-8, and of numbers with too many digits
        raise ConfigError(f"{what} {path} is not TOML: {why_not(error)}") from error


def apply_changes_(raw: dict[str, Any], changes: Sequence[str], *, option: str = "--set") -> None:
    """Apply changes "key=value" in place: dots in a key lead into tables, values are TOML, a string needs no quotes.

    Errors name the command-line `option` that the changes came with.
    """
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{option} must look like key=value, got {change!r}")
        set_key_(raw, key.strip(), parse_value(text.strip()))


def set_key_(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place; tables that are missing are made. ConfigError if the key leads through a value."""
    *tables, name = key.split(".")
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{key}: {table} is not a table")
    raw[name] = value


def parse_value(text: str) -> Any:
    """Return the TOML value that `text` stands for; text that is not TOML is a string.

    Raises:
        ConfigError: it is nested too deep, or a number has more than 4,300 digits.
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"value {text[:40]}... cannot be read: {why_not(error)}") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Return TOML text; values may be strings, numbers, booleans and tables of these."""
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
