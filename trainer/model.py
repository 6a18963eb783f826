"""The Parameter Golf baseline GPT, with exactly its state-dict names, and a KV cache for sampling.

The maths follow train_gpt.py of github.com/openai/parameter-golf: RMSNorm without weights, grouped-query attention
with QK norm and a gain per query head, rotary positions, a relu² MLP, U-Net skips, a mix of each block's input with the
embedding, a logit softcap.

Letters: B batch, T tokens, D model_dim, H query heads, K key/value heads, E head_dim, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.errors import ConfigError, ShapeError

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """Shape and constants of one `GPT`; the defaults are the challenge's baseline."""

    vocab_size: int = 1024
    """Tokens in the vocabulary, at least 2."""
    num_layers: int = 9
    """Blocks, at least 1; the first half stores skips that the second half adds in reverse order."""
    model_dim: int = 512
    """Width of the residual stream; num_heads divides it into heads of an even width."""
    num_heads: int = 8
    """Query heads."""
    num_kv_heads: int = 4
    """Key and value heads; must divide num_heads."""
    mlp_hidden: int = 1024
    """Width inside the MLP, at least 1."""
    tie_embeddings: bool = True
    """The token embedding is also the output matrix; otherwise there is a separate lm_head."""
    logit_softcap: float = 30.0
    """Logits are softcap · tanh(z / softcap); positive."""
    rope_base: float = 10000.0
    """Longest rotary wavelength / 2π, in tokens; above 1."""
    qk_gain_init: float = 1.5
    """First value of every query gain."""
    tied_embed_init_std: float = 0.005
    """Standard deviation of a tied embedding at the start (an untied one starts at 1); positive."""

    def __post_init__(self) -> None:
        _at_least("vocab_size", self.vocab_size, 2)
        for name in ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_hidden"):
            _at_least(name, getattr(self, name), 1)
        if self.model_dim % (2 * self.num_heads):
            raise ConfigError(f"model_dim must be a multiple of 2 * num_heads = {2 * self.num_heads}, got {self.model_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads must divide num_heads = {self.num_heads}, got {self.num_kv_heads}")
        for name, low in (("logit_softcap", 0.0), ("rope_base", 1.0), ("tied_embed_init_std", 0.0)):
            if not low < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above {low:g} and finite, got {getattr(self, name)}")
        if not math.isfinite(self.qk_gain_init):
            raise ConfigError(f"qk_gain_init must be finite, got {self.qk_gain_init}")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.model_dim // self.num_heads

    @property
    def num_skips(self) -> int:
        """Blocks whose output is added again later."""
        return self.num_layers // 2

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GPTConfig":
        """Inverse of `to_dict`; ConfigError for an unknown key or a value of another type."""
        return dataclass_from_dict(cls, data)


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{name} must be at least {low}, got {value}")


def dataclass_from_dict(cls: type[C], data: Mapping[str, Any], where: str = "") -> C:
    """Build the config dataclass `cls` from JSON or TOML values; a field that is a dataclass takes a mapping.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of another type, or what `cls` itself refuses.
    """
    types = {f.name: f.type for f in fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        if key not in types:
            near = get_close_matches(key, types, n=1, cutoff=0.5)
            hint = f"did you mean {where}{near[0]}?" if near else f"known keys: {', '.join(types)}"
            raise ConfigError(f"unknown key {where}{key}", hint=hint)
        values[key] = _checked(types[key], value, where + key)
    return cls(**values)


def _checked(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be a table, got {value!r}")
        return dataclass_from_dict(kind, value, where=f"{name}.")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # not isinstance: True is an int
        raise ConfigError(f"{name} must be {kind.__name__}, got {value!r}")
    return value


@dataclass(slots=True)
class KVCache:
    """Keys and values of the tokens read so far; `GPT.forward` appends to it in place (use torch.no_grad)."""

    keys: Tensor
    """[layers, B, K, length, E], rotated."""
    values: Tensor
    """[layers, B, K, length, E]."""
    position: int = 0
    """Tokens held, which is also the position of the next one."""

    @property
    def length(self) -> int:
        """Tokens it has room for."""
        return self.keys.shape[3]

    def append_(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values and return all that it holds; `position` moves after the last layer."""
        end = self.position + k_BKTE.shape[2]
        self.keys[layer, :, :, self.position : end] = k_BKTE
        self.values[layer, :, :, self.position : end] = v_BKTE
        return self.keys[layer, :, :, :end].to(k_BKTE.dtype), self.values[layer, :, :, :end].to(v_BKTE.dtype)


class _Linear(nn.Linear):
    """A linear map without bias whose memory is left unset: `GPT` draws every weight from its own generator."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Does nothing, so that no global random state is touched."""


class Attention(nn.Module):
    """Causal grouped-query attention of one block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        dim, kv_dim = config.model_dim, config.num_kv_heads * config.head_dim
        self.head_dim, self.is_grouped = config.head_dim, config.num_kv_heads != config.num_heads
        self.c_q = _Linear(dim, dim)
        self.c_k = _Linear(dim, kv_dim)
        self.c_v = _Linear(dim, kv_dim)
        self.proj = _Linear(dim, dim)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.qk_gain_init))

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], layer: int, cache: KVCache | None) -> Tensor:
        """Mix each token with those before it: [B, T, D] -> [B, T, D]."""
        q, k, v = (self._heads(c(x_BTD)) for c in (self.c_q, self.c_k, self.c_v))
        q, k = rotate(rms_norm(q), rope), rotate(rms_norm(k), rope)
        q, k = (q * self.q_gain[:, None, None]).to(v.dtype), k.to(v.dtype)
        past = 0 if cache is None else cache.position
        if cache is not None:
            k, v = cache.append_(layer, k, v)
        mask = _shifted_causal_mask(q.shape[2], past, q.device) if past else None
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=self.is_grouped)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], -1, self.head_dim).transpose(1, 2)  # [B, heads, T, E]


class MLP(nn.Module):
    """proj(relu(fc(x))²)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = _Linear(config.model_dim, config.mlp_hidden)
        self.proj = _Linear(config.mlp_hidden, config.model_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        out: Tensor = self.proj(torch.relu(self.fc(x_BTD)).square())
        return out


class Block(nn.Module):
    """Attention and MLP, each scaled per channel, on a learned mix of the stream and the embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config), MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.model_dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(config.model_dim), torch.zeros(config.model_dim))))

    def forward(self, x: Tensor, x0: Tensor, rope: tuple[Tensor, Tensor], layer: int, cache: KVCache | None) -> Tensor:
        """Stream `x` and embedding `x0`, both [B, T, D] -> the new stream."""
        x = self.resid_mix[0] * x + self.resid_mix[1] * x0
        x = x + self.attn_scale * self.attn(rms_norm(x), rope, layer, cache)
        out: Tensor = x + self.mlp_scale * self.mlp(rms_norm(x))
        return out


class GPT(nn.Module):
    """The baseline language model; all parameters float32, drawn from `seed` alone."""

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.model_dim)
        self.tok_emb = nn.Embedding(config.vocab_size, config.model_dim, _weight=table)
        self.skip_weights = nn.Parameter(torch.ones(config.num_skips, config.model_dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.lm_head = None if config.tie_embeddings else _Linear(config.model_dim, config.vocab_size)
        self._initialise_(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise_(self, generator: torch.Generator) -> None:
        std = self.config.tied_embed_init_std if self.lm_head is None else 1.0
        self.tok_emb.weight.normal_(0.0, std, generator=generator)
        for name, module in self.named_modules():
            if not isinstance(module, _Linear):
                continue
            if name.endswith(("proj", "lm_head")):
                module.weight.zero_()
            else:  # nn.Linear's own default
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the next token at each position.

        Args:
            ids: int64 [B, T], each below vocab_size.
            cache: what came before; the T new tokens are appended to it.
        Returns:
            float32 [B, T, V], within ±logit_softcap.
        Raises:
            ShapeError: ids is not a filled matrix, or does not fit the cache.
        """
        _check_ids(ids, cache)
        past = 0 if cache is None else cache.position
        rope = rope_table(past, ids.shape[1], self.config, ids.device)
        x = x0 = rms_norm(self.tok_emb(ids))
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i < self.config.num_skips:
                x = block(x, x0, rope, i, cache)
                skips.append(x)
                continue
            if skips:
                x = x + self.skip_weights[i - self.config.num_skips] * skips.pop()
            x = block(x, x0, rope, i, cache)
        if cache is not None:
            cache.position += ids.shape[1]
        x = rms_norm(x)
        logits = F.linear(x, self.tok_emb.weight) if self.lm_head is None else self.lm_head(x)
        softcap = self.config.logit_softcap
        return softcap * torch.tanh(logits.float() / softcap)

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` sequences of up to `length` tokens, on the model's device and in its dtype."""
        _at_least("batch", batch, 1)
        _at_least("length", length, 1)
        c, like = self.config, self.tok_emb.weight
        shape = (c.num_layers, batch, c.num_kv_heads, length, c.head_dim)
        keys, values = (torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        return KVCache(keys, values)


def _check_ids(ids: Tensor, cache: KVCache | None) -> None:
    if ids.ndim != 2 or ids.numel() == 0 or ids.dtype != torch.int64:
        raise ShapeError(f"ids must be int64 [batch, tokens] and not empty, got {ids.dtype} {list(ids.shape)}")
    if cache is None:
        return
    if cache.keys.shape[1] != ids.shape[0]:
        raise ShapeError(f"the cache is for a batch of {cache.keys.shape[1]}, got ids {list(ids.shape)}")
    if cache.position + ids.shape[1] > cache.length:
        raise ShapeError(f"{ids.shape[1]} tokens do not fit a cache of {cache.length} that holds {cache.position}")


def rms_norm(x: Tensor) -> Tensor:
    """`x` divided by the root mean square of its last axis (eps: that of its dtype)."""
    return F.rms_norm(x, (x.shape[-1],))


def rope_table(start: int, count: int, config: GPTConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each float32 [count, E / 2], of positions start, start + 1, ... (arXiv 2104.09864)."""
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / config.rope_base ** (channels / config.head_dim)
    positions = torch.arange(start, start + count, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (j, j + E / 2) of x [B, heads, T, E] by minus their angles."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def _shifted_causal_mask(count: int, past: int, device: torch.device) -> Tensor:
    """True where query i (at position past + i) may look: bool [count, past + count]."""
    return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)
