"""Averages of the weights over a run: what is saved is often better than the last step."""

import torch
from torch import Tensor, nn

from quantlab.trainer.config import TrainConfig


class Average:
    """An exponential moving average (ema), or the plain mean of all weights after a share of the run (swa), float32."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config, self.count = config, 0
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters()} if config.average != "none" else {}

    @torch.no_grad()
    def update(self, model: nn.Module, fraction: float) -> None:
        """After a step; `fraction` of the run is done."""
        if self.config.average == "none" or (self.config.average == "swa" and fraction < self.config.swa_from):
            return
        self.count += 1
        share = 1 / self.count if self.config.average == "swa" else 1 - self.config.ema_decay
        parameters = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.weights.values()), [parameters[n].detach() for n in self.weights], share)

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> None:
        """Give the model the average; without one (none, or swa that has not begun) it keeps its weights."""
        if self.count:
            for name, parameter in model.named_parameters():
                parameter.copy_(self.weights[name])

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        weights = {f"average.{name}": weight for name, weight in self.weights.items()}
        return weights | {"average_count": torch.tensor(self.count)} if weights else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.count = int(state.get("average_count", 0))
        for name, weight in self.weights.items():
            weight.copy_(state[f"average.{name}"])
