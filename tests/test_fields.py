"""One reader of dataclasses: the same checks for records, configs and the manifest, with each one's errors and words."""

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from quantlab.errors import ConfigError, FormatError, ReportError
from quantlab.fields import (
    CONFIGS,
    JSON,
    RECORDS,
    Reader,
    check_keys,
    dataclass_from_dict,
    json_file,
    parse_json,
    read_fields,
)

STRICT = Reader(error=FormatError, refuses_unknown_keys=True, refuses_large_numbers=True, notation=JSON)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """A nested dataclass."""

    size: int
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    """A field of every type that the reader knows."""

    name: str
    kind: Literal["row", "raw"] = "row"
    inner: Inner = field(default_factory=lambda: Inner(size=1))
    shape: tuple[int, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    counts: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    is_on: bool = False
    limit: float | None = None


WHOLE = {
    "name": "a",
    "kind": "raw",
    "inner": {"size": 2, "rate": 3},
    "shape": [4, 5],
    "pair": [6, 7],
    "counts": {"x": 8},
    "extra": {"y": [9]},
    "is_on": True,
    "limit": 10,
}


@pytest.mark.parametrize("reader", [RECORDS, CONFIGS, STRICT])
def test_all_readers_build_the_same_dataclass(reader):
    found = reader.read(Outer, WHOLE, "x")
    assert found.inner == Inner(size=2, rate=3.0) and found.shape == (4, 5) and found.pair == (6, 7.0)
    assert (found.kind, found.counts, found.extra, found.is_on, found.limit) == ("raw", {"x": 8}, {"y": [9]}, True, 10.0)
    assert all(type(value) is float for value in (found.inner.rate, found.pair[1], found.limit))
    assert reader.read(Outer, {"name": "a", "limit": None}, "x") == Outer(name="a")


@pytest.mark.parametrize(
    ("change", "record", "config"),
    [
        ({"inner": 3}, "x: inner must be an object, got 3", "x.inner must be a table, got 3"),
        ({"inner": {"size": True}}, "x: inner: size must be a whole number, got true", "x.inner.size must be int, got True"),
        ({"inner": {}}, "x: inner: key 'size' is missing", "x.inner.size is missing"),
        ({"shape": 3}, "x: shape must be a list, got 3", "x.shape must be a list, got 3"),
        ({"shape": [1, "a"]}, 'x: shape[1] must be a whole number, got "a"', "x.shape[1] must be int, got 'a'"),
        ({"pair": [1]}, "x: pair must have 2 values, got 1", "x.pair must have 2 values, got 1"),
        ({"kind": "column"}, 'x: kind must be one of row, raw, got "column"', "x.kind must be one of row, raw, got 'column'"),
        ({"counts": {"y": 0.5}}, "x: counts: y must be a whole number, got 0.5", "x.counts.y must be int, got 0.5"),
        ({"limit": "1"}, 'x: limit must be a number, got "1"', "x.limit must be float, got '1'"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(change, record, config):
    for reader, message in ((RECORDS, record), (STRICT, record), (CONFIGS, config)):
        with pytest.raises(reader.error) as caught:
            reader.read(Outer, WHOLE | change, "x")
        assert str(caught.value) == message


def test_unknown_keys_are_ignored_in_records_and_refused_elsewhere():
    more = WHOLE | {"shap": 1}
    assert read_fields(Outer, more, "x") == read_fields(Outer, WHOLE, "x")
    with pytest.raises(ConfigError, match="^unknown key shap$") as caught:
        dataclass_from_dict(Outer, more)
    assert caught.value.hint == "did you mean shape?"
    with pytest.raises(FormatError, match="^x: unknown key 'shap'$") as refused:
        STRICT.read(Outer, more, "x")
    assert refused.value.hint == "did you mean shape?"
    with pytest.raises(ConfigError, match="^unknown key pack.zzz$") as without:
        check_keys(["name", "zzz"], ["name", "kind"], "pack.")
    assert without.value.hint == "known keys: name, kind"


def test_numbers_of_records_are_finite_and_have_a_bound():
    for value in (math.inf, math.nan, 1e19):
        with pytest.raises(ReportError, match="x: limit must be a number, got "):
            read_fields(Outer, WHOLE | {"limit": value}, "x")
    with pytest.raises(FormatError, match="x: inner: size must be a whole number, got 9223372036854775808"):
        STRICT.read(Outer, WHOLE | {"inner": {"size": 2**63}}, "x")
    assert dataclass_from_dict(Outer, WHOLE | {"limit": math.inf}).limit == math.inf


@pytest.mark.parametrize("cls", [Outer, Inner])
def test_a_whole_number_without_a_float_is_refused(cls):
    raw = {"name": "a", "size": 1, "limit": 10**400, "rate": 10**400}
    known = {key: value for key, value in raw.items() if key in cls.__dataclass_fields__}
    with pytest.raises(ConfigError, match=r"must be float, got 1000.*\.\.\.$") as caught:
        dataclass_from_dict(cls, known)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe1\0", "can't decode"),
        (b"\xef\xbb\xbf1", "BOM"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b"[" * 100_000, "it is nested too deep"),
        (b"1" * 5000, "it has a number of more than 4,300 digits"),
        (b"{", "Expecting"),
    ],
)
def test_json_that_cannot_be_read_is_told_in_our_words(text, message):
    with pytest.raises(ReportError, match=f"x is not JSON: .*{message}") as caught:
        parse_json(text, "x", ReportError)
    assert "set_int_max_str_digits" not in str(caught.value)


def test_json_files_are_utf_8_whatever_the_names_of_files():
    odd = Inner(size=1)
    object.__setattr__(odd, "rate", {"m\udcff.py": ["\ud800"]})
    assert json.loads(json_file(odd)) == {"size": 1, "rate": {r"m\udcff.py": [r"\ud800"]}}
