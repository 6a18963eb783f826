"""Train a GPT in one process or several, with a step limit, a time limit and checkpoints that resume bit for bit on a CPU."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from quantlab.trainer.loader import TokenSource, check_tokens
from quantlab.trainer.model import GPT
from quantlab.trainer.qat import MeasureGrid
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training_loop import StepRecord, Teacher, Timeline, TrainingLoop, Validate
from quantlab.trainer.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The result of a finished training."""

    model: GPT
    """The trained model, in eval mode, on the device it was trained on."""
    model_path: Path
    """The model's file: safetensors with the challenge's names and, as metadata "gpt_config", its `GPTConfig` as JSON."""
    steps: int
    """Number of optimizer steps done, over all resumes."""
    elapsed_seconds: float
    """Training time in seconds, over all resumes."""
    losses: list[float]
    """Loss of the batch before each step of this call, nats per token; empty if there was nothing left to do."""
    timeline: Timeline
    """Seconds by activity, inside and outside the training time."""


def train(
    config: TrainConfig,
    tokens: TokenSource,
    *,
    out: Path,
    resume: bool = False,
    world: World | None = None,
    measure_grid: MeasureGrid | None = None,
    metadata: Mapping[str, str] | None = None,
    teacher: Teacher | None = None,
    progress: Callable[[StepRecord], None] | None = None,
    validate: Validate | None = None,
) -> TrainResult:
    """Train until `config.steps` or `config.max_seconds`, in bfloat16 autocast on a GPU.

    Denormal numbers are flushed to zero while this function runs, see `flush_denormals`.

    Args:
        tokens: uint16 or uint32 [N], N above seq_len; may be a memory map.
        out: folder for the checkpoint and the model, made if absent; files of an earlier training are replaced.
        resume: continue from the checkpoint in `out` if there is one.
        world: the processes that train together; each calls this with the same arguments.
        measure_grid: measures the grid of quantization-aware training; needed if `config.quant_from` is below 1.
        metadata: strings for the header of the model's file.
        teacher: maps ids int64 [B, T] to logits [B, T, V]; needed if `config.distill_weight` is above 0.
        progress: called every `log_every` steps and after the last, outside the training time and after any checkpoint, in the
            main process alone.
        validate: called with model, step and seconds every `val_every` steps, and with the saved model at the end, outside the
            training time, in all processes.
    Raises:
        ConfigError: the batch cannot be shared among the processes, or `measure_grid` or `teacher` is needed and None.
        DataError: there are too few tokens, they are neither uint16 nor uint32, or one is outside the model's vocabulary.
        TrainingError: a loss or weight is not finite (the last checkpoint stays), or the checkpoint is of another training.
    """
    world = world or World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    check_tokens(tokens, config)
    out.mkdir(parents=True, exist_ok=True)
    loop = TrainingLoop(config, tokens, out, world, measure_grid, metadata, teacher)
    with flush_denormals(), loop.loader:
        loop.warm_up_()
        if resume:
            loop.resume_()
        loop.train_(progress, validate)
        model_path = loop.save_model()
        if validate is not None:
            with loop.timeline.outside("validation"):
                validate(loop.model, loop.step, loop.elapsed_seconds)
    return TrainResult(
        model=loop.model.eval(),
        model_path=model_path,
        steps=loop.step,
        elapsed_seconds=loop.elapsed_seconds,
        losses=loop.losses,
        timeline=loop.timeline,
    )


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero on this thread and those it starts, and restore the setting afterwards.

    Denormal numbers make late training on a CPU many times slower. The setting affects all other work on the thread too.
    """
    was_on = float(torch.tensor(1e-40) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_on)
