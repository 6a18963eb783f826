"""Read a pipeline file: its tables become one config, or one for each cell of its matrix.

A matrix has a list of values for each of some dotted keys; its cells are all combinations of them.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from quantlab.errors import ConfigError
from quantlab.fields import check_keys, dataclass_from_dict
from quantlab.jobs.train_file import read_train_file
from quantlab.methods.method import method_options, methods, option_names
from quantlab.pipeline.pipeline_config import (
    STAGES,
    CalibrateOptions,
    ClockOptions,
    DataOptions,
    EvaluateOptions,
    PackOptions,
    PipelineConfig,
    ReportOptions,
    TrainOptions,
)
from quantlab.toml_file import apply_changes_, read_toml, set_key_
from quantlab.trainer.train_config import TrainConfig

TABLES = (*STAGES, "clock", "matrix")
PATHS = {
    "data": ("train", "val", "tokenizer", "sources"),
    "train": ("config", "teacher"),
    "calibrate": ("source",),
    "pack": ("checkpoint", "model", "tokenizer", "stats", "code"),
    "evaluate": ("text", "tokens", "tokenizer"),
}
"""Keys that hold a path, a glob pattern, or `text:FILE` and `tokens:GLOB`."""
PACK_KEYS = tuple(f.name for f in fields(PackOptions) if f.name != "options")
"""Keys of [pack] that are not options of the method."""
MOST_CELLS = 1000
LONGEST_NAME = 150
"""Characters in the name of a cell, which is also the name of a folder."""

C = TypeVar("C")
Values = dict[str, Any]
"""Value of one cell under each dotted key of the matrix."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One pipeline to run."""

    name: str
    """Its keys and values as text; empty where there is no matrix."""
    values: Values
    config: PipelineConfig


def read_pipeline(path: Path, changes: Sequence[str] = ()) -> list[Cell]:
    """Return the cells of a pipeline file; without a matrix there is one.

    Args:
        changes: "key=value" after the file, as in `read_train_config`. A key of the matrix loses its list of values.
    Raises:
        ConfigError: the file cannot be read or is not TOML, or a key is unknown (the hint has the nearest one), of another type
            or out of range.
    """
    raw = read_toml(path, "pipeline")
    axes = _axes(raw.pop("matrix", {}))
    apply_changes_(raw, changes)
    axes |= _axes(raw.pop("matrix", {}))
    for change in changes:
        axes.pop(change.partition("=")[0].strip(), None)
    if not axes:
        return [Cell("", {}, _config(raw, path.parent))]
    return [Cell(name, values, _cell_config(raw, values, path.parent)) for name, values in _cells(axes).items()]


def _axes(table: Any) -> dict[str, list[Any]]:
    """Return the values of each dotted key of [matrix]: pack.budget = [...], with quotes around the key or without."""
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


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with their values; TOML reads a dotted key without quotes as tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _cells(axes: Mapping[str, list[Any]]) -> dict[str, Values]:
    """Return every combination of values by its name; the values of the last key change fastest."""
    cells: dict[str, Values] = {}
    for count, combination in enumerate(product(*axes.values())):
        if count == MOST_CELLS:
            raise ConfigError(f"matrix has more than {MOST_CELLS:,} cells")
        values = dict(zip(axes, combination, strict=True))
        name = _cell_name(values)
        if name in cells:
            raise ConfigError(f"matrix: two cells would be named {name}")
        cells[name] = values
    return cells


def _cell_name(values: Values) -> str:
    """Return a name that can be a folder's: `pack.budget=60kB,train.seed=1`; a hash stands for the end of a long one."""
    name = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9_.+-]+', '_', _text(value))}" for key, value in values.items())
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "-".join(map(_text, value)) if isinstance(value, list) else str(value)


def _cell_config(raw: Mapping[str, Any], values: Values, base: Path) -> PipelineConfig:
    changed = deepcopy(dict(raw))
    for key, value in values.items():
        set_key_(changed, key, value)
    return _config(changed, base)


def _config(raw: Mapping[str, Any], base: Path) -> PipelineConfig:
    """Return the config of one pipeline; `base` is the folder that its paths are relative to."""
    check_keys(raw, TABLES)
    for name, table in raw.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{name} must be a table, got {table!r}")
    if "pack" not in raw:
        raise ConfigError("a pipeline needs a table [pack] with a budget")
    tables = {name: _resolved(name, dict(table), base) for name, table in raw.items()}
    train, data = _train_and_data(tables, base)
    config = PipelineConfig(
        pack=_pack(tables["pack"]),
        train=train,
        data=data,
        calibrate=_table(CalibrateOptions, tables, "calibrate"),
        evaluate=_table(EvaluateOptions, tables, "evaluate"),
        report=_table(ReportOptions, tables, "report"),
        clock=_table(ClockOptions, tables, "clock"),
    )
    if "evaluate" in raw and not config.is_scored:
        raise ConfigError("evaluate has no text: give evaluate.text, evaluate.tokens or data.val")
    if "calibrate" in raw and config.pack.stats:
        raise ConfigError(f"give [calibrate] or pack.stats, not both: {config.pack.stats}")
    return config


def _table(cls: type[C], tables: Mapping[str, Any], name: str) -> C:
    return dataclass_from_dict(cls, tables.get(name, {}), where=f"{name}.")


def _pack(table: dict[str, Any]) -> PackOptions:
    """Return [pack]: its own keys, and the options of its method, which are the other keys."""
    own = {key: value for key, value in table.items() if key in PACK_KEYS}
    rest = {key: value for key, value in table.items() if key not in PACK_KEYS}
    options_of_all = (key for method in methods().values() for key in option_names(method.options))
    check_keys(rest, dict.fromkeys([*PACK_KEYS, *options_of_all]), "pack.")  # first: a missing key may be misspelled
    if "budget" not in own:
        raise ConfigError("pack.budget is missing: 16000000, 16MB (10^6) or 16MiB (2^20)")
    if type(own["budget"]) is int:
        own["budget"] = str(own["budget"])
    options = dataclass_from_dict(PackOptions, own, where="pack.")
    return replace(options, options=method_options(options.method, rest, where="pack."))


def _train_and_data(tables: Mapping[str, Any], base: Path) -> tuple[TrainOptions | None, DataOptions | None]:
    """Return [train] and [data] together, since a preset or training file has a table [data] of its own."""
    if "train" not in tables:
        if "data" in tables:
            raise ConfigError("[data] is what [train] reads: without it give evaluate.text and calibrate.source")
        return None, None
    table = dict(tables["train"])
    start = dataclass_from_dict(_Start, {name: table.pop(name) for name in START_KEYS if name in table}, where="train.")
    check_keys(table, [*START_KEYS, *(f.name for f in fields(TrainConfig))], "train.")
    file = start.file()
    inherited = _resolved("data", dict(file.pop("data", {})), base)
    file = _resolved("train", file, base)
    config = dataclass_from_dict(TrainConfig, _merged(file, table), where="train.")
    options = TrainOptions(config=config, processes=start.processes)
    return options, dataclass_from_dict(DataOptions, _data(inherited, tables.get("data", {})), where="data.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    """The keys of [train] that a training file does not have."""

    preset: str = ""
    config: str = ""
    processes: int = 1

    def __post_init__(self) -> None:
        if self.preset and self.config:
            raise ConfigError(f"give train.preset or train.config, not both: {self.preset} and {self.config}")
        if Path(self.preset).suffix:
            raise ConfigError(f"train.preset must be a preset's name, got {self.preset!r}", hint="a file is train.config")

    def file(self) -> dict[str, Any]:
        """Return the keys of the preset or file; an empty dict without one."""
        source = self.preset or self.config
        return deepcopy(read_train_file(source)) if source else {}


START_KEYS = tuple(f.name for f in fields(_Start))


def _data(inherited: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return [data] alone where it says what to train on; otherwise its keys over those of the preset or file."""
    return given if "train" in given or "sources" in given else inherited | given


def _merged(file: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's keys with those of the table over them; [model] is merged key by key."""
    merged = {**file, **table}
    both = file.get("model"), table.get("model")
    if all(isinstance(part, Mapping) for part in both):
        merged["model"] = {**file["model"], **table["model"]}
    return merged


def _resolved(name: str, table: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the table `name` with its paths relative to the working directory; `base` is the pipeline file's folder."""
    for key in PATHS.get(name, ()):
        value = table.get(key)
        if isinstance(value, str):
            table[key] = _path(name, key, value, base)
        elif isinstance(value, list):
            table[key] = [_path(name, key, v, base) if isinstance(v, str) else v for v in value]
    return table


def _path(table: str, key: str, text: str, base: Path) -> str:
    if not text:
        return text
    kind, colon, path = text.partition(":")
    if key == "source" or (table == "data" and key in ("train", "val")):
        if kind not in ("text", "tokens") or not path:
            return text  # stdlib, self, random, train, or a mistake that is named later
        return f"{kind}:{_pattern(path, base) if kind == 'tokens' else base / path}"
    if key == "tokens":
        return _pattern(text, base)
    if key == "model" and colon:
        file, _, factory = text.rpartition(":")
        return f"{base / file}:{factory}"
    return str(base / text)


def _pattern(pattern: str, base: Path) -> str:
    """Return a glob pattern below the folder `base`, in whose name special characters stand for themselves."""
    return os.path.join(glob.escape(str(base)), pattern)
