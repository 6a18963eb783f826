"""Train into a folder, in one process or in several that torchrun started.

`python -m quantlab.jobs.train REQUEST` does so in a process of its own (child_process.py).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantlab.child_process import serve
from quantlab.errors import ConfigError
from quantlab.evaluation.scoring import score_tokens
from quantlab.files import refuse_odd_name, write_whole
from quantlab.jobs.teacher import as_teacher, load_teacher, with_past_of
from quantlab.jobs.tokenizers import TOKENIZER_NAME
from quantlab.jobs.train_file import DataConfig, read_train_config
from quantlab.methods.trellis.training_grid import measure_grid
from quantlab.models.provenance import Provenance
from quantlab.progress import Progress, silent
from quantlab.text.counted_stream import read_stream
from quantlab.text.document_sample import sample_documents
from quantlab.text.documents import read_documents
from quantlab.text.shards import open_shards, write_shard
from quantlab.text.stdlib_corpus import shuffled, stdlib_documents
from quantlab.text.tokenizer import Tokenizer, train_tokenizer
from quantlab.trainer.loader import TokenSource
from quantlab.trainer.model import GPT
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training import TrainResult, train
from quantlab.trainer.training_log import TrainingLog
from quantlab.trainer.training_loop import StepRecord, Validate
from quantlab.trainer.world import World, close_world, open_world


@dataclass(frozen=True, slots=True)
class TokenizedData:
    """Token streams in which each document begins with BOS."""

    tokenizer: Tokenizer
    train: TokenSource
    val: NDArray[Any] | None
    """Validation tokens; None without validation text."""
    val_counts: NDArray[np.uint16] | None = None
    """Bytes of text that each of them stands for, where the tokenizer's table cannot tell (CaseOps)."""


PREPARING = "prepare text"
"""The stage that reads text: documents, tokenizer, training tokens, validation tokens."""
PREPARING_STEPS = 4


def load_data(config: DataConfig, vocab_size: int, seed: int, progress: Progress = silent) -> TokenizedData:
    """Read or train the tokenizer, then read the tokens; `vocab_size` is the model's.

    Raises:
        DataError: a file is missing or damaged, or the tokenizer has another vocabulary than the model.
    """
    if config.train == "stdlib":
        data = _stdlib_data(config, vocab_size, seed, progress)
        return _with_validation(data, config.val)
    tokenizer = Tokenizer.load(config.tokenizer)
    tokenizer.check_vocab(vocab_size)
    kind, _, path = config.train.partition(":")
    progress(PREPARING, 2, PREPARING_STEPS, "training tokens")
    # shards stay on disk
    train = open_shards(path) if kind == "tokens" else tokenizer.encode_documents(read_documents(Path(path)))
    progress(PREPARING, 3, PREPARING_STEPS, "validation tokens")
    return _with_validation(TokenizedData(tokenizer, train, None), config.val)


def _with_validation(data: TokenizedData, source: str) -> TokenizedData:
    """Return the data with the validation text of a source, text:FILE or tokens:GLOB; as they are for an empty one."""
    if not source:
        return data
    kind, _, path = source.partition(":")
    text, shards = (None, path) if kind == "tokens" else (path, None)
    val, counts = read_stream(text, shards, data.tokenizer)
    return replace(data, val=val, val_counts=counts)


def _stdlib_data(config: DataConfig, vocab_size: int, seed: int, progress: Progress) -> TokenizedData:
    documents = shuffled(stdlib_documents(), seed=seed)
    train = [d.text for d in documents if d.split == "train"]
    val = [d.text for d in documents if d.split == "val"]
    progress(PREPARING, 1, PREPARING_STEPS, "tokenizer")
    if config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
    else:
        tokenizer = Tokenizer(train_tokenizer(train, vocab_size=vocab_size))
    tokenizer.check_vocab(vocab_size)
    progress(PREPARING, 2, PREPARING_STEPS, "training tokens")
    train_tokens = tokenizer.encode_documents(train)
    progress(PREPARING, 3, PREPARING_STEPS, "validation tokens")
    return TokenizedData(tokenizer, train_tokens, tokenizer.encode_documents(val))


VAL_NAME = "val_000000.bin"
MOST_DOCUMENTS = 4096
"""Documents of the training data that the model's file names, 5 bytes each: 1 % of a validation split among them is noticed."""


def train_to_folder(
    config: TrainConfig,
    data: DataConfig,
    out: Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress = silent,
) -> TrainResult:
    """Train into the folder `out`.

    It gets model.safetensors, tokenizer.model, train.log, metrics.jsonl, the checkpoint to resume from, and, for the embedded
    corpus, its validation split as a token shard.

    Raises:
        ConfigError: `out` is a file or not UTF-8, or the tokenizer's BOS is not the model's.
        DataError, TrainingError: see `load_data` and `quantlab.trainer.training.train`.
    """
    refuse_odd_name(out)
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
        progress(PREPARING, 0, PREPARING_STEPS, "documents")
    tokenized = load_data(data, config.model.vocab_size, config.seed, progress if world.is_main else silent)
    _check_bos(config, tokenized)
    log = TrainingLog(out, is_main=world.is_main, resume=resume, tensorboard=tensorboard)
    if world.is_main:
        write_whole(out / TOKENIZER_NAME, tokenized.tokenizer.standalone_file())
        if tokenized.val is not None and data.train == "stdlib" and not data.val:
            write_shard(out / VAL_NAME, tokenized.val)
        progress(PREPARING, PREPARING_STEPS, PREPARING_STEPS)
    loaded = load_teacher(config, tokenized.tokenizer.sha256)
    provenance = with_past_of(_provenance(config, tokenized), loaded) if world.is_main else Provenance()

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
    result = train(
        config,
        tokenized.train,
        out=out,
        resume=resume,
        world=world,
        progress=show,
        validate=validate,
        measure_grid=measure_grid,
        metadata=provenance.to_metadata(),
        teacher=as_teacher(loaded, world.device) if loaded else None,
    )
    memory = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if world.device.type == "cuda" else None
    timeline = result.timeline.to_dict()
    log.end(step=result.steps, steps=config.steps, seconds=result.elapsed_seconds, memory=memory, timeline=timeline)
    return result


def _provenance(config: TrainConfig, data: TokenizedData) -> Provenance:
    """Return what the model's file says of its training, which evaluations take their defaults from."""
    return Provenance(
        seq_len=config.seq_len,
        mode="chunked",
        tokenizer_sha256=data.tokenizer.sha256[:32],
        training=sample_documents(data.train, data.tokenizer.bos_id, MOST_DOCUMENTS).to_text(),
    )


def _check_bos(config: TrainConfig, data: TokenizedData) -> None:
    needs_bos = config.by_document or config.model.smear_gate or config.model.bigram_buckets
    if needs_bos and config.model.bos_id != data.tokenizer.bos_id:
        raise ConfigError(f"model.bos_id must be the tokenizer's {data.tokenizer.bos_id}, got {config.model.bos_id}")


def _validation(world: World, config: TrainConfig, data: TokenizedData, log: TrainingLog) -> Validate | None:
    """Return the function that `train` calls to validate; None without validation text."""
    tokens = data.val
    if tokens is None:
        return None
    counts = data.tokenizer.token_bytes()

    def validate(model: GPT, step: int, seconds: float) -> None:
        way: dict[str, Any] = {"seq_len": config.seq_len, "bos_id": data.tokenizer.bos_id, "world": world}
        score = score_tokens(model, tokens, counts, byte_counts=data.val_counts, **way)
        assert score.val_bpb is not None  # a training has a tokenizer
        log.validation(step=step, steps=config.steps, loss=score.val_loss, bpb=score.val_bpb, seconds=seconds)

    return validate


def _show(record: StepRecord, config: TrainConfig, progress: Progress) -> None:
    seconds = config.max_seconds
    by_time = seconds and record.elapsed_seconds / seconds > record.step / record.steps
    done, total = (int(record.elapsed_seconds), int(seconds)) if by_time else (record.step, record.steps)
    note = f"step {record.step}, loss {record.loss:.3f}, {record.tokens_per_second:,.0f} tokens/s"
    progress("train", min(done, total), total, note)


def _answer(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    config, data = read_train_config(request["config"])
    result = train_to_folder(config, data, Path(request["out"]), resume=request["resume"], progress=progress)
    return {"steps": result.steps, "seconds": result.elapsed_seconds}


if __name__ == "__main__":
    serve(_answer)
