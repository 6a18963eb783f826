"""Train a GPT on a CPU or one GPU, with a step limit, a time limit and checkpoints that resume bit for bit on a CPU."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from quantlab.checkpoint.write import write_safetensors
from quantlab.errors import DataError, TrainingError
from quantlab.trainer.checkpoints import TrainState, load_checkpoint_, save_checkpoint
from quantlab.trainer.config import TrainConfig
from quantlab.trainer.model import GPT
from quantlab.trainer.muon import Muon
from quantlab.trainer.schedule import lr_multiplier, muon_momentum

CHECKPOINT_NAME = "training.safetensors"
MODEL_NAME = "model.safetensors"
_FINGERPRINT_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One line of progress."""

    step: int
    """Optimizer steps done."""
    steps: int
    """Steps at most."""
    loss: float
    """Mean loss of this step's batch before its update, nats per token."""
    lr_multiplier: float
    """Factor on the learning rates in this step."""
    elapsed_seconds: float
    """Training time so far, over all resumes."""
    tokens_per_second: float
    """Tokens trained on / training time, since this process started or resumed."""


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
    """Batch loss before each step of this process, nats per token; empty when there was nothing left to do."""


def train(
    config: TrainConfig,
    tokens: npt.NDArray[np.uint16],
    *,
    out: Path,
    resume: bool = False,
    progress: Callable[[StepRecord], None] | None = None,
) -> TrainResult:
    """Train until `config.steps` or `config.max_seconds`, on CUDA (bfloat16 autocast) if there is one, else on the CPU.

    Denormal numbers, which make late training on a CPU many times slower, are flushed to zero while this runs; the
    switch concerns all other work on this thread too, and is put back on return.

    Args:
        tokens: uint16 [N], N above seq_len; may be a memory map.
        out: folder for the checkpoint and the model, made if absent; files of an earlier run are replaced.
        resume: go on from the checkpoint in `out` if there is one.
        progress: called every `log_every` steps and after the last, outside the training time and after any checkpoint.
    Raises:
        DataError: too few tokens, not uint16, or an id that the model has no row for.
        TrainingError: a loss or weight that is not finite (the last checkpoint stays), or a checkpoint of another run.
    """
    check_tokens(tokens, config)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = _Run(config, tokens, out, device)
    if resume and run.checkpoint_path.exists():
        run.resume_()
    with flush_denormals():
        losses = list(run.steps(progress))
    return TrainResult(
        model=run.model.eval(),
        model_path=run.save_model(),
        steps=run.step,
        elapsed_seconds=run.elapsed_seconds,
        losses=losses,
    )


class _Run:
    """The moving parts of one call of `train`."""

    def __init__(self, config: TrainConfig, tokens: npt.NDArray[np.uint16], out: Path, device: torch.device) -> None:
        self.config, self.tokens, self.out, self.device = config, tokens, out, device
        self.checkpoint_path, self.fingerprint = out / CHECKPOINT_NAME, fingerprint(tokens)
        self.model = GPT(config.model, seed=config.seed).to(device).train()
        self.muon, self.adam = make_optimizers(self.model, config)
        self.step, self.elapsed_seconds = 0, 0.0

    def resume_(self) -> None:
        state = load_checkpoint_(self.checkpoint_path, self.model, [self.muon, self.adam], self._state())
        self.step, self.elapsed_seconds = state.step, state.elapsed_seconds

    def save_model(self) -> Path:
        path = self.out / MODEL_NAME
        write_safetensors(path, self.model.state_dict(), {"gpt_config": json.dumps(self.config.model.to_dict())})
        return path

    def steps(self, progress: Callable[[StepRecord], None] | None) -> Iterator[float]:
        """Run the steps that are left, yielding each loss; ends with a checkpoint."""
        saved_at, first_step, first_seconds = self.elapsed_seconds, self.step, self.elapsed_seconds
        while not self._is_done():
            started, multiplier = time.perf_counter(), lr_multiplier(self.config, self.step, self.elapsed_seconds)
            loss = self._one_step(multiplier)
            self.step += 1
            self.elapsed_seconds += time.perf_counter() - started
            if self._is_done() or self.elapsed_seconds - saved_at >= self.config.checkpoint_every_seconds:
                save_checkpoint(self.checkpoint_path, self.model, [self.muon, self.adam], self._state())
                saved_at = self.elapsed_seconds
            if progress is not None and (self._is_done() or self.step % self.config.log_every == 0):
                done_tokens = (self.step - first_step) * self.config.batch_tokens
                progress(
                    StepRecord(
                        step=self.step,
                        steps=self.config.steps,
                        loss=loss,
                        lr_multiplier=multiplier,
                        elapsed_seconds=self.elapsed_seconds,
                        tokens_per_second=done_tokens / (self.elapsed_seconds - first_seconds),
                    )
                )
            yield loss

    def _one_step(self, multiplier: float) -> float:
        loss = self._backward()
        if not np.isfinite(loss):
            kept = f"; the checkpoint {self.checkpoint_path} is kept" if self.checkpoint_path.exists() else ""
            raise TrainingError(f"the loss is {loss} at step {self.step}{kept}", hint="lower the learning rates")
        for group in (*self.muon.param_groups, *self.adam.param_groups):
            group["lr"] = group["base_lr"] * multiplier
        for group in self.muon.param_groups:
            group["momentum"] = muon_momentum(self.config, self.step)
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss

    def _backward(self) -> float:
        """Add up the gradients of the mean loss over this step's batch; returns that loss in nats per token."""
        x, y = batch_at(self.tokens, self.step, self.config)
        rows = self.config.micro_batch_tokens // self.config.seq_len
        total = torch.zeros((), device=self.device)
        for ids, targets in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = self.model(ids.to(self.device))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.to(self.device).flatten()) * (len(ids) / len(x))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return float(total)

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


def batch_at(tokens: npt.NDArray[np.uint16], step: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one step, int64 [batch_tokens / seq_len, seq_len], at offsets drawn from (seed, step)."""
    rng = np.random.default_rng([config.seed, step])
    offsets = rng.integers(0, len(tokens) - config.seq_len, size=config.batch_tokens // config.seq_len)
    spans = torch.from_numpy(np.stack([tokens[o : o + config.seq_len + 1] for o in offsets]).astype(np.int64))
    return spans[:, :-1].contiguous(), spans[:, 1:].contiguous()


def make_optimizers(model: GPT, config: TrainConfig) -> tuple[Muon, Adam]:
    """Muon for the blocks' matrices, Adam for embedding, lm_head and all small ones; groups carry their "base_lr"."""
    matrices, scalars = [], []
    for name, p in model.named_parameters():
        if name.startswith("blocks.") and name.endswith(".weight"):
            matrices.append(p)
        elif not name.startswith(("tok_emb.", "lm_head.")) and p.numel():
            scalars.append(p)
    groups = [(scalars, config.scalar_lr), ([model.tok_emb.weight], config.embed_lr)]
    if model.lm_head is not None:
        groups.append(([model.lm_head.weight], config.head_lr))
    muon = Muon(matrices, lr=config.matrix_lr, momentum=config.muon_momentum, weight_decay=config.weight_decay)
    adam_groups: list[dict[str, Any]] = [{"params": params, "lr": lr} for params, lr in groups]
    adam = Adam(adam_groups, betas=(config.beta1, config.beta2), eps=config.adam_eps, fused=True)
    for group in (*muon.param_groups, *adam.param_groups):
        group["base_lr"] = group["lr"]
    return muon, adam


def check_tokens(tokens: npt.NDArray[np.uint16], config: TrainConfig) -> None:
    """Raise DataError unless `tokens` is uint16 [N], N above seq_len, with ids below the vocabulary size."""
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise DataError(f"training tokens must be uint16 [N], got {tokens.dtype} {list(tokens.shape)}")
    if len(tokens) <= config.seq_len:
        raise DataError(f"training needs more than seq_len = {config.seq_len} tokens, got {len(tokens)}")
    largest = int(tokens.max())
    if largest >= config.model.vocab_size:
        raise DataError(f"training tokens hold id {largest}, the model's vocab_size is {config.model.vocab_size}")


def fingerprint(tokens: npt.NDArray[np.uint16]) -> str:
    """Count and hash of the first million tokens: enough to notice other data, quick on a memory map."""
    head = np.ascontiguousarray(tokens[:_FINGERPRINT_TOKENS])
    return f"{len(tokens)} tokens, sha256 {hashlib.sha256(head.tobytes()).hexdigest()[:16]}"


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero on this thread and those it starts, and put the switch back afterwards."""
    was_on = float(torch.tensor(1e-40) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_on)
