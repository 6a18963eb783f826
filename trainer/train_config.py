"""Config of a training: one frozen value that decides all of it and is stored with its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quantlab.errors import ConfigError
from quantlab.fields import dataclass_from_dict
from quantlab.trainer.model_config import GPTConfig

WARMDOWN_FRAC = 0.1
"""Default of `TrainConfig.warmdown_frac`."""
AVERAGES = ("none", "ema", "swa")
"""Averages of the weights, see `TrainConfig.average`."""
ORDERS = ("random", "sequential", "shuffled", "stride")
"""Orders of training sequences, see `TrainConfig.order`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Config of one training; the defaults are the challenge's baseline on one GPU."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """Config of the model."""
    seq_len: int = 1024
    """Number of tokens that are predicted in one sequence."""
    batch_tokens: int = 524288
    """Number of tokens in one optimizer step, a multiple of micro_batch_tokens."""
    micro_batch_tokens: int = 65536
    """Number of tokens in one forward pass, a multiple of seq_len; bounds the memory and changes only rounding."""
    steps: int = 20000
    """Largest number of optimizer steps."""
    max_seconds: float = 600.0
    """Limit of training time in seconds, over all resumes; 0 for none, where config and tokens alone decide the result."""
    warmup_steps: int = 0
    """Number of steps over which the learning rates rise."""
    warmdown_frac: float = WARMDOWN_FRAC
    """Last fraction of the training over which the learning rates fall to 0, 0 to 1."""
    matrix_lr: float = 0.04
    """Muon's learning rate, for the matrices in blocks."""
    embed_lr: float = 0.05
    """Adam's learning rate for the token embedding (the baseline has 0.6 for an untied one)."""
    scalar_lr: float = 0.04
    """Adam's learning rate for gains, scales, mixes and skip weights."""
    head_lr: float = 0.008
    """Adam's learning rate for an untied lm_head."""
    muon_momentum: float = 0.95
    """Muon's momentum after its warm-up, below 1."""
    muon_momentum_start: float = 0.85
    """Muon's momentum at step 0, below 1."""
    muon_momentum_warmup_steps: int = 500
    """Number of steps over which Muon's momentum rises."""
    beta1: float = 0.9
    """Adam's decay rate of the mean gradient, below 1."""
    beta2: float = 0.95
    """Adam's decay rate of the mean squared gradient, below 1."""
    adam_eps: float = 1e-8
    """Adam's epsilon, positive."""
    muon_normalize_rows: bool = False
    """Whether the rows of Muon's updates are normalized before they are orthogonalized (MuonEq-R)."""
    muon_polar_express: bool = False
    """Whether Muon orthogonalizes with coefficients that are best for each iteration (Polar Express) instead of one set."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices in blocks: each step subtracts lr · weight_decay of them."""
    wd_taper_from: float = 1.0
    """Fraction of the training after which the weight decay of the matrices changes linearly; 1 for never."""
    wd_taper_to: float = 1.0
    """Factor on it at the end of the training, 0 or more."""
    embed_weight_decay: float = 0.0
    """Decoupled weight decay of the token embedding and the bigram table."""
    scalar_weight_decay: float = 0.0
    """Decoupled weight decay of gains, scales, mixes and skip weights."""
    grad_clip: float = 0.0
    """Maximum global gradient norm; 0 disables clipping."""
    warmdown_steps: int = 0
    """Number of steps that the warmdown lasts; if above 0, it replaces warmdown_frac. With a time limit the steps are converted
    to time by the mean time of a step so far."""
    min_lr: float = 0.0
    """Lowest factor on the learning rates during the warmdown, 0 to 1."""
    loop_from: float = 0.0
    """Fraction of the training after which the model's loops run, 0 to 1; before it each block runs once."""
    average: str = "none"
    """Weights that are saved: the last (none), their exponential moving average (ema), or their mean over the end (swa)."""
    ema_decay: float = 0.997
    """Decay rate of the exponential moving average in each step, below 1."""
    swa_from: float = 0.8
    """Fraction of the training after which weights enter the mean, 0 to 1."""
    order: str = "random"
    """Order of training sequences: random (offsets drawn anew each time), sequential, shuffled (each once an epoch, in an order
    of its own), or stride (each once an epoch, neighbours far apart)."""
    quant_from: float = 1.0
    """Fraction of the training after which quantization-aware training (QAT) begins: the forward pass rounds matrices to the
    packer's grid. Above 0, at most 1; 1 disables it."""
    quant_bits: float = 4.0
    """Entropy of the codes of that grid, in bits a weight; above 0 and below 16."""
    teacher: str = ""
    """Checkpoint or artifact of a model from whose predictions this one also learns (distillation); empty for none."""
    distill_weight: float = 0.0
    """Weight of the KL to the teacher in the loss, 0 to 1; the cross-entropy has the rest. Above 0 with a teacher, else 0."""
    by_document: bool = False
    """Whether tokens attend only within their own document; otherwise attention crosses document boundaries."""
    compile: bool = True
    """Whether the forward pass is compiled on a GPU, by warm-up steps whose effect is undone and whose time is not counted."""
    val_every: int = 0
    """Number of steps between validations; 0 validates only at the end, if there is validation text."""
    seed: int = 1337
    """Seed of the initial weights and of the batches."""
    log_every: int = 10
    """Number of steps between progress records."""
    checkpoint_every_seconds: float = 60.0
    """Training time in seconds between checkpoints; 0 writes one after every step."""

    def __post_init__(self) -> None:
        self._check_ranges()
        for name, allowed in (("average", AVERAGES), ("order", ORDERS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0.0 < self.quant_from <= 1.0:
            raise ConfigError(f"quant_from must be above 0 (initial weights are zeros) and at most 1, got {self.quant_from}")
        if self.warmdown_steps and self.warmdown_frac not in (0.0, WARMDOWN_FRAC):
            raise ConfigError(f"give warmdown_steps or warmdown_frac, not both: {self.warmdown_steps} and {self.warmdown_frac}")
        if (self.wd_taper_from < 1.0) != (self.wd_taper_to != 1.0):
            both = f"{self.wd_taper_from} and {self.wd_taper_to}"
            raise ConfigError(f"a taper needs wd_taper_from below 1 and wd_taper_to other than 1, got {both}")
        if self.model.num_loops and self.loop_from >= 1.0:
            raise ConfigError(f"loop_from must be below 1 for a model with loops, got {self.loop_from}")
        if not 0.0 < self.quant_bits < 16.0:
            raise ConfigError(f"quant_bits must be above 0 and below 16, got {self.quant_bits}")
        if bool(self.teacher) != (self.distill_weight > 0.0):
            raise ConfigError(f"give both teacher and distill_weight or neither: {self.teacher!r} and {self.distill_weight}")
        if self.teacher and self.by_document:
            raise ConfigError("teacher does not go with by_document: it would read other documents of a sequence")
        if not 0.0 < self.adam_eps < math.inf:
            raise ConfigError(f"adam_eps must be positive and finite, got {self.adam_eps}")
        self._check_multiple("micro_batch_tokens", "seq_len")
        self._check_multiple("batch_tokens", "micro_batch_tokens")

    def _check_ranges(self) -> None:
        for name in ("seq_len", "batch_tokens", "micro_batch_tokens", "steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "muon_momentum_warmup_steps", "seed", "val_every", "warmdown_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be 0 to 2**63 - 1, got {self.seed}")
        for name in (
            "max_seconds",
            "matrix_lr",
            "embed_lr",
            "scalar_lr",
            "head_lr",
            "weight_decay",
            "wd_taper_to",
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
        for name in ("warmdown_frac", "min_lr", "loop_from", "swa_from", "wd_taper_from", "distill_weight"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")

    def _check_multiple(self, name: str, unit: str) -> None:
        if getattr(self, name) % getattr(self, unit):
            raise ConfigError(f"{name} must be a multiple of {unit} = {getattr(self, unit)}, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values; those of the model are a nested dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainConfig":
        """Return the config that `to_dict` wrote; absent keys have their defaults.

        Raises:
            ConfigError: a key is unknown (the hint has the nearest one), or a value has another type or is out of range.
        """
        return dataclass_from_dict(cls, data)
