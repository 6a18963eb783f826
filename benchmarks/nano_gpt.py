"""A GPT-2 block stack with AdamW and a cosine schedule, as most people would write it: the peer of the trainer's benchmark.

After the well-known minimal loop (github.com/karpathy/nanoGPT): learned positions, LayerNorm, GELU, tied head, weights from
N(0, 0.02), weight decay 0.1 on matrices, gradients clipped to 1.
"""

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = Callable[[int], tuple[Tensor, Tensor]]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        q, k, v = self.qkv(self.norm_1(x_BTD)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x_BTD = x_BTD + self.out(y)
        return x_BTD + self.down(F.gelu(self.up(self.norm_2(x_BTD))))


class NanoGPT(nn.Module):
    """A model that maps ids [B, T] to logits [B, T, V]."""

    def __init__(self, *, vocab: int, layers: int, width: int, heads: int, hidden: int, length: int, seed: int = 0) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    scale = 0.02 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                    p.normal_(0.0, scale, generator=generator)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x = self.tokens(ids_BT) + self.positions.weight[: ids_BT.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def train(model: NanoGPT, batch: Batch, *, seconds: float, lr: float, micro: int, warmup: float = 0.05) -> tuple[int, float]:
    """Train with AdamW for `seconds`, warmup over a share of them, then cosine; return steps done and seconds taken."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
    started, step = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        done = elapsed / seconds
        rate = lr * min(0.02 + done / warmup, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = batch(step)
        for ids, targets in zip(x.split(micro), y.split(micro), strict=True):
            loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()) * (len(ids) / len(x))
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    return step, elapsed
