"""Adapters of low rank (LoRA, arXiv 2106.09685) on the linear maps of any model, one for each document of a batch.

They are hooks, so the model's own forward pass is the only one there is, and packed weights stay packed.

Letters: N documents, n those that are read now, T tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.errors import ConfigError
from quantlab.evaluation.adaptation_config import LoraAdaptation
from quantlab.models.loading import frozen
from quantlab.trainer.model import GPT
from quantlab.trainer.packed_layers import PackedLinear

MIN_SIDE = 16
"""Linear maps with fewer inputs or outputs, such as gates, have no adapter."""


class Adapters:
    """The adapters of N documents. They change nothing until a step has been taken, for every B is 0."""

    def __init__(self, model: nn.Module, count: int, config: LoraAdaptation) -> None:
        """Make adapters for `count` documents. ConfigError for a model without a linear map that could have one."""
        self.model, self.rows = model, torch.arange(count)
        self._scale = config.alpha / config.rank
        device = next(model.parameters(), torch.empty(0)).device
        generator = torch.Generator().manual_seed(config.seed)
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (O, I) in _places(model).items():
            a_RI = (torch.rand(config.rank, I, generator=generator) * 2 - 1) * I**-0.5
            a_NRI = a_RI.expand(count, -1, -1).clone().to(device).requires_grad_()
            self._pairs[name] = a_NRI, torch.zeros(count, O, config.rank, device=device, requires_grad=True)
        self.optimizer = torch.optim.AdamW(
            [tensor for pair in self._pairs.values() for tensor in pair],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=1e-10,
            weight_decay=config.weight_decay,
        )

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Add the adapters to the model inside the block, whose own weights are frozen there."""
        handles = []
        try:
            with frozen(self.model):
                for name, module in self.model.named_modules():
                    if name in self._pairs:
                        handles.append(module.register_forward_hook(self._hook(name)))
                if HEAD in self._pairs and isinstance(self.model, GPT):
                    self.model.head_adapter = lambda x: self._delta(HEAD, x)
                yield
        finally:
            for handle in handles:
                handle.remove()
            if isinstance(self.model, GPT):
                self.model.head_adapter = None

    def step(self, loss: Tensor) -> None:
        """Take one step of the optimizer; the gradient of each document's adapters is that of its own share of the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _hook(self, name: str) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return out + self._delta(name, args[0])

        return add

    def _delta(self, name: str, x: Tensor) -> Tensor:
        """Return what the adapters add for x [n, T, I], in its dtype; with one document x may have any shape [..., I]."""
        a_NRI, b_NOR = self._pairs[name]
        if x.ndim != 3 or len(x) != len(self.rows):
            if len(self.rows) > 1:
                shape = f"{name} reads {list(x.shape)}, not [documents, tokens, channels]"
                raise ConfigError(f"adapters cannot tell the documents apart: {shape}", hint="set documents=1")
            row = int(self.rows[0])
            return self._scale * ((x @ a_NRI[row].mT.to(x.dtype)) @ b_NOR[row].mT.to(x.dtype))
        if len(self.rows) < len(a_NRI):
            rows = self.rows.to(x.device)
            a_NRI, b_NOR = a_NRI[rows], b_NOR[rows]
        return self._scale * ((x @ a_NRI.mT.to(x.dtype)) @ b_NOR.mT.to(x.dtype))


HEAD = "(head)"
"""Name of the adapter beside a tied embedding, which is no module's output."""


def _places(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the outputs and inputs of every linear map that gets an adapter, by name."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = module.out_features, module.in_features
        elif isinstance(module, PackedLinear):
            found[name] = module.packed.shape
    if isinstance(model, GPT) and model.lm_head is None:
        found[HEAD] = model.config.vocab_size, model.config.model_dim
    found = {name: shape for name, shape in found.items() if min(shape) >= MIN_SIDE}
    if not found:
        raise ConfigError("the model has no linear map that could have an adapter", hint="adapt it with ttt sgd")
    return found
