"""Write a pipeline file out of a recorded pipeline, so that another machine can run the very same one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quantlab.errors import ConfigError, QuantlabError
from quantlab.pipeline.read import read_pipeline
from quantlab.runs.run_record import plain

TABLES = ("data", "train", "calibrate", "pack", "evaluate", "report", "clock")


def pipeline_text(options: Mapping[str, Any]) -> str:
    """Return the TOML text of the pipeline that a run recorded, whose paths stay as they were recorded.

    Raises:
        ConfigError: the options are not those of a pipeline that this quantlab can read back to the same options.
    """
    if not isinstance(options.get("pack"), Mapping):
        raise ConfigError("the run recorded no pipeline", hint="name runs of quantlab run")
    tables = {name: _table(name, options[name]) for name in TABLES if isinstance(options.get(name), Mapping)}
    text = "\n".join(_lines(tables)) + "\n"
    if _read(text) != {name: plain(options[name]) for name in TABLES if name in options}:
        raise ConfigError("the recorded options are not those of this quantlab: the pipeline would be another one")
    return text


def _read(text: str) -> dict[str, Any]:
    """Return the config of a pipeline's text as a record has it, with paths as the text has them."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.toml"
        file.write_text(text, encoding="utf-8")
        try:
            config = read_pipeline(file)[0].config
        except QuantlabError as error:
            raise ConfigError(f"the recorded options cannot be read back: {error}") from error
        known: dict[str, Any] = json.loads(json.dumps(plain(asdict(config))).replace(f"{folder}/", ""))
        return known


def _table(name: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of one table of the file; a record nests the options of a method and the config of a training."""
    table = dict(recorded)
    for nested in {"pack": ("options",), "train": ("config",)}.get(name, ()):
        table |= table.pop(nested)
    return table


def _lines(tables: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, table in tables.items():
        plain_keys = {key: value for key, value in table.items() if not isinstance(value, Mapping) and value is not None}
        inner = {key: value for key, value in table.items() if isinstance(value, Mapping) and value}
        if plain_keys or not inner:
            yield f"[{prefix}{_key(name)}]"
            yield from (f"{_key(key)} = {_value(value)}" for key, value in plain_keys.items())
        yield from _lines(inner, f"{prefix}{_key(name)}.")


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
