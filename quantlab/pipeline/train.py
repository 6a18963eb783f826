"""Train from one TOML file: the trainer's keys, and a table [data] that says on what."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError
from quantlab.files import write_whole
from quantlab.pipeline.data import DataConfig, load_data
from quantlab.pipeline.progress import Progress, silent
from quantlab.text.shards import write_shard
from quantlab.trainer.config import TrainConfig
from quantlab.trainer.train import StepRecord, TrainResult, train

TOKENIZER_NAME = "tokenizer.model"
VAL_NAME = "val_000000.bin"


def read_train_file(path: Path) -> tuple[TrainConfig, DataConfig]:
    """Both configs of a TOML file. ConfigError names an unknown key and the nearest known one."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not TOML: {error}") from error
    data = _data_config(raw.pop("data", {}))
    return TrainConfig.from_dict(raw), data


def _data_config(raw: Any) -> DataConfig:
    known = {f.name for f in fields(DataConfig)}
    if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
        raise ConfigError(f"[data] must be a table of strings with keys {', '.join(sorted(known))}")
    if unknown := sorted(raw.keys() - known):
        raise ConfigError(f"unknown key data.{unknown[0]}", hint=f"known keys: {', '.join(sorted(known))}")
    return DataConfig(**raw)


def train_to_folder(
    config: TrainConfig, data: DataConfig, out: Path, *, resume: bool = False, progress: Progress = silent
) -> TrainResult:
    """Train into the folder `out`: model.safetensors, tokenizer.model, the checkpoint to resume from, and, for the embedded
    corpus, its validation split as a token shard."""
    progress("prepare text", 0, 1)
    tokenized = load_data(data, config.model.vocab_size, config.seed)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / TOKENIZER_NAME, tokenized.tokenizer.model_bytes)
    if tokenized.val is not None:
        write_shard(out / VAL_NAME, tokenized.val)
    progress("prepare text", 1, 1)
    seconds = config.max_seconds

    def show(record: StepRecord) -> None:
        label = f"train (loss {record.loss:.3f})"
        by_time = seconds and record.elapsed_seconds / seconds > record.step / record.steps
        done, total = (int(record.elapsed_seconds), int(seconds)) if by_time else (record.step, record.steps)
        progress(label, min(done, total), total)

    return train(config, tokenized.train, out=out, resume=resume, progress=show)
