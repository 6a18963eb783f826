"""Config dataclasses from JSON or TOML values, every misfit named."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from quantlab.errors import ConfigError

C = TypeVar("C")


def dataclass_from_dict(cls: type[C], data: Mapping[str, Any], where: str = "") -> C:
    """Build the config dataclass `cls` from JSON or TOML values; a field that is a dataclass takes a mapping.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of another type, or what `cls` itself refuses.
    """
    types = {f.name: f.type for f in fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        if key not in types:
            near = get_close_matches(key, types, n=1, cutoff=0.5)
            hint = f"did you mean {where}{near[0]}?" if near else f"known keys: {', '.join(types)}"
            raise ConfigError(f"unknown key {where}{key}", hint=hint)
        values[key] = _checked(types[key], value, where + key)
    return cls(**values)


def _checked(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be a table, got {value!r}")
        return dataclass_from_dict(kind, value, where=f"{name}.")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # not isinstance: True is an int
        raise ConfigError(f"{name} must be {kind.__name__}, got {value!r}")
    return value
