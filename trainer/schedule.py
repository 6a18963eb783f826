"""Schedules of the learning rate and of Muon's momentum, as pure functions of step and time, and averages of the weights."""

import torch
from torch import Tensor, nn

from quantlab.trainer.train_config import TrainConfig


def training_fraction(config: TrainConfig, step: int, elapsed_seconds: float) -> float:
    """Return the fraction of the training that is done, 0 to 1, by steps or by training time, whichever is further."""
    by_time = elapsed_seconds / config.max_seconds if config.max_seconds else 0.0
    return min(max(step / config.steps, by_time), 1.0)


def lr_multiplier(config: TrainConfig, step: int, elapsed_seconds: float) -> float:
    """Return the factor on every learning rate at `step` (from 0), after `elapsed_seconds` of training.

    It rises linearly from 1 / warmup_steps to 1, stays there, and falls linearly towards 0 over the last `warmdown_frac` of the
    training or over the last `warmdown_steps`, but not below `min_lr`.
    """
    up = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    return min(1.0, up, max(_down(config, step, elapsed_seconds), config.min_lr))


def _down(config: TrainConfig, step: int, elapsed_seconds: float) -> float:
    if not config.warmdown_steps:
        left = 1.0 - training_fraction(config, step, elapsed_seconds)
        return left / config.warmdown_frac if config.warmdown_frac else 1.0
    if not config.max_seconds:
        return (config.steps - step) / config.warmdown_steps
    seconds = config.warmdown_steps * elapsed_seconds / max(step, 1)
    return max(config.max_seconds - elapsed_seconds, 0.0) / seconds if seconds else 1.0


def muon_weight_decay(config: TrainConfig, step: int, elapsed_seconds: float) -> float:
    """Return the weight decay of the matrices: constant, then linear to its share `wd_taper_to` at the end of the training."""
    if config.wd_taper_from >= 1.0:
        return config.weight_decay
    past = training_fraction(config, step, elapsed_seconds) - config.wd_taper_from
    return config.weight_decay * (1.0 + (config.wd_taper_to - 1.0) * max(past, 0.0) / (1.0 - config.wd_taper_from))


def muon_momentum(config: TrainConfig, step: int) -> float:
    """Return Muon's momentum at `step` (from 0): linear from `muon_momentum_start` to `muon_momentum`, then constant."""
    if step >= config.muon_momentum_warmup_steps:
        return config.muon_momentum
    fraction = step / config.muon_momentum_warmup_steps
    return (1.0 - fraction) * config.muon_momentum_start + fraction * config.muon_momentum


class Average:
    """Average of the weights in float32: exponential moving (ema), or the plain mean over the end of the training (swa).

    An average is often better than the weights of the last step.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config, self.count = config, 0
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters()} if config.average != "none" else {}

    @torch.no_grad()
    def update(self, model: nn.Module, fraction: float) -> None:
        """Include the weights after a step; `fraction` is the fraction of the training that is done."""
        if self.config.average == "none" or (self.config.average == "swa" and fraction < self.config.swa_from):
            return
        self.count += 1
        share = 1 / self.count if self.config.average == "swa" else 1 - self.config.ema_decay
        parameters = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.weights.values()), [parameters[n].detach() for n in self.weights], share)

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> None:
        """Copy the average into the model; without one (none, or swa that has not begun) the model's weights stay."""
        if self.count:
            for name, parameter in model.named_parameters():
                parameter.copy_(self.weights[name])

    def state(self) -> dict[str, Tensor]:
        """Return the average as tensors by name, for a checkpoint."""
        weights = {f"average.{name}": weight for name, weight in self.weights.items()}
        return weights | {"average_count": torch.tensor(self.count)} if weights else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the average from the tensors that `state` returned."""
        self.count = int(state.get("average_count", 0))
        for name, weight in self.weights.items():
            weight.copy_(state[f"average.{name}"])
