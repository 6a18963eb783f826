"""The Parameter Golf GPT, from the challenge's baseline to its mid-field models, with exactly their state-dict names.

The maths follow train_gpt.py of github.com/openai/parameter-golf and its record of 2026-04-05: RMSNorm without weights,
grouped-query attention with QK norm and a gain per query head, rotary embedding, a squared MLP, U-Net skips, a mix of each
block's input with the embedding, a logit softcap. `GPTConfig` says which of the later techniques are on.

Letters: B batch, T tokens, D model_dim, K key/value heads, E head_dim, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.errors import ShapeError
from quantlab.kernels.softcap_cross_entropy import softcap_cross_entropy
from quantlab.trainer.attention import Attention, KVCache, document_mask, rms_norm, rope_table
from quantlab.trainer.layers import BigramHash, Linear, SmearGate, ValueEmbedding, initialise_, without_previous
from quantlab.trainer.model_config import GPTConfig, at_least
from quantlab.trainer.packed_layers import PackedEmbedding


class MLP(nn.Module):
    """The MLP of one block, proj(leaky_relu(fc(x))²)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.slope = config.mlp_slope
        self.fc = Linear(config.model_dim, config.mlp_hidden)
        self.proj = Linear(config.mlp_hidden, config.model_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        out: Tensor = self.proj(F.leaky_relu(self.fc(x_BTD), self.slope).square())
        return out


class Block(nn.Module):
    """Attention and MLP, each scaled per channel, on a learned mix of the residual stream and the embedding."""

    def __init__(self, config: GPTConfig, index: int) -> None:
        super().__init__()
        blocks_left = config.num_layers - index
        self.attn, self.mlp = Attention(config, is_exclusive=blocks_left <= config.xsa_last_n), MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.model_dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(config.model_dim), torch.zeros(config.model_dim))))
        self.ln_scale = (index + 1) ** -0.5 if config.ln_scale else 1.0
        self.is_parallel = blocks_left <= config.parallel_last_n

    def forward(self, x: Tensor, x0: Tensor, *about: Any) -> Tensor:
        """Return the new residual stream of stream `x` and embedding `x0`, all [B, T, D]; `about` is what attention takes."""
        mix, attn_scale, mlp_scale = (p.to(x.dtype) for p in (self.resid_mix, self.attn_scale, self.mlp_scale))
        x = mix[0] * x + mix[1] * x0
        read = self.ln_scale * rms_norm(x)
        x = x + attn_scale * self.attn(read, *about)
        if not self.is_parallel:
            read = self.ln_scale * rms_norm(x)
        out: Tensor = x + mlp_scale * self.mlp(read)
        return out

    def outputs(self, lanes: tuple[Tensor, Tensor], x0: Tensor, *about: Any) -> tuple[Tensor, Tensor]:
        """Return what attention makes of the first lane, mixed with the embedding, and the MLP of the second, all [B, T, D]."""
        x, y = lanes
        mix, attn_scale, mlp_scale = (p.to(x.dtype) for p in (self.resid_mix, self.attn_scale, self.mlp_scale))
        attended = self.attn(self.ln_scale * rms_norm(mix[0] * x + mix[1] * x0), *about)
        return attn_scale * attended, mlp_scale * self.mlp(self.ln_scale * rms_norm(y))


class GPT(nn.Module):
    """The language model. All parameters are float32, and their initial values depend on `seed` alone."""

    looping: bool
    """Whether the loops of the config run; training may start without them."""
    table_transform: Callable[[Tensor], Tensor] | None = None
    """If set, the forward pass uses table_transform(embedding), see `Linear.weight_transform`."""
    head_adapter: Callable[[Tensor], Tensor] | None = None
    """If set, head_adapter(stream) is added to the logits before the softcap."""

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.looping = config, True
        table = torch.empty(config.vocab_size, config.table_dim)
        self.tok_emb = nn.Embedding(config.vocab_size, config.table_dim, _weight=table)
        self.embed_proj = Linear(config.embedding_dim, config.model_dim) if config.embedding_dim else None
        self.head_proj = Linear(config.model_dim, config.embedding_dim) if config.embedding_dim else None
        self.smear = SmearGate() if config.smear_gate else None
        buckets = config.bigram_buckets
        self.bigram = BigramHash(buckets, config.bigram_dim, config.model_dim) if buckets else None
        self.skip_weights = nn.Parameter(torch.ones(config.num_skips, config.model_dim))
        self.skip_gates = nn.Parameter(torch.zeros(config.num_skips, config.model_dim)) if config.skip_gates else None
        self.parallel_post_lambdas: nn.Parameter | None = None
        self.parallel_resid_lambdas: nn.Parameter | None = None
        if config.lanes_from:
            self.parallel_post_lambdas = nn.Parameter(torch.ones(config.num_layers, 2, 2))
            self.parallel_resid_lambdas = nn.Parameter(torch.full((config.num_layers, 2), 1.1))
        self.ve_shared: ValueEmbedding | None = None
        self.ve_layer_scales = nn.ParameterList()
        if config.value_dim:
            self.ve_shared = ValueEmbedding(config.vocab_size, config.value_dim, config.num_kv_heads * config.head_dim)
            self.ve_layer_scales.extend(nn.Parameter(torch.ones(1)) for _ in range(config.value_last_n))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.lm_head = None if config.tie_embeddings else Linear(config.table_dim, config.vocab_size)
        initialise_(self, torch.Generator().manual_seed(seed))

    def forward(self, ids: Tensor, cache: KVCache | None = None, *, by_document: bool = False) -> Tensor:
        """Return the logits of the next token at each position.

        Args:
            ids: int64 [B, T], each below vocab_size.
            cache: keys and values of the tokens before; the T new tokens are appended to it.
            by_document: whether tokens attend only within their own document, which BOS begins; otherwise to all before them.
        Returns:
            float32 [B, T, V], within ±logit_softcap.
        Raises:
            ShapeError: ids is not a filled matrix, or does not fit the cache.
        """
        logits, softcap = self._logits(self._stream(ids, cache, by_document)), self.config.logit_softcap
        return softcap * torch.tanh(logits.float() / softcap)

    def losses(self, ids: Tensor, targets: Tensor, rows: Tensor | None = None, *, by_document: bool = False) -> Tensor:
        """Return the loss of each target in nats, by the logits of `forward`, which a GPU never holds in float32.

        Args:
            ids, by_document: as in `forward`.
            targets: int64 [N], each below vocab_size.
            rows: the predictions that the targets belong to, as indices into B * T in row-major order, int64 [N]; None for all.
        Returns:
            float32 [N].
        Raises:
            ShapeError: ids is not a filled matrix, or there are not as many targets as rows.
        """
        x_ND = self._stream(ids, None, by_document).flatten(0, 1)
        x_ND = x_ND if rows is None else x_ND[rows]
        return softcap_cross_entropy(self._logits(x_ND), targets, self.config.logit_softcap)

    def _stream(self, ids: Tensor, cache: KVCache | None, by_document: bool) -> Tensor:
        """Return the normalized residual stream that the head reads, [B, T, D]."""
        _check_ids(ids, cache)
        past = 0 if cache is None else cache.position
        rope = rope_table(past, ids.shape[1], self.config, ids.device, None if cache is None else cache.length)
        mask = document_mask(ids, self.config.bos_id, blocks=ids.is_cuda) if by_document else None
        values = None if self.ve_shared is None else self.ve_shared(ids)
        x = x0 = self._embed(ids, cache)
        y: Tensor | None = None  # the second lane
        order = self.config.order(looping=self.looping)
        skips: list[Tensor] = []
        for n, i in enumerate(order):
            is_late = n >= len(order) // 2
            about = (rope, n, cache, mask, self._values_of(i, values))
            if is_late and self.config.lanes_from and i >= self.config.lanes_from:
                y = x if y is None else y
            if is_late and skips:
                x = self._mix_in(skips.pop(), x, n - len(order) // 2)
            if y is not None:
                x, y = self._mix_lanes(i, (x, y), self.blocks[i].outputs((x, y), x0, *about))  # type: ignore[operator]
                continue
            x = self.blocks[i](x, x0, *about)
            if not is_late:
                skips.append(x)
        if cache is not None:
            cache.position += ids.shape[1]
        return rms_norm(x if y is None else self._final(x, y))

    def _values_of(self, block: int, values: Tensor | None) -> Tensor | None:
        """Return what is added to a block's values, [B, T, K · E], or None."""
        at = block - (self.config.num_layers - self.config.value_last_n)
        return None if values is None or at < 0 else self.ve_layer_scales[at].to(values.dtype) * values

    def _mix_lanes(self, block: int, lanes: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return both lanes after a block: each its own share, and learned shares of the outputs of attention and MLP."""
        assert self.parallel_post_lambdas is not None and self.parallel_resid_lambdas is not None
        post, kept = (p[block].to(lanes[0].dtype) for p in (self.parallel_post_lambdas, self.parallel_resid_lambdas))
        attended, mapped = outputs
        x, y = (kept[lane] * lanes[lane] + post[0, lane] * attended + post[1, lane] * mapped for lane in (0, 1))
        return x, y

    def _final(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the stream that the head reads of two lanes."""
        return {"mean": 0.5 * (x + y), "attn": x, "mlp": y}[self.config.final_lane]

    def _embed(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        count = ids.shape[1]
        if cache is not None:
            ids = cache.with_previous(ids)
        x: Tensor = self.tok_emb(ids) if self.table_transform is None else F.embedding(ids, self._table())
        is_first = without_previous(ids, self.config.bos_id)
        if self.bigram is not None:
            x = x + self.bigram(ids, is_first)
        if self.smear is not None:
            x = self.smear(x, is_first)
        x = rms_norm(x)[:, -count:]
        return x if self.embed_proj is None else self.embed_proj(x)

    def _table(self) -> Tensor:
        table: Tensor = self.tok_emb.weight
        return table if self.table_transform is None else self.table_transform(table)

    def _mix_in(self, skip: Tensor, x: Tensor, at: int) -> Tensor:
        scaled = self.skip_weights[at].to(x.dtype) * skip
        if self.skip_gates is None:
            return x + scaled
        return torch.lerp(scaled, x, torch.sigmoid(self.skip_gates[at]).to(x.dtype).expand_as(x))

    def _logits(self, x: Tensor) -> Tensor:
        """Return logits before the softcap, in the product's own dtype, [..., D] -> [..., V]."""
        logits = self._own_logits(x)
        return logits if self.head_adapter is None else logits + self.head_adapter(x)

    def _own_logits(self, x: Tensor) -> Tensor:
        x = x if self.head_proj is None else self.head_proj(x)
        if self.lm_head is not None:
            logits: Tensor = self.lm_head(x)
            return logits
        if isinstance(self.tok_emb, PackedEmbedding):  # see packed.py
            return self.tok_emb.product(x)
        return F.linear(x, self._table().to(x.dtype))

    def new_cache(self, batch: int, length: int) -> KVCache:
        """Return an empty cache for `batch` sequences of up to `length` tokens, on the model's device.

        Its dtype is that of the keys: autocast's where that is on, otherwise the model's.

        Raises:
            ConfigError: batch or length is below 1.
        """
        at_least("batch", batch, 1)
        at_least("length", length, 1)
        c, like = self.config, self.skip_weights
        shape = (len(c.order(looping=self.looping)), batch, c.num_kv_heads, length, c.head_dim)
        is_autocast = torch.is_autocast_enabled(like.device.type)
        dtype = torch.get_autocast_dtype(like.device.type) if is_autocast else like.dtype
        keys, values = (torch.zeros(shape, dtype=dtype, device=like.device) for _ in range(2))
        return KVCache(keys, values, torch.zeros(batch, length, dtype=torch.int64, device=like.device))


def _check_ids(ids: Tensor, cache: KVCache | None) -> None:
    if ids.ndim != 2 or ids.numel() == 0 or ids.dtype != torch.int64:
        raise ShapeError(f"ids must be int64 [batch, tokens] and not empty, got {ids.dtype} {list(ids.shape)}")
    if cache is None:
        return
    if cache.keys.shape[1] != ids.shape[0]:
        raise ShapeError(f"the cache is for a batch of {cache.keys.shape[1]}, got ids {list(ids.shape)}")
    if cache.position + ids.shape[1] > cache.length:
        raise ShapeError(f"{ids.shape[1]} tokens do not fit a cache of {cache.length} that holds {cache.position}")
