"""Causal grouped-query attention with QK norm, rotary positions, and documents that do not see each other.

Letters: B batch, T tokens, D model_dim, H query heads, K key/value heads, E head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.trainer.cache import KVCache
from quantlab.trainer.linear import Linear
from quantlab.trainer.model_config import GPTConfig

Mask = Tensor | None
"""Where queries may look, bool [B, 1, T, T]; None: at all tokens up to their own."""


class Attention(nn.Module):
    """Attention of one block."""

    def __init__(self, config: GPTConfig, *, is_exclusive: bool = False) -> None:
        """`is_exclusive`: XSA, see `without_own_value`."""
        super().__init__()
        dim, kv_dim = config.model_dim, config.num_kv_heads * config.head_dim
        self.head_dim, self.is_grouped = config.head_dim, config.num_kv_heads != config.num_heads
        self.is_exclusive = is_exclusive
        self.c_q = Linear(dim, dim)
        self.c_k = Linear(dim, kv_dim)
        self.c_v = Linear(dim, kv_dim)
        self.proj = Linear(dim, dim)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.qk_gain_init))

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], layer: int, cache: KVCache | None, mask: Mask = None
    ) -> Tensor:
        """Mix each token with those before it: [B, T, D] -> [B, T, D]; `layer` counts passes, for the cache."""
        q, k, v = (self._heads(c(x_BTD)) for c in (self.c_q, self.c_k, self.c_v))
        own_v = v
        q, k = rotate(rms_norm(q), rope), rotate(rms_norm(k), rope)
        q, k = (q * self.q_gain[:, None, None]).to(v.dtype), k.to(v.dtype)
        past = 0 if cache is None else cache.position
        if cache is not None:
            k, v = cache.append_(layer, k, v)
        if past:
            mask = _shifted_causal_mask(q.shape[2], past, q.device)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=self.is_grouped)
        if self.is_exclusive:
            y = without_own_value(y, own_v)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], -1, self.head_dim).transpose(1, 2)  # [B, heads, T, E]


def without_own_value(y_BHTE: Tensor, v_BKTE: Tensor) -> Tensor:
    """Each head's output less its component along the token's own value, [B, H, T, E] (XSA)."""
    batch, heads, *_ = v_BKTE.shape
    y = y_BHTE.reshape(batch, heads, -1, *y_BHTE.shape[2:])
    direction = F.normalize(v_BKTE, dim=-1).unsqueeze(2)
    rest: Tensor = y - (y * direction).sum(-1, keepdim=True) * direction
    return rest.flatten(1, 2)


def rms_norm(x: Tensor) -> Tensor:
    """`x` divided by the root mean square of its last axis (eps: that of its dtype)."""
    return F.rms_norm(x, (x.shape[-1],))


def rope_table(start: int, count: int, config: GPTConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each float32 [count, turning channels / 2], of positions start, start + 1, ... (arXiv 2104.09864)."""
    turning = config.rope_dims or config.head_dim
    channels = torch.arange(0, turning, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / config.rope_base ** (channels / turning)
    positions = torch.arange(start, start + count, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (j, j + R / 2) of the first R channels of x [B, heads, T, E] by minus their angles; R is twice the
    width of the table."""
    cos, sin = rope
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat((a * cos + b * sin, b * cos - a * sin, x[..., 2 * half :]), dim=-1)


def document_mask(ids_BT: Tensor, bos_id: int) -> Tensor:
    """True where a token may look at another: not later, and of the same document; bool [B, 1, T, T]."""
    document_BT = (ids_BT == bos_id).cumsum(1)
    same = document_BT[:, None, :, None] == document_BT[:, None, None, :]
    return same.tril()


def _shifted_causal_mask(count: int, past: int, device: torch.device) -> Tensor:
    """True where query i (at position past + i) may look: bool [count, past + count]."""
    return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)
