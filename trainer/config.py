"""All that decides a training run, as one frozen value that is stored with its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quantlab.errors import ConfigError
from quantlab.trainer.from_dict import dataclass_from_dict
from quantlab.trainer.model_config import GPTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; the defaults are the challenge's baseline on one GPU."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """The model."""
    seq_len: int = 1024
    """Tokens that are predicted in one sequence."""
    batch_tokens: int = 524288
    """Tokens in one optimizer step, a multiple of micro_batch_tokens."""
    micro_batch_tokens: int = 65536
    """Tokens in one forward pass, a multiple of seq_len; bounds the memory, changes only rounding."""
    steps: int = 20000
    """Optimizer steps at most."""
    max_seconds: float = 600.0
    """Training time at most, over all resumes; 0 sets no limit, and the run depends on config and tokens alone."""
    warmup_steps: int = 0
    """Steps over which learning rates rise."""
    warmdown_frac: float = 0.1
    """Last part of the run over which learning rates fall to 0; 0 to 1."""
    matrix_lr: float = 0.04
    """Muon, for the matrices in blocks."""
    embed_lr: float = 0.05
    """Adam, for the token embedding (the baseline has 0.6 when it is untied)."""
    scalar_lr: float = 0.04
    """Adam, for gains, scales, mixes and skip weights."""
    head_lr: float = 0.008
    """Adam, for an untied lm_head."""
    muon_momentum: float = 0.95
    """Muon's momentum after its warm-up, below 1."""
    muon_momentum_start: float = 0.85
    """Muon's momentum at step 0, below 1."""
    muon_momentum_warmup_steps: int = 500
    """Steps from one to the other."""
    beta1: float = 0.9
    """Adam's decay of the mean gradient, below 1."""
    beta2: float = 0.95
    """Adam's decay of the mean squared gradient, below 1."""
    adam_eps: float = 1e-8
    """Adam's epsilon, positive."""
    weight_decay: float = 0.0
    """Decoupled decay of the matrices in blocks: each step takes lr · weight_decay of them."""
    seed: int = 1337
    """Draws the first weights and the batches."""
    log_every: int = 10
    """Steps between two progress records."""
    checkpoint_every_seconds: float = 60.0
    """Training time between two checkpoints; 0 writes one after every step."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_tokens", "micro_batch_tokens", "steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "muon_momentum_warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in (
            "max_seconds",
            "matrix_lr",
            "embed_lr",
            "scalar_lr",
            "head_lr",
            "weight_decay",
            "checkpoint_every_seconds",
        ):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        for name in ("muon_momentum", "muon_momentum_start", "beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0.0 <= self.warmdown_frac <= 1.0:
            raise ConfigError(f"warmdown_frac must be 0 to 1, got {self.warmdown_frac}")
        if not 0.0 < self.adam_eps < math.inf:
            raise ConfigError(f"adam_eps must be positive and finite, got {self.adam_eps}")
        self._check_multiple("micro_batch_tokens", "seq_len")
        self._check_multiple("batch_tokens", "micro_batch_tokens")

    def _check_multiple(self, name: str, unit: str) -> None:
        if getattr(self, name) % getattr(self, unit):
            raise ConfigError(f"{name} must be a multiple of {unit} = {getattr(self, unit)}, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; the model's in a dict of their own."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainConfig":
        """Inverse of `to_dict`; absent keys keep their defaults.

        Raises:
            ConfigError: an unknown key (the hint has the nearest one), or a value of another type or out of range.
        """
        return dataclass_from_dict(cls, data)
