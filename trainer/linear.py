"""A linear map without bias, whose weight the forward pass may see through a function: quantization-aware training."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """y = x Wᵀ. Its memory is left unset: `GPT` draws every weight from its own generator."""

    seen_as: Callable[[Tensor], Tensor] | None = None
    """If set, the forward pass uses seen_as(weight); the weight itself is what is stored and trained."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Does nothing, so that no global random state is touched."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return F.linear(input, self.weight if self.seen_as is None else self.seen_as(self.weight))
