"""The file of a search: a pipeline, what may vary in it, who proposes, and how much may be spent."""

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError
from quantlab.fields import check_keys, dataclass_from_dict
from quantlab.pipeline.read import Cell, read_pipeline
from quantlab.toml_file import read_toml

PROPOSERS = ("random", "tpe", "cma", "nsga")
COMMAND = "command:"
"""A proposer that is a program: it reads the history as JSON lines, and answers with one JSON object."""
Value = str | int | float | bool
Values = dict[str, Value]
"""A value under each dotted key of the space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """What one key may be: one of some choices, or a number between two bounds."""

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Whether factors matter, not differences."""
    integer: bool = False

    def __post_init__(self) -> None:
        if self.key.rpartition(".")[2] == "seed":
            raise ConfigError(f"space.{self.key}: seeds are not searched", hint="a seed that was picked is no result")
        if self.choices:
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"space.{self.key}: low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ConfigError(f"space.{self.key}: with log, low must be above 0, got {self.low}")

    def draw(self, source: random.Random) -> Value:
        """Return a value by chance."""
        if self.choices:
            return source.choice(self.choices)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = source.uniform(low, high)
        return self.rounded(math.exp(value) if self.log else value)

    def rounded(self, value: float) -> Value:
        """Return a number within the bounds, whole where the key is."""
        bounded = min(max(value, self.low), self.high)
        return round(bounded) if self.integer else float(f"{bounded:.6g}")

    def check(self, value: Any) -> None:
        """Raise ConfigError unless a proposed value is one of this key."""
        if self.choices:
            if not any(type(value) is type(choice) and value == choice for choice in self.choices):
                raise ConfigError(f"{self.key} must be one of {', '.join(map(str, self.choices))}, got {value!r:.60}")
            return
        if isinstance(value, bool) or not isinstance(value, int if self.integer else (int, float)):
            raise ConfigError(f"{self.key} must be {'a whole number' if self.integer else 'a number'}, got {value!r:.60}")
        if not self.low <= value <= self.high:
            raise ConfigError(f"{self.key} must be {self.low:g} to {self.high:g}, got {value!r:.60}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """[search]."""

    pipeline: str
    """The pipeline file, relative to the file of the search."""
    proposer: str = "tpe"
    """random, tpe, cma, nsga (bits per byte against bytes), or command:PROGRAM."""
    trials: int = 20
    """Trials in the store at which the search ends."""
    hours: float = 0.0
    """Hours of all trials together at which it ends; 0 for no limit."""
    cost: float = 0.0
    """Money at which it ends, with cost_per_hour; 0 for no limit."""
    cost_per_hour: float = 0.0
    """Price of one worker for an hour."""
    workers: int = 1
    """Trials at a time, each a process of its own."""
    gpus: int = 0
    """GPUs that the workers share out, one each; 0 leaves the choice to the system."""
    attempts: int = 2
    """How often a trial whose process dies is begun."""
    seed: int = 0
    """Seed of the proposals, not of training."""
    prune: bool = False
    """Whether a trial ends whose validation is worse than the median of finished ones at the same step."""
    prune_after: int = 4
    """Finished trials before the first is ended early."""

    def __post_init__(self) -> None:
        if self.proposer not in PROPOSERS and not self.proposer.removeprefix(COMMAND).strip():
            raise ConfigError("search.proposer command: needs a program after the colon")
        if self.proposer not in PROPOSERS and not self.proposer.startswith(COMMAND):
            raise ConfigError(f"search.proposer must be {', '.join(PROPOSERS)} or command:PROGRAM, got {self.proposer!r}")
        for name, low in (("trials", 1), ("workers", 1), ("attempts", 1), ("prune_after", 1), ("gpus", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"search.{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("hours", "cost", "cost_per_hour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"search.{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.cost and not self.cost_per_hour:
            raise ConfigError("search.cost needs search.cost_per_hour")


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A search as its file says."""

    options: SearchOptions
    axes: tuple[Axis, ...]
    fixed: Values = field(default_factory=dict)
    """[set]: keys of the pipeline that have another value in every trial."""
    pipeline: Path

    @property
    def key(self) -> str:
        """16 hex digits of what makes trials comparable: the pipeline, the space and the fixed keys."""
        about = [self.pipeline.read_text("utf-8", "replace"), [asdict(axis) for axis in self.axes], self.fixed]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def cell(self, values: Values) -> Cell:
        """Return the pipeline of a trial. ConfigError if a value is outside of the space, or the pipeline refuses it."""
        check_keys(values, [axis.key for axis in self.axes])
        for axis in self.axes:
            if axis.key not in values:
                raise ConfigError(f"a trial needs a value of {axis.key}")
            axis.check(values[axis.key])
        return read_pipeline(self.pipeline, [f"{key}={json.dumps(value)}" for key, value in (self.fixed | values).items()])[0]

    def about(self) -> list[dict[str, Any]]:
        """Return the axes for a program that proposes."""
        return [_axis_about(axis) for axis in self.axes]


def _axis_about(axis: Axis) -> dict[str, Any]:
    if axis.choices:
        return {"key": axis.key, "choices": list(axis.choices)}
    return {"key": axis.key, "low": axis.low, "high": axis.high, "log": axis.log, "integer": axis.integer}


def read_space(path: Path) -> Space:
    """Return the search that a file describes.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a bound is wrong, or the pipeline has no such key.
    """
    raw = read_toml(path, "space")
    check_keys(raw, ("search", "space", "set"))
    for name in ("search", "space"):
        if not isinstance(raw.get(name), Mapping) or not raw[name]:
            raise ConfigError(f"{path} needs a table [{name}]")
    options = dataclass_from_dict(SearchOptions, raw["search"], where="search.")
    axes = tuple(_axis(key, value) for key, value in _flat(raw["space"], ""))
    pipeline = path.parent / options.pipeline
    space = Space(options=options, axes=axes, fixed=dict(_fixed(raw.get("set", {}))), pipeline=pipeline)
    source = random.Random(0)
    for axis in axes:  # a wrong key or value is an error now, not in the fortieth trial
        for value in axis.choices or (axis.rounded(axis.low), axis.rounded(axis.high)):
            cell = space.cell({other.key: other.draw(source) for other in axes} | {axis.key: value})
    if not cell.config.is_scored:
        raise ConfigError(
            f"{pipeline} scores nothing: a search needs bits per byte", hint="give it [evaluate] or a validation split"
        )
    return space


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys; a table with low and high, or with nothing but such keys, is an axis."""
    for key, value in table.items():
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _axis(key: str, value: Any) -> Axis:
    if isinstance(value, list):
        if len(value) < 2 or not all(isinstance(item, str | int | float | bool) for item in value):
            raise ConfigError(f"space.{key} must be a list of two values or more, or have low and high, got {value!r:.60}")
        return Axis(key=key, choices=tuple(value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"space.{key} must be a list of choices, or have low and high, got {value!r:.60}")
    return dataclass_from_dict(Axis, {"key": key, **value}, where=f"space.{key}")


def _fixed(table: Any) -> Iterator[tuple[str, Value]]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"set must be a table, got {table!r:.60}")
    for key, value in _flat(table, ""):
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"set.{key} must be one value, got {value!r:.60}")
        yield key, value
