"""The optimizers of a GPT: assign each parameter to one, and do one step of all of them over all processes."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from quantlab.trainer.model import GPT
from quantlab.trainer.muon import Muon, PendingUpdate
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.world import World

CONTROLS = re.compile(r"attn_gate_proj\.weight$|^ve_shared\.proj\.weight$")
"""Names of linear maps that AdamW trains as controls, as the challenge's records do."""


class Optimizers:
    """Muon for matrices; AdamW for tables (embedding, bigrams), the head and all small parameters.

    Each parameter group stores its learning rate before scheduling as "base_lr".
    """

    def __init__(self, model: GPT, config: TrainConfig, world: World) -> None:
        self.world, self.clip = world, config.grad_clip
        tables, matrices, head, controls = _split(model)
        self.muon = Muon(
            matrices,
            lr=config.matrix_lr,
            momentum=config.muon_momentum,
            weight_decay=config.weight_decay,
            normalize_rows=config.muon_normalize_rows,
            polar_express=config.muon_polar_express,
            world=world,
        )
        groups = [
            (controls, config.scalar_lr, config.scalar_weight_decay),
            (tables, config.embed_lr, config.embed_weight_decay),
            (head, config.head_lr, 0.0),
        ]
        adam_groups: list[dict[str, Any]] = [{"params": p, "lr": lr, "weight_decay": wd} for p, lr, wd in groups if p]
        self.adam = AdamW(adam_groups, betas=(config.beta1, config.beta2), eps=config.adam_eps, fused=True)
        for group in self._groups():
            group["base_lr"] = group["lr"]

    @property
    def all(self) -> tuple[Optimizer, Optimizer]:
        """Both optimizers, for a checkpoint."""
        return self.muon, self.adam

    def step(self, lr_multiplier: float, momentum: float, weight_decay: float | None = None) -> None:
        """Update all parameters by their gradients, summed over all processes, and clear the gradients.

        Args:
            lr_multiplier: factor on every learning rate.
            momentum, weight_decay: those of Muon; the weight decay stays as it is for None.
        """
        for group in self._groups():
            group["lr"] = group["base_lr"] * lr_multiplier
        for group in self.muon.param_groups:
            group["momentum"] = momentum
            group["weight_decay"] = group["weight_decay"] if weight_decay is None else weight_decay
        pending, small = self.muon.begin(), self._sum_small()
        scale = self._clip_scale(pending, small()) if self.clip else 1.0
        self.muon.finish(pending, scale)
        self._spread(small(), scale)
        self.adam.step()
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def _groups(self) -> Iterator[dict[str, Any]]:
        yield from (*self.muon.param_groups, *self.adam.param_groups)

    def _small(self) -> list[Tensor]:
        return [p for group in self.adam.param_groups for p in group["params"] if p.grad is not None]

    def _sum_small(self) -> Callable[[], Tensor]:
        """Begin to sum all of AdamW's gradients, as one vector, over all processes."""
        return self.world.sum_(torch.cat([p.grad.flatten() for p in self._small() if p.grad is not None]))

    def _spread(self, summed: Tensor, scale: float | Tensor) -> None:
        at = 0
        for p in self._small():
            p.grad = (summed[at : at + p.numel()] * scale).view_as(p)
            at += p.numel()

    def _clip_scale(self, pending: list[PendingUpdate], small: Tensor) -> Tensor:
        """Return the factor that reduces the global gradient norm to the maximum; 1 if the norm is below it."""
        mine = torch.stack([update.gradients().square().sum() for update in pending]).sum()
        total = self.world.sum_(mine)() + small.square().sum()
        return (self.clip / (total.sqrt() + 1e-6)).clamp_max(1.0)


def _split(model: GPT) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Return tables, matrices, head and controls; parameters without elements are in none of them."""
    tables: list[Tensor] = [model.tok_emb.weight] + ([model.bigram.embed.weight] if model.bigram is not None else [])
    tables += [model.ve_shared.embed.weight] if model.ve_shared is not None else []
    head: list[Tensor] = [] if model.lm_head is None else [model.lm_head.weight]
    taken = {id(p) for p in (*tables, *head)}
    rest = [(n, p) for n, p in model.named_parameters() if id(p) not in taken and p.numel()]
    is_matrix = {n: n.endswith(".weight") and p.ndim == 2 and min(p.shape) > 1 and not CONTROLS.search(n) for n, p in rest}
    return tables, [p for n, p in rest if is_matrix[n]], head, [p for n, p in rest if not is_matrix[n]]
