"""What changes from step to step: the learning rate multiplier and Muon's momentum. Pure functions of step and time."""

from quantlab.trainer.config import TrainConfig


def run_fraction(config: TrainConfig, step: int, elapsed_seconds: float) -> float:
    """How far the run is, 0 to 1: by steps or by the wall clock, whichever is further."""
    by_time = elapsed_seconds / config.max_seconds if config.max_seconds else 0.0
    return min(max(step / config.steps, by_time), 1.0)


def lr_multiplier(config: TrainConfig, step: int, elapsed_seconds: float) -> float:
    """Factor on every learning rate at `step` (from 0), after `elapsed_seconds` of training.

    Linear from 1 / warmup_steps to 1, then 1, then linear towards 0 over the last `warmdown_frac` of the run or the last
    `warmdown_steps`, but not below `min_lr`.
    """
    up = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    return min(1.0, up, max(_down(config, step, elapsed_seconds), config.min_lr))


def _down(config: TrainConfig, step: int, elapsed_seconds: float) -> float:
    if not config.warmdown_steps:
        left = 1.0 - run_fraction(config, step, elapsed_seconds)
        return left / config.warmdown_frac if config.warmdown_frac else 1.0
    if not config.max_seconds:
        return (config.steps - step) / config.warmdown_steps
    seconds = config.warmdown_steps * elapsed_seconds / max(step, 1)
    return max(config.max_seconds - elapsed_seconds, 0.0) / seconds if seconds else 1.0


def muon_momentum(config: TrainConfig, step: int) -> float:
    """Muon's momentum at `step` (from 0): linear from `muon_momentum_start` to `muon_momentum`, then constant."""
    if step >= config.muon_momentum_warmup_steps:
        return config.muon_momentum
    fraction = step / config.muon_momentum_warmup_steps
    return (1.0 - fraction) * config.muon_momentum_start + fraction * config.muon_momentum
