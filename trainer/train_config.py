"""All that decides a training run, as one frozen value that is stored with its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quantlab.errors import ConfigError
from quantlab.fields import dataclass_from_dict
from quantlab.trainer.loader import ORDERS
from quantlab.trainer.model_config import GPTConfig

WARMDOWN_FRAC = 0.1
AVERAGES = ("none", "ema", "swa")


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
    warmdown_frac: float = WARMDOWN_FRAC
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
    muon_normalize_rows: bool = False
    """Bring the rows of Muon's directions to one length before they are orthogonalized (MuonEq-R)."""
    weight_decay: float = 0.0
    """Decoupled decay of the matrices in blocks: each step takes lr · weight_decay of them."""
    embed_weight_decay: float = 0.0
    """The same for the token embedding and the bigram table."""
    scalar_weight_decay: float = 0.0
    """The same for gains, scales, mixes and skip weights."""
    grad_clip: float = 0.0
    """Longest gradient, all parameters together; 0: as it is."""
    warmdown_steps: int = 0
    """If above 0, what the warmdown lasts instead of warmdown_frac; with a time limit in steps of the mean time so far."""
    min_lr: float = 0.0
    """Lowest factor on the learning rates during the warmdown, 0 to 1."""
    loop_from: float = 0.0
    """Share of the run after which the model's loops run, 0 to 1; before, each block runs once."""
    average: str = "none"
    """What is saved: the last weights (none), their exponential moving average (ema), or the mean over the end (swa)."""
    ema_decay: float = 0.997
    """Of the moving average, a step; below 1."""
    swa_from: float = 0.8
    """Share of the run after which weights enter the mean, 0 to 1."""
    order: str = "random"
    """How training sequences follow each other: random (offsets drawn anew each time), sequential, shuffled (each once an
    epoch, in an order of its own), or stride (each once an epoch, neighbours far apart)."""
    quant_from: float = 1.0
    """Share of the run after which the forward pass sees matrices on the packer's grid, above 0, at most 1; 1: never."""
    quant_bits: float = 4.0
    """Entropy of that grid's codes, bits a weight; positive."""
    by_document: bool = False
    """Tokens see their own document alone; without it attention crosses from one to the next."""
    compile: bool = True
    """On a GPU: torch.compile, with warm-up steps whose effect is undone and whose time is not counted."""
    val_every: int = 0
    """Steps between two validations; 0: only at the end, where there is validation text."""
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
        for name in ("warmup_steps", "muon_momentum_warmup_steps", "seed", "val_every", "warmdown_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in (
            "max_seconds",
            "matrix_lr",
            "embed_lr",
            "scalar_lr",
            "head_lr",
            "weight_decay",
            "embed_weight_decay",
            "scalar_weight_decay",
            "grad_clip",
            "checkpoint_every_seconds",
        ):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        for name in ("muon_momentum", "muon_momentum_start", "beta1", "beta2", "ema_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("warmdown_frac", "min_lr", "loop_from", "swa_from"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        for name, allowed in (("average", AVERAGES), ("order", ORDERS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0.0 < self.quant_from <= 1.0:
            raise ConfigError(f"quant_from must be above 0 (first weights are zeros) and at most 1, got {self.quant_from}")
        if self.warmdown_steps and self.warmdown_frac not in (0.0, WARMDOWN_FRAC):
            raise ConfigError(f"give warmdown_steps or warmdown_frac, not both: {self.warmdown_steps} and {self.warmdown_frac}")
        if self.model.num_loops and self.loop_from >= 1.0:
            raise ConfigError(f"loop_from must be below 1 for a model with loops, got {self.loop_from}")
        if not 0.0 < self.quant_bits < 16.0:
            raise ConfigError(f"quant_bits must be above 0 and below 16, got {self.quant_bits}")
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
