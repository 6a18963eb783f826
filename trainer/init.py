"""The first values of a GPT's weights, drawn from one generator."""

import torch
from torch import Tensor, nn

from quantlab.trainer.linear import Linear
from quantlab.trainer.model_config import GPTConfig

MIN_ORTHOGONAL = 64
"""A matrix with a shorter side than this keeps torch's own draw."""


@torch.no_grad()
def initialise_(model: nn.Module, generator: torch.Generator) -> None:
    """Fill the embedding and every `Linear` of a GPT; what feeds the stream (proj, lm_head, gates) starts at 0."""
    config: GPTConfig = model.config  # type: ignore[assignment]
    std = config.tied_embed_init_std if config.tie_embeddings else 1.0
    model.get_parameter("tok_emb.weight").normal_(0.0, std, generator=generator)
    for name, module in model.named_modules():
        if not isinstance(module, Linear):
            continue
        if name.endswith(("proj", "lm_head", "gate")) and name != "bigram.proj":
            module.weight.zero_()
        else:
            _draw_(module.weight, config.init, generator)


def _draw_(weight_OI: Tensor, kind: str, generator: torch.Generator) -> None:
    rows, columns = weight_OI.shape
    if kind == "uniform" or min(rows, columns) < MIN_ORTHOGONAL:
        bound = columns**-0.5  # nn.Linear's own default
        weight_OI.uniform_(-bound, bound, generator=generator)
        return
    gain = (rows / columns) ** 0.5 if kind == "spectral" else 1.0
    nn.init.orthogonal_(weight_OI, gain=gain, generator=generator)
