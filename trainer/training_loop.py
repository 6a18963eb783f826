"""The training loop: optimizer steps, the clock, checkpoints, and all state that changes from step to step."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quantlab.errors import ConfigError, TrainingError
from quantlab.tensor_file import write_safetensors
from quantlab.trainer.loader import Loader, TokenSource, fingerprint
from quantlab.trainer.model import GPT
from quantlab.trainer.optimizers import Optimizers
from quantlab.trainer.qat import MeasureGrid, Steps, grid_from_tensors, grid_tensors, quantize_, stop_quantizing
from quantlab.trainer.schedule import Average, lr_multiplier, muon_momentum, muon_weight_decay, training_fraction
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training_state import TrainState, load_checkpoint_, save_checkpoint
from quantlab.trainer.world import World

CHECKPOINT_NAME = "training.safetensors"
MODEL_NAME = "model.safetensors"
COMPILE_STEPS = 20
"""Steps that compile each graph of the model before the clock starts; their effect is undone."""
QUANT_TOKENS = 32768
"""Tokens of a batch on which the grid of quantization-aware training is measured."""

Teacher = Callable[[Tensor], Tensor]
"""Maps ids int64 [B, T] to the logits [B, T, V] of a model that is learned from, without gradients."""
Validate = Callable[[GPT, int, float], None]
"""Called with the model, the number of steps done and the training time in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """The state of training after one step."""

    step: int
    """Number of optimizer steps done."""
    steps: int
    """Largest number of steps."""
    loss: float
    """Mean loss of this step's batch before its update, nats per token."""
    lr_multiplier: float
    """Factor on the learning rates in this step."""
    elapsed_seconds: float
    """Training time so far in seconds, over all resumes."""
    tokens_per_second: float
    """Tokens trained on by training time, since this process started or resumed."""


@dataclass(slots=True)
class Timeline:
    """Seconds by activity: inside the clock that the challenge limits, and outside it."""

    inside: dict[str, float] = field(default_factory=dict)
    """Seconds that are training time."""
    beside: dict[str, float] = field(default_factory=dict)
    """Seconds that are not: compiling, validation, checkpoints."""

    def add(self, what: str, seconds: float, *, inside: bool) -> None:
        """Add seconds to an activity."""
        part = self.inside if inside else self.beside
        part[what] = part.get(what, 0.0) + seconds

    @contextmanager
    def outside(self, what: str) -> Iterator[None]:
        """Add the seconds of the block, which are not training time, to an activity."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(what, time.monotonic() - started, inside=False)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return the seconds as JSON values, to the millisecond."""
        return {"inside": _rounded(self.inside), "outside": _rounded(self.beside)}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {what: round(value, 3) for what, value in seconds.items()}


class TrainingLoop:
    """The state of one call of `train`, and the steps that change it."""

    def __init__(
        self,
        config: TrainConfig,
        tokens: TokenSource,
        out: Path,
        world: World,
        measure_grid: MeasureGrid | None = None,
        metadata: Mapping[str, str] | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """Make the model, optimizers and loader; see `train` for the arguments and errors."""
        _check_grid(config, measure_grid)
        if config.distill_weight and teacher is None:
            raise ConfigError(f"a teacher is needed for distill_weight {config.distill_weight}")
        self.teacher = teacher if config.distill_weight else None
        self.config, self.out, self.world, self.measure_grid = config, out, world, measure_grid
        self.metadata = dict(metadata or {})
        self.rows = micro_batch_rows(config, world)
        self.checkpoint_path, self.fingerprint = out / CHECKPOINT_NAME, fingerprint(tokens)
        self.model = GPT(config.model, seed=config.seed).to(world.device).train()
        world.copy_from_main([p.detach() for p in self.model.parameters()])  # random numbers may differ between machines
        self.optimizers = Optimizers(self.model, config, world)
        self.average = Average(self.model, config)
        self.loader = Loader(
            tokens,
            seq_len=config.seq_len,
            sequences=config.batch_tokens // config.seq_len,
            order=config.order,
            seed=config.seed,
            rank=world.rank,
            size=world.size,
            pin=self.is_cuda,
        )
        plain = self._mean_loss if self.teacher is None else self._distilled_loss
        self.mean_loss = torch.compile(plain, dynamic=False) if self.is_compiled else plain
        self.step, self.elapsed_seconds = 0, 0.0
        self._saved_at = self._last_seconds = 0.0
        self.losses: list[float] = []
        self.grid: dict[str, Steps] = {}
        """Grid of quantization-aware training once that has begun."""
        self.timeline = Timeline()
        self._unread: tuple[int, Callable[[], Tensor]] | None = None

    @property
    def is_cuda(self) -> bool:
        """Whether this process trains on a GPU."""
        return self.world.device.type == "cuda"

    @property
    def is_compiled(self) -> bool:
        """Whether the forward pass is compiled."""
        return self.is_cuda and self.config.compile and self.teacher is None

    def warm_up_(self) -> None:
        """Compile by running steps on the first batch, and undo their effect."""
        if not self.is_compiled:
            return
        with self.timeline.outside("compile"):
            weights = {name: t.clone() for name, t in self.model.state_dict().items()}
            for looping in sorted({self._is_looping(0.0), self._is_looping(1.0)}):
                self.model.looping = looping
                for _ in range(COMPILE_STEPS):
                    self._backward(0)
                    self.optimizers.step(1.0, self.config.muon_momentum)
            self.model.load_state_dict(weights)
            for optimizer in self.optimizers.all:
                optimizer.state.clear()
            torch.cuda.synchronize()

    def resume_(self) -> None:
        """Continue from the checkpoint if the main process has one.

        Raises:
            ConfigError: another process finds no checkpoint or a different one.
            TrainingError: the checkpoint is damaged or of another training.
        """
        (is_there,) = self.world.of_main([self.checkpoint_path.exists()])
        if not is_there:
            return
        if not self.checkpoint_path.exists():
            raise ConfigError(
                f"process {self.world.rank} has no checkpoint {self.checkpoint_path}: the folder must be shared by all machines"
            )
        state, extra = load_checkpoint_(self.checkpoint_path, self.model, self.optimizers.all, self._state())
        self.step, self.elapsed_seconds = state.step, state.elapsed_seconds
        if self.world.of_main([self.step]) != [self.step]:
            raise ConfigError(
                f"process {self.world.rank} has another checkpoint {self.checkpoint_path}: the folder must be shared by all "
                "machines"
            )
        self.average.load_state(extra)
        self.grid = grid_from_tensors(extra, self.world.device)
        quantize_(self.model, self.grid)

    def save_model(self) -> Path:
        """Write the model and return its path: the average of weights if there is one, unrounded, with all loops."""
        self.average.load_into(self.model)
        stop_quantizing(self.model)
        self.model.looping = True
        path = self.out / MODEL_NAME
        if self.world.is_main:
            about = {"gpt_config": json.dumps(self.config.model.to_dict())}
            write_safetensors(path, self.model.state_dict(), self.metadata | about)
        self.world.wait()
        return path

    def train_(self, progress: Callable[[StepRecord], None] | None, validate: Validate | None) -> None:
        """Do the steps that are left, and end with a checkpoint."""
        self._saved_at, first_step, first_seconds = self.elapsed_seconds, self.step, self.elapsed_seconds
        while not self._is_done():
            multiplier = self._one_step()
            if self._is_done() or self.elapsed_seconds - self._saved_at >= self.config.checkpoint_every_seconds:
                self._save_checkpoint()
                self._saved_at = self.elapsed_seconds
            if progress is not None and (self._is_done() or self.step % self.config.log_every == 0):
                self._read_loss()
                done_tokens = (self.step - first_step) * self.config.batch_tokens
                speed = done_tokens / (self.elapsed_seconds - first_seconds)
                if self.world.is_main:
                    progress(self._record(multiplier, speed))
            if validate is not None and self._is_validation_due():
                with self.timeline.outside("validation"):
                    validate(self.model, self.step, self.elapsed_seconds)
        self._read_loss()

    def _is_validation_due(self) -> bool:
        """Return whether to validate after this step; after the last only if the saved model, validated later, is another."""
        is_due = self.config.val_every > 0 and self.step % self.config.val_every == 0
        return is_due and (not self._is_done() or self.config.average != "none")

    def _record(self, multiplier: float, speed: float) -> StepRecord:
        return StepRecord(
            step=self.step,
            steps=self.config.steps,
            loss=self.losses[-1],
            lr_multiplier=multiplier,
            elapsed_seconds=self.elapsed_seconds,
            tokens_per_second=speed,
        )

    def _one_step(self) -> float:
        """Do one step and return its factor on the learning rates."""
        started = time.perf_counter()
        fraction = training_fraction(self.config, self.step, self.elapsed_seconds)
        self.model.looping = self._is_looping(fraction)
        if self.config.quant_from <= fraction and self.config.quant_from < 1.0 and not self.grid:
            self._quantize_()
        multiplier = lr_multiplier(self.config, self.step, self.elapsed_seconds)
        loss = self._backward(self.step)
        self._read_loss()
        self._unread = (self.step, loss)
        weight_decay = muon_weight_decay(self.config, self.step, self.elapsed_seconds)
        self.optimizers.step(multiplier, muon_momentum(self.config, self.step), weight_decay)
        self.step += 1
        self.average.update(self.model, training_fraction(self.config, self.step, self.elapsed_seconds))
        if self._is_pause_near():  # the device's unfinished work is training time and must not count as what comes next
            self._read_loss()
            if self.is_cuda:
                torch.cuda.synchronize()
        seconds = self._last_seconds = time.perf_counter() - started
        self.timeline.add("training", seconds, inside=True)
        (self.elapsed_seconds,) = self.world.of_main([self.elapsed_seconds + seconds])
        return multiplier

    def _is_looping(self, fraction: float) -> bool:
        return bool(self.config.model.num_loops) and fraction >= self.config.loop_from

    def _is_pause_near(self) -> bool:
        """Return whether the clock stops after this step, as far as can be told before the step's own time is known."""
        config, expected = self.config, self.elapsed_seconds + self._last_seconds
        every = [n for n in (config.log_every, config.val_every) if n]
        is_late = config.max_seconds > 0 and expected >= config.max_seconds
        is_saved = expected - self._saved_at >= config.checkpoint_every_seconds
        return self.step >= config.steps or is_late or is_saved or any(self.step % n == 0 for n in every)

    def _quantize_(self) -> None:
        assert self.measure_grid is not None  # checked on creation
        ids_NT = self.loader.sample(self.step, max(1, QUANT_TOKENS // self.config.seq_len))
        self.grid = self.measure_grid(self.model, ids_NT, self.config.quant_bits)
        quantize_(self.model, self.grid)

    def _backward(self, step: int) -> Callable[[], Tensor]:
        """Add this process' gradients of the batch's mean loss; return a function that waits for that loss, nats per token."""
        x, y = self.loader.batch(step)
        share = len(x) * self.world.size
        total = torch.zeros((), device=self.world.device)
        for ids, targets in zip(torch.split(x, self.rows), torch.split(y, self.rows), strict=True):
            ids, targets = (t.to(self.world.device, non_blocking=True) for t in (ids, targets))
            loss = self.mean_loss(ids, targets) * (len(ids) / share)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return self.world.sum_(total)

    def _mean_loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.is_cuda):
            if self.is_cuda:
                return self.model.losses(ids, targets.flatten(), by_document=self.config.by_document).mean()
            logits = self.model(ids, by_document=self.config.by_document)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _distilled_loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return (1 - w) cross-entropy + w KL(teacher ‖ student), nats per token.

        Source: Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, arXiv 1503.02531, at temperature 1.
        """
        assert self.teacher is not None
        wanted = F.log_softmax(self.teacher(ids).float(), dim=-1).flatten(0, 1)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.is_cuda):
            logits = self.model(ids)
        found = F.log_softmax(logits.float(), dim=-1).flatten(0, 1)
        kl = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        weight = self.config.distill_weight
        return (1 - weight) * F.nll_loss(found, targets.flatten()) + weight * kl

    def _read_loss(self) -> None:
        """Read the loss of the last step; it is read one step late, so that a GPU never waits for Python."""
        if self._unread is None:
            return
        step, total = self._unread
        self._unread = None
        loss = float(total())
        if not np.isfinite(loss):
            last = f"; the checkpoint {self.checkpoint_path} is kept" if self.checkpoint_path.exists() else ""
            raise TrainingError(f"the loss is {loss} at step {step}{last}", hint="lower the learning rates")
        self.losses.append(loss)

    def _save_checkpoint(self) -> None:
        self._read_loss()
        with self.timeline.outside("checkpoints"):
            self.optimizers.muon.gather_state()
            if self.world.is_main:
                extra = self.average.state() | grid_tensors(self.grid)
                save_checkpoint(self.checkpoint_path, self.model, self.optimizers.all, self._state(), extra)
            self.world.wait()

    def _is_done(self) -> bool:
        is_late = self.config.max_seconds > 0 and self.elapsed_seconds >= self.config.max_seconds
        return is_late or self.step >= self.config.steps

    def _state(self) -> TrainState:
        return TrainState(
            step=self.step,
            elapsed_seconds=self.elapsed_seconds,
            config=self.config.to_dict(),
            tokens=self.fingerprint,
        )


def micro_batch_rows(config: TrainConfig, world: World) -> int:
    """Return the number of sequences in one forward pass of a process.

    Raises:
        ConfigError: the processes cannot share the batch equally, or a share is not a whole number of micro batches.
    """
    sequences, micro = config.batch_tokens // config.seq_len, config.micro_batch_tokens // config.seq_len
    if sequences % world.size:
        raise ConfigError(
            f"{world.size} processes cannot share a batch of {sequences} sequences equally",
            hint=f"make batch_tokens a multiple of {world.size} * seq_len = {world.size * config.seq_len}",
        )
    share = sequences // world.size
    if share > micro and share % micro:
        raise ConfigError(
            f"each process' {share * config.seq_len} tokens of a batch must be a multiple of micro_batch_tokens = "
            f"{config.micro_batch_tokens}"
        )
    return min(share, micro)


def _check_grid(config: TrainConfig, measure_grid: MeasureGrid | None) -> None:
    if config.quant_from < 1.0 and measure_grid is None:
        raise ConfigError(
            f"quant_from is {config.quant_from:g}, so a grid is needed, but measure_grid is None",
            hint="pass measure_grid=quantlab.methods.trellis.training_grid.measure_grid, or set quant_from = 1",
        )
