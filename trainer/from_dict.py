"""Config dataclasses from JSON or TOML values, every misfit named."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from quantlab.errors import ConfigError

C = TypeVar("C")


def dataclass_from_dict(cls: type[C], data: Mapping[str, Any], where: str = "") -> C:
    """Build the config dataclass `cls` from JSON or TOML values; a field that is a dataclass takes a mapping.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of another type, or what `cls` itself refuses.
    """
    types = {f.name: f.type for f in fields(cls)}  # type: ignore[arg-type]
    check_keys(data, types, where)
    return cls(**{key: _checked(types[key], value, where + key) for key, value in data.items()})


def check_keys(found: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Raise ConfigError, with the nearest known key as its hint, unless every key is known."""
    names = list(known)
    for key in found:
        if key not in names:
            near = get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean {where}{near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise ConfigError(f"unknown key {where}{key}", hint=hint)


def _checked(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be a table, got {value!r}")
        return dataclass_from_dict(kind, value, where=f"{name}.")
    if isinstance(kind, UnionType):  # X | None is the only one in use
        return None if value is None else _checked(get_args(kind)[0], value, name)
    if get_origin(kind) is tuple:  # of any length
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list, got {value!r}")
        return tuple(_checked(get_args(kind)[0], item, f"{name}[{n}]") for n, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # not isinstance: True is an int
        raise ConfigError(f"{name} must be {kind.__name__}, got {value!r}")
    return value
