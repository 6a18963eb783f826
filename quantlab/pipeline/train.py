"""Train from one TOML file: the trainer's keys, and a table [data] that says on what."""

import tomllib
from pathlib import Path

from quantlab.errors import ConfigError
from quantlab.files import write_whole
from quantlab.pipeline.data import DataConfig, load_data
from quantlab.pipeline.progress import Progress, silent
from quantlab.text.shards import write_shard
from quantlab.trainer.config import TrainConfig
from quantlab.trainer.from_dict import dataclass_from_dict
from quantlab.trainer.train import StepRecord, TrainResult, train

TOKENIZER_NAME = "tokenizer.model"
VAL_NAME = "val_000000.bin"


def read_train_file(path: Path) -> tuple[TrainConfig, DataConfig]:
    """Both configs of a TOML file: keys of TrainConfig, a table [model], and a table [data].

    Raises:
        ConfigError: the file cannot be read or is not TOML, or a key is unknown (the hint has the nearest one), of another type
            or out of range.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not TOML: {error}") from error
    data = raw.pop("data", {})
    if not isinstance(data, dict):
        raise ConfigError(f"data must be a table, got {data!r}")
    return TrainConfig.from_dict(raw), dataclass_from_dict(DataConfig, data, where="data.")


def train_to_folder(
    config: TrainConfig, data: DataConfig, out: Path, *, resume: bool = False, progress: Progress = silent
) -> TrainResult:
    """Train into the folder `out`: model.safetensors, tokenizer.model, the checkpoint to resume from, and, for the embedded
    corpus, its validation split as a token shard."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output folder {out} is a file")
    progress("prepare text", 0, 1)
    tokenized = load_data(data, config.model.vocab_size, config.seed)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / TOKENIZER_NAME, tokenized.tokenizer.model_bytes)
    if tokenized.val is not None:
        write_shard(out / VAL_NAME, tokenized.val)
    progress("prepare text", 1, 1)
    seconds = config.max_seconds

    def show(record: StepRecord) -> None:
        by_time = seconds and record.elapsed_seconds / seconds > record.step / record.steps
        done, total = (int(record.elapsed_seconds), int(seconds)) if by_time else (record.step, record.steps)
        note = f"step {record.step}, loss {record.loss:.3f}, {record.tokens_per_second:,.0f} tokens/s"
        progress("train", min(done, total), total, note)

    return train(config, tokenized.train, out=out, resume=resume, progress=show)
