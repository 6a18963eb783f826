"""A grid of pipelines: lists of values for dotted keys, and every combination of them."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from quantlab.errors import ConfigError

MOST_CELLS = 1000
LONGEST_NAME = 150
Values = dict[str, Any]
"""What one cell has under each dotted key of the matrix."""


def axes_of(table: Any) -> dict[str, list[Any]]:
    """Values of each dotted key: `"pack.budget" = [...]`, or tables as TOML makes them of pack.budget without quotes."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"matrix must be a table, got {table!r}")
    axes = dict(_flat(table, ""))
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"matrix.{key} must be a list of one value or more, got {values!r}")
        if twice := [v for n, v in enumerate(values) if v in values[:n]]:
            raise ConfigError(f"matrix.{key} holds {twice[0]!r} twice")
        if key.split(".")[0] in ("matrix", "clock") or "." not in key:
            raise ConfigError(f"matrix.{key} must name a key of a stage, like pack.budget")
    return axes


def cells_of(axes: Mapping[str, list[Any]]) -> dict[str, Values]:
    """Every combination by its name, the last key's values following each other fastest.

    Raises:
        ConfigError: more than 1,000, or two of one name.
    """
    cells: dict[str, Values] = {}
    for count, combination in enumerate(product(*axes.values())):
        if count == MOST_CELLS:
            raise ConfigError(f"matrix has more than {MOST_CELLS:,} cells")
        values = dict(zip(axes, combination, strict=True))
        name = _name(values)
        if name in cells:
            raise ConfigError(f"matrix: two cells would be named {name}")
        cells[name] = values
    return cells


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _name(values: Values) -> str:
    """Fit for a folder: `pack.budget=60kB,train.seed=1`."""
    name = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9_.+-]+', '_', _text(value))}" for key, value in values.items())
    return (
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "-".join(map(_text, value)) if isinstance(value, list) else str(value)
