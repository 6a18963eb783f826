"""Causal grouped-query attention with QK norm and rotary embedding, its masks for documents, and its cache for sampling.

Letters: B batch, T tokens, S keys, D model_dim, H query heads, K key/value heads, E head_dim.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from quantlab.trainer.layers import Linear
from quantlab.trainer.model_config import SMEAR_WINDOW, GPTConfig

Mask = Tensor | BlockMask | None
"""Where queries attend: bool [B, 1, T, T], the blocks of flex attention, or None for all tokens up to their own."""

HOPPER = 9
"""Major compute capability of the GPUs that FlashAttention 3 supports."""


@dataclass(slots=True)
class KVCache:
    """Keys and values of the tokens read so far; `GPT.forward` appends to it in place (use torch.no_grad)."""

    keys: Tensor
    """Keys after the rotary embedding, [passes, B, K, length, E]."""
    values: Tensor
    """Values, [passes, B, K, length, E]."""
    ids: Tensor
    """Token ids that were read, [B, length]."""
    position: int = 0
    """Number of tokens held, which is also the position of the next one."""

    @property
    def length(self) -> int:
        """Number of tokens for which there is room."""
        return self.keys.shape[3]

    def append_(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one pass and return all of that pass; the caller advances `position`."""
        end = self.position + k_BKTE.shape[2]
        self.keys[layer, :, :, self.position : end] = k_BKTE
        self.values[layer, :, :, self.position : end] = v_BKTE
        return self.keys[layer, :, :, :end].to(k_BKTE.dtype), self.values[layer, :, :, :end].to(v_BKTE.dtype)

    def with_previous(self, ids_BT: Tensor) -> Tensor:
        """Store `ids_BT` and return them with up to two ids before them.

        A smear gate reads the previous embedding, whose bigram reads the token before that.
        """
        new_end = self.position + ids_BT.shape[1]
        self.ids[:, self.position : new_end] = ids_BT
        return self.ids[:, max(0, self.position - 2) : new_end]


@lru_cache
def _flash_attention_3(device: torch.device) -> Callable[..., Any] | None:
    """Return the function of the package flash_attn_interface; None without the package or on any other device."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != HOPPER:
        return None
    if importlib.util.find_spec("flash_attn_interface") is None:
        return None
    found: Callable[..., Any] = importlib.import_module("flash_attn_interface").flash_attn_func
    return found


class Attention(nn.Module):
    """The attention layer of one block."""

    def __init__(self, config: GPTConfig, *, is_exclusive: bool = False) -> None:
        """Make the layer; `is_exclusive` turns on exclusive self-attention (XSA), see `without_own_value`."""
        super().__init__()
        dim, kv_dim = config.model_dim, config.num_kv_heads * config.head_dim
        self.head_dim, self.is_exclusive = config.head_dim, is_exclusive
        self.c_q = Linear(dim, dim)
        self.c_k = Linear(dim, kv_dim)
        self.c_v = Linear(dim, kv_dim)
        self.proj = Linear(dim, dim)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.qk_gain_init))
        self.gate_kind, self.gate_scale = config.attn_gate, config.attn_gate_scale
        self.attn_gate_w: nn.Parameter | None = None
        if self.gate_kind in ("sparse", "full"):
            width = dim if self.gate_kind == "full" else SMEAR_WINDOW
            self.attn_gate_w = nn.Parameter(torch.zeros(config.num_heads, width))
        self.attn_gate_proj = Linear(SMEAR_WINDOW, config.num_heads) if self.gate_kind == "double" else None

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        layer: int,
        cache: KVCache | None,
        mask: Mask = None,
        more_values: Tensor | None = None,
    ) -> Tensor:
        """Attend from each token to itself and those before it, [B, T, D] -> [B, T, D].

        Args:
            layer: the pass in the cache.
            more_values: is added to the values of all heads, [B, T, K · E].
        """
        q, k = self._heads(self.c_q(x_BTD)), self._heads(self.c_k(x_BTD))
        values = self.c_v(x_BTD)
        v = self._heads(values if more_values is None else values + more_values.to(values.dtype))
        own_v = v
        q, k = rotate(rms_norm(q), rope), rotate(rms_norm(k), rope)
        q, k = (q * self.q_gain[:, None, None]).to(v.dtype), k.to(v.dtype)
        past = 0 if cache is None else cache.position
        if cache is not None:
            k, v = cache.append_(layer, k, v)
        if past:
            mask = _shifted_causal_mask(q.shape[2], past, q.device) if q.shape[2] > 1 else None
        y = attend(q, k, v, mask)
        if self.is_exclusive:
            y = without_own_value(y, own_v)
        if self.gate_kind != "none":
            y = y * self._gate(x_BTD).transpose(1, 2)[..., None].to(y.dtype)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out

    def _gate(self, x_BTD: Tensor) -> Tensor:
        """Return the factor of each head's output, [B, T, H]."""
        if self.attn_gate_proj is not None:
            twice: Tensor = 2.0 * torch.sigmoid(self.attn_gate_proj(x_BTD[..., :SMEAR_WINDOW]))
            return twice
        assert self.attn_gate_w is not None
        read = x_BTD if self.gate_kind == "full" else x_BTD[..., :SMEAR_WINDOW]
        return torch.sigmoid(self.gate_scale * F.linear(read, self.attn_gate_w.to(x_BTD.dtype)))

    def _heads(self, y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], -1, self.head_dim).transpose(1, 2)  # [B, heads, T, E]


def attend(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask) -> Tensor:
    """Return softmax attention, [B, H, T, E]; without a mask a lone query (T = 1) attends to all keys.

    Flex attention computes it for a block mask, FlashAttention 3 where it is installed and applies, and otherwise torch's SDPA,
    which uses FlashAttention 2 on a GPU in half precision.
    """
    if mask is None and q_BHTE.shape[2] == 1:
        return _attend_once(q_BHTE, k_BKSE, v_BKSE)
    grouped = q_BHTE.shape[1] != k_BKSE.shape[1]
    if isinstance(mask, BlockMask):
        out: Tensor = flex_attention(q_BHTE, k_BKSE, v_BKSE, block_mask=mask, enable_gqa=grouped)  # type: ignore[assignment]
        return out
    is_half = q_BHTE.dtype in (torch.bfloat16, torch.float16)
    if mask is None and is_half and (flash_attention := _flash_attention_3(q_BHTE.device)):
        q, k, v = (x.transpose(1, 2) for x in (q_BHTE, k_BKSE, v_BKSE))
        y = flash_attention(q, k, v, causal=True)
        flash: Tensor = y[0] if isinstance(y, tuple) else y  # some versions also return the log-sum-exp
        return flash.transpose(1, 2)
    return F.scaled_dot_product_attention(q_BHTE, k_BKSE, v_BKSE, mask, is_causal=mask is None, enable_gqa=grouped)


def _attend_once(q_BH1E: Tensor, k_BKSE: Tensor, v_BKSE: Tensor) -> Tensor:
    """Return the attention of one query to all keys, [B, H, 1, E].

    The heads that share keys become query positions of one head, so that no key is read or copied twice.
    """
    q_BKGE = q_BH1E.reshape(*k_BKSE.shape[:2], -1, q_BH1E.shape[-1])
    return F.scaled_dot_product_attention(q_BKGE, k_BKSE, v_BKSE).reshape(q_BH1E.shape)


def without_own_value(y_BHTE: Tensor, v_BKTE: Tensor) -> Tensor:
    """Return each head's output minus its component along the token's own value, [B, H, T, E] (XSA)."""
    batch, heads, *_ = v_BKTE.shape
    y = y_BHTE.reshape(batch, heads, -1, *y_BHTE.shape[2:])
    direction = F.normalize(v_BKTE, dim=-1).unsqueeze(2)
    rest: Tensor = y - (y * direction).sum(-1, keepdim=True) * direction
    return rest.flatten(1, 2)


def rms_norm(x: Tensor) -> Tensor:
    """Return `x` divided by the root mean square of its last axis; eps is that of its dtype."""
    return F.rms_norm(x, (x.shape[-1],))


def rope_table(
    start: int, count: int, config: GPTConfig, device: torch.device, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the rotary embedding's cosines and sines of positions start, start + 1, ... (arXiv 2104.09864).

    Both are float32 [count, R / 2], where R is the number of channels with rotary embedding. `length` is that of the sequence,
    by default start + count; beyond `rope_train_len` the base grows so that the slowest channel turns as far as at that length.
    """
    rotary_dims, base = config.rope_dims or config.head_dim, config.rope_base
    channels = torch.arange(0, rotary_dims, 2, dtype=torch.float32, device=device)
    longer = (length or start + count) / config.rope_train_len if config.rope_train_len else 1.0
    if longer > 1.0:
        base *= longer ** (rotary_dims / (rotary_dims - 2))
    frequencies = 1.0 / base ** (channels / rotary_dims)
    positions = torch.arange(start, start + count, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the rotary embedding of `rope_table` to x [B, heads, T, E].

    Channel pairs (j, j + R / 2) of the first R channels are rotated by minus their angles; R is twice the width of the table.
    """
    cos, sin = rope
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat((a * cos + b * sin, b * cos - a * sin, x[..., 2 * half :]), dim=-1)


def document_mask(ids_BT: Tensor, bos_id: int, *, blocks: bool) -> Tensor | BlockMask:
    """Return where a token attends to another one: not later, and of the same document.

    The mask is bool [B, 1, T, T]; with `blocks` it is that of flex attention, which skips masked blocks.
    """
    document_BT = (ids_BT == bos_id).cumsum(1)
    if blocks:

        def attends(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (document_BT[b, q] == document_BT[b, k])

        batch, length = ids_BT.shape
        return create_block_mask(attends, batch, None, length, length, device=str(ids_BT.device))
    same = document_BT[:, None, :, None] == document_BT[:, None, None, :]
    return same.tril()


def _shifted_causal_mask(count: int, past: int, device: torch.device) -> Tensor:
    """Return where query i, at position past + i, attends, bool [count, past + count]."""
    return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)
