"""Checked dataclasses from plain values: records from JSON files that anyone may have written, configs from TOML or JSON.

One reader serves both. A `Reader` holds what differs: the class of its errors, what it does with unknown keys, and its words.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from quantlab.errors import ConfigError, QuantlabError, ReportError, why_not
from quantlab.files import read_regular

MOST = 2**63
"""Bound on the size of numbers in records: no byte count is larger, and every smaller integer has a float."""

MOST_SHOWN = 40
"""Characters of a value that an error shows."""

T = TypeVar("T")


def _as_json(value: Any) -> str:
    """Return a value as JSON text."""
    try:
        return json.dumps(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that cannot be shown"


def _as_repr(value: Any) -> str:
    """Return a value as Python writes it, as TOML nearly does."""
    try:
        return repr(value)
    except (RecursionError, ValueError):  # whole numbers of more than 4,300 digits have no text
        return f"a {type(value).__name__} that cannot be shown"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Notation:
    """Words of the errors about one kind of file. `where` is the place of an object in it, `key` one of its keys."""

    mapping: str
    """Name of an object, with its article."""
    types: Mapping[type, str]
    """Names of the plain types."""
    show: Callable[[Any], str]
    """Returns a value as text."""
    separator: str
    """Stands between `where` and `key`; both together are the `place` of a value. An empty `where` adds nothing."""
    missing: str
    """Template for a key that is missing."""
    unknown: str
    """Template for a key that is not known."""
    nearest: str
    """Template for the known key that an unknown one resembles."""

    def place_of(self, where: str, key: str) -> str:
        """Return the place of a key."""
        return f"{where}{self.separator}{key}" if where else key

    def fill(self, template: str, where: str, key: str) -> str:
        """Return a text from one of the templates."""
        return template.format(where=where, key=key, place=self.place_of(where, key))


JSON = Notation(
    mapping="an object",
    types={int: "a whole number", float: "a number", str: "a string", bool: "true or false"},
    show=_as_json,
    separator=": ",
    missing="{where}: key {key!r} is missing",
    unknown="{where}: unknown key {key!r}",
    nearest="{key}",
)
TOML = Notation(
    mapping="a table",
    types={int: "int", float: "float", str: "str", bool: "bool"},
    show=_as_repr,
    separator=".",
    missing="{place} is missing",
    unknown="unknown key {place}",
    nearest="{place}",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """Builds dataclasses from the values of one kind of file and checks the type of every value.

    Fields may have the types int, float, str, bool, Literal, Any, tuple, dict[str, X], another dataclass, and `X | None`.
    """

    error: type[QuantlabError]
    """Class of all errors but those that a dataclass raises itself."""
    refuses_unknown_keys: bool
    """Whether a key that the dataclass does not have is an error; otherwise it is ignored."""
    refuses_large_numbers: bool
    """Whether infinity, NaN and numbers of 2**63 or more are errors."""
    notation: Notation

    def read(self, cls: type[T], raw: Any, where: str) -> T:
        """Return the dataclass `cls` built from a mapping; keys with a default may be absent.

        Args:
            raw: what json or tomllib returned.
            where: place of the mapping, for the errors.
        Raises:
            error: a required key is missing, a key is unknown where that is refused, or a value has another type.
        """
        if not isinstance(raw, Mapping):
            raise self._mismatch(where, self.notation.mapping, raw)
        types, required = _types_of(cls)  # type: ignore[arg-type]  # a class has a hash
        if self.refuses_unknown_keys:
            self.check_keys(raw, types, where)
        if missing := sorted(required - raw.keys()):
            raise self.error(self.notation.fill(self.notation.missing, where, missing[0]))
        place_of = self.notation.place_of
        return cls(**{key: self._value(kind, raw[key], place_of(where, key)) for key, kind in types.items() if key in raw})

    def check_keys(self, found: Iterable[str], known: Iterable[str], where: str) -> None:
        """Raise the reader's error, with the nearest known key as its hint, unless every key is known."""
        names = list(known)
        for key in found:
            if key not in names:
                near = get_close_matches(key, names, n=1, cutoff=0.5)
                hint = f"known keys: {', '.join(names)}"
                if near:
                    hint = f"did you mean {self.notation.fill(self.notation.nearest, where, near[0])}?"
                raise self.error(self.notation.fill(self.notation.unknown, where, key), hint=hint)

    def _value(self, kind: Any, raw: Any, where: str) -> Any:
        if kind in self.notation.types:
            return self._plain(kind, raw, where)
        if kind is Any:
            return raw
        if isinstance(kind, UnionType):  # X | None is the only one in use
            return None if raw is None else self._value(get_args(kind)[0], raw, where)
        if is_dataclass(kind) and isinstance(kind, type):
            return self.read(kind, raw, where)
        read = {tuple: self._items, dict: self._mapping, Literal: self._choice}[get_origin(kind)]
        return read(get_args(kind), raw, where)

    def _plain(self, kind: type, raw: Any, where: str) -> Any:
        """Return an int, float, str or bool. An int is accepted for a float; True is not accepted for a number."""
        is_allowed = type(raw) is kind or (kind is float and type(raw) is int)
        if is_allowed and kind in (int, float) and self.refuses_large_numbers:
            is_allowed = abs(raw) < MOST  # false for infinity and NaN
        if is_allowed and kind is float and type(raw) is int:
            is_allowed = abs(raw) <= sys.float_info.max  # else it has no float
        if not is_allowed:
            raise self._mismatch(where, self.notation.types[kind], raw)
        return kind(raw)

    def _items(self, kinds: tuple[Any, ...], raw: Any, where: str) -> tuple[Any, ...]:
        """Return a tuple of any length for `tuple[X, ...]`, else one value of each type."""
        if not isinstance(raw, list | tuple):
            raise self._mismatch(where, "a list", raw)
        each = (kinds[0],) * len(raw) if kinds[-1] is Ellipsis else kinds
        if len(each) != len(raw):
            raise self.error(f"{where} must have {len(each)} values, got {len(raw)}")
        return tuple(self._value(kind, item, f"{where}[{n}]") for n, (kind, item) in enumerate(zip(each, raw, strict=True)))

    def _mapping(self, kinds: tuple[Any, ...], raw: Any, where: str) -> dict[str, Any]:
        if not isinstance(raw, Mapping):
            raise self._mismatch(where, self.notation.mapping, raw)
        if kinds[1] is Any:
            return dict(raw)
        return {key: self._value(kinds[1], item, self.notation.place_of(where, key)) for key, item in raw.items()}

    def _choice(self, choices: tuple[Any, ...], raw: Any, where: str) -> Any:
        if not any(type(raw) is type(choice) and raw == choice for choice in choices):
            raise self._mismatch(where, f"one of {', '.join(map(str, choices))}", raw)
        return raw

    def _mismatch(self, where: str, wanted: str, raw: Any) -> QuantlabError:
        return self.error(f"{where} must be {wanted}, got {_cut(self.notation.show(raw))}")


@cache
def _types_of(cls: type) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the fields' types and the names of those without a default; to look them up takes longer than to read a record."""
    known, types = fields(cls), get_type_hints(cls)  # type: ignore[arg-type]  # callers pass dataclasses
    required = frozenset(f.name for f in known if f.default is MISSING and f.default_factory is MISSING)
    return {f.name: types[f.name] for f in known}, required


RECORDS = Reader(error=ReportError, refuses_unknown_keys=False, refuses_large_numbers=True, notation=JSON)
"""Reports and records: a later quantlab may add keys."""
CONFIGS = Reader(error=ConfigError, refuses_unknown_keys=True, refuses_large_numbers=False, notation=TOML)
"""Configs that a user writes: an unknown key is a typing error, infinity may mean no limit."""


def read_fields(cls: type[T], raw: Any, where: str) -> T:
    """Return the record `cls` from a JSON object; unknown keys are ignored.

    Raises:
        ReportError: a key is missing or its value has another type; the message starts with `where`.
    """
    return RECORDS.read(cls, raw, where)


def dataclass_from_dict(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Return the config `cls` from JSON or TOML values; a field that is a dataclass takes a mapping.

    Args:
        where: put before every key in errors, as `model.`.
    Raises:
        ConfigError: a key is unknown (the hint has the nearest one) or missing, a value has another type, or `cls` itself
            refuses it.
    """
    return CONFIGS.read(cls, data, where.removesuffix("."))


def check_keys(found: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Raise ConfigError, with the nearest known key as its hint, unless every key of a config is known; `where` as above."""
    CONFIGS.check_keys(found, known, where.removesuffix("."))


MOST_JSON_BYTES = 1 << 26
"""Largest JSON file of others that is read; the index of a model has about 100 bytes for each tensor."""


def read_json(path: Path, error: type[QuantlabError] = ReportError) -> Any:
    """Return what a JSON file holds. `error` if it is missing or not JSON, or if a string in it is not valid Unicode."""
    return parse_json(read_regular(path, error), str(path), error)


def parse_json(text: bytes | str, what: str, error: type[QuantlabError]) -> Any:
    """Return what JSON text in UTF-8 stands for; of a key that is there twice the last value counts.

    Args:
        what: names the text in errors.
    Raises:
        error: it is not JSON in UTF-8, is nested too deep, or has a number of more than 4,300 digits or a string that is not
            valid Unicode.
    """
    try:
        raw = json.loads(text.decode() if isinstance(text, bytes) else text)  # json alone would guess UTF-16 and UTF-32 too
        json.dumps(raw, ensure_ascii=False).encode()
        return raw
    except (ValueError, RecursionError) as found:
        raise error(f"{what} is not JSON: {why_not(found)}") from found


def read_json_object(path: Path, error: type[QuantlabError]) -> dict[str, Any]:
    """Return the object that a JSON file holds. `error` as in `read_json`, or if it is too large, no object, or not finite."""
    return json_object(read_regular(path, error, most=MOST_JSON_BYTES), str(path), error)


def json_object(text: bytes, name: str, error: type[QuantlabError]) -> dict[str, Any]:
    """Return the object that JSON text holds, which comes from the file `name`; `error` as in `read_json_object`."""
    raw = parse_json(text, name, error)
    if not isinstance(raw, dict):
        raise error(f"{name} must be a JSON object, got {type(raw).__name__}")
    try:
        json.dumps(raw, allow_nan=False)
    except ValueError as found:
        raise error(f"{name} has a number that is not finite") from found
    return raw


def json_file(record: Any) -> bytes:
    """Return a dataclass as the bytes of a JSON file, indented by two spaces."""
    return (json.dumps(_in_unicode(asdict(record)), indent=2) + "\n").encode()


def _in_unicode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {in_unicode(key): _in_unicode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_unicode(item) for item in value]
    return in_unicode(value) if isinstance(value, str) else value


def in_unicode(text: str) -> str:
    """Return valid Unicode: bytes of a path that are not UTF-8 become escapes, since records are UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
