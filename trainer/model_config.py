"""Config of a GPT: the challenge's baseline by default; each later technique is a field that is off until it is set."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from quantlab.errors import ConfigError
from quantlab.fields import dataclass_from_dict

INITS = ("uniform", "orthogonal", "spectral")
"""Initializations of matrices, see `GPTConfig.init`."""
GATES = ("none", "sparse", "full", "double")
"""Gates of attention outputs, see `GPTConfig.attn_gate`."""
LANES = ("mean", "attn", "mlp")
"""Lanes that the head reads, see `GPTConfig.final_lane`."""
SMEAR_WINDOW = 12
"""Number of channels that a smear gate, or the gate of an attention output, reads."""
MAX_PASSES = 4096
"""Most passes through blocks, loops included: a config from a file must not keep a model running for hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """Shape and constants of one `GPT`. The defaults are the challenge's baseline; they never change, as files rely on them."""

    vocab_size: int = 1024
    """Number of tokens in the vocabulary, at least 2."""
    num_layers: int = 9
    """Number of blocks, at least 1; the first half stores skips that the second half adds in reverse order."""
    model_dim: int = 512
    """Width of the residual stream; num_heads divides it into heads of an even width."""
    num_heads: int = 8
    """Number of query heads."""
    num_kv_heads: int = 4
    """Number of key and value heads; must divide num_heads."""
    mlp_hidden: int = 1024
    """Width inside the MLP, at least 1."""
    tie_embeddings: bool = True
    """Whether the token embedding is also the output matrix; otherwise there is a separate lm_head."""
    logit_softcap: float = 30.0
    """Logits z become softcap · tanh(z / softcap); positive."""
    rope_base: float = 10000.0
    """Base of the rotary embedding, its longest wavelength / 2π, in tokens; above 1."""
    qk_gain_init: float = 1.5
    """Initial value of every query gain."""
    tied_embed_init_std: float = 0.005
    """Initial standard deviation of a tied embedding, positive; that of an untied one is 1."""
    rope_dims: int = 0
    """Number of head channels with rotary embedding, even; 0 for all."""
    mlp_slope: float = 0.0
    """Negative slope of the leaky ReLU that the MLP squares; 0 is the baseline's ReLU²."""
    xsa_last_n: int = 0
    """Number of last blocks with exclusive self-attention (XSA): head outputs lose their component along the token's own
    value."""
    ln_scale: bool = False
    """Whether block i (from 0) scales its normalized inputs by 1 / sqrt(i + 1)."""
    skip_gates: bool = False
    """Whether skips are mixed in by a learned sigmoid gate per channel instead of added."""
    parallel_last_n: int = 0
    """Number of last blocks in which attention and MLP read the same stream, as in GPT-J."""
    num_loops: int = 0
    """Number of extra passes through blocks loop_start to loop_end, whose weights are stored once."""
    loop_start: int = 0
    """First block of the loop."""
    loop_end: int = 0
    """Last block of the loop."""
    smear_gate: bool = False
    """Whether a learned share of the previous token's embedding is added to each embedding, except at a document's start."""
    bigram_buckets: int = 0
    """Number of rows in a table of hashed pairs (previous token, token) that is added to the embedding; 0 for no table."""
    bigram_dim: int = 128
    """Width of that table."""
    bos_id: int = 1
    """Token that begins a document; it has no previous token."""
    init: str = "uniform"
    """Initialization of matrices: uniform (torch's default), orthogonal (rows or columns orthonormal), or spectral (orthogonal,
    with the largest singular value sqrt(outputs / inputs)). Output projections start at 0."""

    attn_gate: str = "none"
    """Gate of each head's output, by a linear map of what the block reads: sigmoid of its first 12 channels (sparse) or of all
    (full), or 2 sigmoid of the first 12 (double), which begins as 1."""
    attn_gate_scale: float = 1.0
    """Factor before the sigmoid of a sparse gate."""
    lanes_from: int = 0
    """First block of the second half that runs on two lanes, one that attention reads and one that the MLP reads, both of which
    get both outputs with learned weights; 0 for none."""
    final_lane: str = "mean"
    """What the head reads where there are two lanes: their mean, attn or mlp."""
    rope_train_len: int = 0
    """Longest sequence with the rotary embedding's own base; of a longer one the base grows with its length. 0 for no limit."""
    embedding_dim: int = 0
    """Width of the embedding, which a matrix maps to the stream and another back from it; 0 for that of the stream."""
    value_dim: int = 0
    """Width of a second embedding of the tokens, which is mapped to the values of the last blocks; 0 for none."""
    value_last_n: int = 0
    """Number of last blocks whose values it is added to."""
    embed_power_law: bool = False
    """Whether a tied embedding begins with singular values that fall with the root of their rank."""
    mix_by_depth: bool = False
    """Whether early blocks begin with more of the embedding in their mix, and late ones with more of the stream."""

    def __post_init__(self) -> None:
        at_least("vocab_size", self.vocab_size, 2)
        for name in ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_hidden", "bigram_dim"):
            at_least(name, getattr(self, name), 1)
        if self.model_dim % (2 * self.num_heads):
            raise ConfigError(f"model_dim must be a multiple of 2 * num_heads = {2 * self.num_heads}, got {self.model_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads must divide num_heads = {self.num_heads}, got {self.num_kv_heads}")
        for name, low in (("logit_softcap", 0.0), ("rope_base", 1.0), ("tied_embed_init_std", 0.0)):
            if not low < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above {low:g} and finite, got {getattr(self, name)}")
        for name in ("qk_gain_init", "mlp_slope"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be finite, got {getattr(self, name)}")
        self._check_options()

    def _check_options(self) -> None:
        for name, high in (
            ("xsa_last_n", self.num_layers),
            ("parallel_last_n", self.num_layers),
            ("lanes_from", self.num_layers - 1),
            ("value_last_n", self.num_layers),
            ("bos_id", self.vocab_size - 1),
        ):
            if not 0 <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be 0 to {high}, got {getattr(self, name)}")
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            raise ConfigError(f"rope_dims must be even and at most the head's {self.head_dim}, got {self.rope_dims}")
        if self.num_loops < 0 or not 0 <= self.loop_start <= self.loop_end < self.num_layers:
            raise ConfigError(
                f"a loop needs 0 <= loop_start <= loop_end < num_layers = {self.num_layers} and num_loops of 0 or more, got "
                f"{self.loop_start}, {self.loop_end} and {self.num_loops}"
            )
        if self.num_passes > MAX_PASSES:
            passes = f"{self.num_layers} layers and {self.num_loops} loops make {self.num_passes} passes through blocks"
            raise ConfigError(f"{passes}, at most {MAX_PASSES} are allowed")
        if self.bigram_buckets == 1 or self.bigram_buckets < 0:
            raise ConfigError(f"bigram_buckets must be 0, or 2 or more, got {self.bigram_buckets}")
        if self.smear_gate and self.model_dim < SMEAR_WINDOW:
            raise ConfigError(f"smear_gate needs a model_dim of {SMEAR_WINDOW} or more, got {self.model_dim}")
        for name, allowed in (("init", INITS), ("attn_gate", GATES), ("final_lane", LANES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        self._check_later_options()

    def _check_later_options(self) -> None:
        for name in ("rope_train_len", "embedding_dim", "value_dim"):
            at_least(name, getattr(self, name), 0)
        if not math.isfinite(self.attn_gate_scale):
            raise ConfigError(f"attn_gate_scale must be finite, got {self.attn_gate_scale}")
        if self.attn_gate != "sparse" and self.attn_gate_scale != 1.0:
            raise ConfigError(f"attn_gate_scale {self.attn_gate_scale} is of attn_gate sparse, got {self.attn_gate}")
        if self.attn_gate in ("sparse", "double") and self.model_dim < SMEAR_WINDOW:
            raise ConfigError(f"attn_gate {self.attn_gate} needs a model_dim of {SMEAR_WINDOW} or more, got {self.model_dim}")
        if self.lanes_from and self.parallel_last_n:
            raise ConfigError(f"give lanes_from or parallel_last_n, not both: {self.lanes_from} and {self.parallel_last_n}")
        if self.final_lane != "mean" and not self.lanes_from:
            raise ConfigError(f"final_lane {self.final_lane} needs two lanes: set lanes_from")
        if self.rope_train_len and (self.rope_dims or self.head_dim) <= 2:
            raise ConfigError("rope_train_len needs 4 channels of a head or more with rotary embedding")
        if bool(self.value_dim) != bool(self.value_last_n):
            raise ConfigError(f"value_dim and value_last_n go together, got {self.value_dim} and {self.value_last_n}")
        if self.embed_power_law and not self.tie_embeddings:
            raise ConfigError("embed_power_law is of a tied embedding", hint="set tie_embeddings, or leave it out")
        if self.embedding_dim and (self.smear_gate or self.bigram_buckets):
            raise ConfigError("embedding_dim goes without smear_gate and bigram_buckets, which add to the stream")

    @property
    def table_dim(self) -> int:
        """Width of the token embedding."""
        return self.embedding_dim or self.model_dim

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.model_dim // self.num_heads

    def order(self, *, looping: bool = True) -> list[int]:
        """Return the blocks in the order in which they run; the first half of these passes (rounded down) stores skips."""
        blocks = list(range(self.num_layers))
        loop = blocks[self.loop_start : self.loop_end + 1] * (self.num_loops if looping else 0)
        return blocks[: self.loop_end + 1] + loop + blocks[self.loop_end + 1 :]

    @property
    def num_passes(self) -> int:
        """Number of passes through blocks, with all loops running: the length of `order`."""
        return self.num_layers + self.num_loops * (self.loop_end - self.loop_start + 1)

    @property
    def num_skips(self) -> int:
        """Number of passes whose output is added again later, with all loops running."""
        return self.num_passes // 2

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: all fields of the baseline, and those later fields that are not off."""
        defaults = {f.name: f.default for f in fields(self)}
        return {n: v for n, v in asdict(self).items() if n in BASELINE or v != defaults[n]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GPTConfig":
        """Return the config that `to_dict` wrote. ConfigError for an unknown key or a value of another type."""
        return dataclass_from_dict(cls, data)


BASELINE = tuple(f.name for f in fields(GPTConfig))[:11]
"""Names of the fields that the challenge's baseline has."""


def at_least(name: str, value: int, low: int) -> None:
    """Raise ConfigError if `value` is below `low`."""
    if value < low:
        raise ConfigError(f"{name} must be at least {low}, got {value}")
