"""Dataclasses out of JSON files that anyone may have written: every type is checked, every mistake is one line.

Config dataclasses from JSON or TOML values, every misfit named."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from quantlab.errors import ConfigError, ReportError

MOST = 2**63
"""Integers of files lie below it in size: no byte count is larger, and every one of them has a float."""

T = TypeVar("T")


def read_json(path: Path) -> Any:
    """What the JSON file at `path` holds. ReportError if it is missing or no JSON, or has a string that is no Unicode."""
    try:
        raw = json.loads(path.read_bytes())
        json.dumps(raw, ensure_ascii=False).encode()
        return raw
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is not JSON: {' '.join(str(error).split())}") from error


def read_fields(cls: type[T], raw: Any, where: str) -> T:
    """The dataclass `cls` out of a JSON object; keys that it does not have are passed over, a later quantlab may add some.

    Raises:
        ReportError: a key is missing or its value has another type; the message starts with `where`.
    """
    if not isinstance(raw, dict):
        raise ReportError(f"{where} must be an object, got {_shown(raw)}")
    kinds, required = _shape(cls)  # type: ignore[arg-type]  # a class has a hash
    if missing := sorted(required - raw.keys()):
        raise ReportError(f"{where}: key {missing[0]!r} is missing")
    return cls(**{name: _value(kind, raw[name], f"{where}: {name}") for name, kind in kinds.items() if name in raw})


@cache
def _shape(cls: type) -> tuple[dict[str, Any], frozenset[str]]:
    """Types of the fields, and the names of those without a default; looking them up takes longer than reading a record."""
    known, kinds = fields(cls), get_type_hints(cls)  # type: ignore[arg-type]  # callers pass dataclasses
    required = frozenset(f.name for f in known if f.default is MISSING and f.default_factory is MISSING)
    return {f.name: kinds[f.name] for f in known}, required


def _value(kind: Any, raw: Any, where: str) -> Any:
    """`raw` as a value of the type `kind`."""
    if kind in (str, int, float, bool):
        return _plain(kind, raw, where)
    if kind is Any:
        return raw
    if isinstance(kind, UnionType):  # X | None is the only one in use
        return None if raw is None else _value(get_args(kind)[0], raw, where)
    if is_dataclass(kind):
        return read_fields(kind, raw, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _items(get_args(kind), raw, where)
    if not isinstance(raw, dict):
        raise ReportError(f"{where} must be an object, got {_shown(raw)}")
    item = get_args(kind)[1]  # of dict[str, X], the only kind that is left
    return dict(raw) if item is Any else {key: _value(item, value, f"{where}: {key}") for key, value in raw.items()}


def _items(kinds: tuple[Any, ...], raw: Any, where: str) -> tuple[Any, ...]:
    """A tuple of any length for `tuple[X, ...]`, else one value of each kind."""
    if not isinstance(raw, list):
        raise ReportError(f"{where} must be a list, got {_shown(raw)}")
    each = (kinds[0],) * len(raw) if kinds[-1] is Ellipsis else kinds
    if len(each) != len(raw):
        raise ReportError(f"{where} must have {len(each)} values, got {len(raw)}")
    return tuple(_value(kind, item, f"{where}[{n}]") for n, (kind, item) in enumerate(zip(each, raw, strict=True)))


def _plain(kind: type, raw: Any, where: str) -> Any:
    """int, float, str or bool; a whole number is a float too, a bool is no number."""
    is_number = type(raw) in (int, float) and abs(raw) < MOST  # neither infinite nor NaN
    if kind is float and is_number:
        return float(raw)
    if kind is int and type(raw) is int and is_number:
        return raw
    if kind in (str, bool) and type(raw) is kind:
        return raw
    name = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[kind]
    raise ReportError(f"{where} must be {name}, got {_shown(raw)}")


def _shown(raw: Any) -> str:
    """A value in a message: short, whatever it is."""
    text = json.dumps(raw)
    return text if len(text) <= 40 else f"{text[:37]}..."


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
