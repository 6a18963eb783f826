"""Denormal numbers make late training on a CPU many times slower.

Train a GPT in one process or several, with a step limit, a time limit and checkpoints that resume bit for bit on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from quantlab.trainer.loader import TokenSource, check_tokens
from quantlab.trainer.model import GPT
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training_loop import StepRecord, Timeline, TrainingLoop, Validate
from quantlab.trainer.world import World


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero on this thread and those it starts, and put the switch back afterwards."""
    was_on = float(torch.tensor(1e-40) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_on)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a finished run leaves."""

    model: GPT
    """The trained model, in eval mode, on the device it was trained on."""
    model_path: Path
    """Its weights, safetensors with the challenge's names; the metadata's "gpt_config" is its `GPTConfig` as JSON."""
    steps: int
    """Optimizer steps done."""
    elapsed_seconds: float
    """Training time, over all resumes."""
    losses: list[float]
    """Batch loss before each step that ran now, nats per token; empty when there was nothing left to do."""
    timeline: Timeline
    """What the seconds were spent on, inside and outside the training time."""


def train(
    config: TrainConfig,
    tokens: TokenSource,
    *,
    out: Path,
    resume: bool = False,
    world: World | None = None,
    progress: Callable[[StepRecord], None] | None = None,
    validate: Validate | None = None,
) -> TrainResult:
    """Train until `config.steps` or `config.max_seconds`, in bfloat16 autocast on a GPU.

    Denormal numbers, which make late training on a CPU many times slower, are flushed to zero while this runs; the
    switch concerns all other work on this thread too, and is put back on return.

    Args:
        tokens: uint16 [N], N above seq_len; may be a memory map.
        out: folder for the checkpoint and the model, made if absent; files of an earlier run are replaced.
        resume: go on from the checkpoint in `out` if there is one.
        world: the processes that train together; each calls this with the same arguments.
        progress: called every `log_every` steps and after the last, outside the training time and after any checkpoint; in
            the main process alone.
        validate: called with model, step and seconds every `val_every` steps, and with the saved model at the end, outside
            the training time, in all processes.
    Raises:
        ConfigError: the batch cannot be shared among the processes.
        DataError: too few tokens, not uint16, or an id that the model has no row for.
        TrainingError: a loss or weight that is not finite (the last checkpoint stays), or a checkpoint of another run.
    """
    world = world or World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    check_tokens(tokens, config)
    out.mkdir(parents=True, exist_ok=True)
    run = TrainingLoop(config, tokens, out, world)
    with flush_denormals(), run.loader:
        run.warm_up_()
        if resume:
            run.resume_()
        run.steps(progress, validate)
        model_path = run.save_model()
        if validate is not None:
            with run.timeline.outside("validation"):
                validate(run.model, run.step, run.elapsed_seconds)
    return TrainResult(
        model=run.model.eval(),
        model_path=model_path,
        steps=run.step,
        elapsed_seconds=run.elapsed_seconds,
        losses=run.losses,
        timeline=run.timeline,
    )
