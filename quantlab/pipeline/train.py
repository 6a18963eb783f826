"""Train into a folder, in one process or in several that torchrun started."""

from pathlib import Path

import torch

from quantlab.errors import ConfigError
from quantlab.files import write_whole
from quantlab.pipeline.data import DataConfig, TokenizedData, load_data
from quantlab.pipeline.progress import Progress, silent
from quantlab.text.shards import write_shard
from quantlab.trainer.config import TrainConfig
from quantlab.trainer.evaluate import evaluate
from quantlab.trainer.model import GPT
from quantlab.trainer.run import StepRecord, Validate
from quantlab.trainer.run_log import RunLog
from quantlab.trainer.train import TrainResult, train
from quantlab.trainer.world import World, close_world, open_world

TOKENIZER_NAME = "tokenizer.model"
VAL_NAME = "val_000000.bin"


def train_to_folder(
    config: TrainConfig,
    data: DataConfig,
    out: Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress = silent,
) -> TrainResult:
    """Train into the folder `out`: model.safetensors, tokenizer.model, train.log, metrics.jsonl, the checkpoint to resume from,
    and, for the embedded corpus, its validation split as a token shard."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output folder {out} is a file")
    world = open_world()
    try:
        return _train(world, config, data, out, resume=resume, tensorboard=tensorboard, progress=progress)
    finally:
        close_world(world)


def _train(
    world: World,
    config: TrainConfig,
    data: DataConfig,
    out: Path,
    *,
    resume: bool,
    tensorboard: bool,
    progress: Progress,
) -> TrainResult:
    if world.is_main:
        progress("prepare text", 0, 1)
    tokenized = load_data(data, config.model.vocab_size, config.seed)
    _check_bos(config, tokenized)
    log = RunLog(out, is_main=world.is_main, resume=resume, tensorboard=tensorboard)
    if world.is_main:
        write_whole(out / TOKENIZER_NAME, tokenized.tokenizer.model_bytes)
        if tokenized.val is not None and data.train == "stdlib" and not data.val:
            write_shard(out / VAL_NAME, tokenized.val)
        progress("prepare text", 1, 1)

    def show(record: StepRecord) -> None:
        _show(record, config, progress)
        log.train(
            step=record.step,
            steps=record.steps,
            loss=record.loss,
            seconds=record.elapsed_seconds,
            tokens_per_second=record.tokens_per_second,
            lr=record.lr_multiplier,
        )

    validate = _validation(world, config, tokenized, log)
    result = train(config, tokenized.train, out=out, resume=resume, world=world, progress=show, validate=validate)
    memory = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if world.device.type == "cuda" else None
    timeline = result.timeline.to_dict()
    log.end(step=result.steps, steps=config.steps, seconds=result.elapsed_seconds, memory=memory, timeline=timeline)
    return result


def _check_bos(config: TrainConfig, data: TokenizedData) -> None:
    needs_bos = config.by_document or config.model.smear_gate or config.model.bigram_buckets
    if needs_bos and config.model.bos_id != data.tokenizer.bos_id:
        raise ConfigError(f"model.bos_id must be the tokenizer's {data.tokenizer.bos_id}, got {config.model.bos_id}")


def _validation(world: World, config: TrainConfig, data: TokenizedData, log: RunLog) -> Validate | None:
    """What `train` calls to validate; None without validation text."""
    tokens = data.val
    if tokens is None:
        return None
    counts = data.tokenizer.token_bytes()

    def validate(model: GPT, step: int, seconds: float) -> None:
        score = evaluate(model, tokens, counts, seq_len=config.seq_len, bos_id=data.tokenizer.bos_id, world=world)
        log.validation(step=step, steps=config.steps, loss=score.val_loss, bpb=score.val_bpb, seconds=seconds)

    return validate


def _show(record: StepRecord, config: TrainConfig, progress: Progress) -> None:
    seconds = config.max_seconds
    by_time = seconds and record.elapsed_seconds / seconds > record.step / record.steps
    done, total = (int(record.elapsed_seconds), int(seconds)) if by_time else (record.step, record.steps)
    note = f"step {record.step}, loss {record.loss:.3f}, {record.tokens_per_second:,.0f} tokens/s"
    progress("train", min(done, total), total, note)
