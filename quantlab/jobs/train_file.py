"""The configs of a training: one TOML file or a preset, with changes from the command line or the environment."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError
from quantlab.fields import dataclass_from_dict
from quantlab.models.presets import presets
from quantlab.toml_file import apply_changes_, read_toml, set_key_
from quantlab.trainer.from_env import overrides_from_env
from quantlab.trainer.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Sources of training and validation text."""

    train: str = "stdlib"
    """`stdlib` (the English and Python text that ships with CPython), `text:FILE` or `tokens:GLOB`."""
    val: str = ""
    """Validation text, `text:FILE` or `tokens:GLOB`; empty for none, or with `stdlib` for its own held-out documents."""
    tokenizer: str = ""
    """SentencePiece .model file; empty with `stdlib` to train one on the training split."""

    def __post_init__(self) -> None:
        kind, _, path = self.train.partition(":")
        if kind not in ("stdlib", "text", "tokens") or (kind != "stdlib") != bool(path):
            raise ConfigError(f"data.train must be stdlib, text:FILE or tokens:GLOB, got {self.train!r}")
        val_kind, _, val_path = self.val.partition(":")
        if self.val and (val_kind not in ("text", "tokens") or not val_path):
            raise ConfigError(f"data.val must be text:FILE or tokens:GLOB, got {self.val!r}")
        if kind != "stdlib" and not self.tokenizer:
            raise ConfigError(f"data.train {self.train} needs data.tokenizer, a SentencePiece .model file")


Configs = tuple[TrainConfig, DataConfig]


def read_train_config(source: str, *, changes: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Configs:
    """Return both configs of a TOML file: keys of TrainConfig, a table [model], and a table [data].

    Args:
        source: path of the file, or the name of a preset.
        changes: "key=value", keys with a dot for tables, values as in TOML (a text needs no quotes).
        environment: variables of the challenge's train_gpt.py; they come after the file and before `changes`.
    Raises:
        ConfigError: the file cannot be read or is not TOML, or a key is unknown (the hint has the nearest one), of another type
            or out of range.
    """
    raw = read_train_file(source)
    if environment is not None:
        config, data = _configs(raw)
        found, _ = overrides_from_env(environment, {**asdict(config), "data": asdict(data)})
        for key, value in found.items():
            set_key_(raw, key, value)
    apply_changes_(raw, changes)
    return _configs(raw)


def ignored_variables(environment: Mapping[str, str], configs: Configs) -> list[str]:
    """Return the variables of the challenge that are set and have no effect here."""
    config, data = configs
    return overrides_from_env(environment, {**asdict(config), "data": asdict(data)})[1]


def read_train_file(source: str) -> dict[str, Any]:
    """Return the keys of a TOML file or of the preset with that name. ConfigError if there is neither."""
    path = Path(source)
    if not os.path.isfile(path) and not path.suffix:  # of a name that is too long, Path.is_file raises
        known = presets()
        if source not in known:
            near = get_close_matches(source, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"presets: {', '.join(known)}"
            raise ConfigError(f"no file and no preset is named {source}", hint=hint)
        path = known[source]
    return read_toml(path, "config")


def _configs(raw: Mapping[str, Any]) -> Configs:
    data = raw.get("data", {})
    if not isinstance(data, dict):
        raise ConfigError(f"data must be a table, got {data!r}")
    rest = {key: value for key, value in raw.items() if key != "data"}
    return TrainConfig.from_dict(rest), dataclass_from_dict(DataConfig, data, where="data.")
