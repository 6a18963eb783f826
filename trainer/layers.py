"""A linear map without bias, whose weight the forward pass may see through a function: quantization-aware training.

What a token starts as: its row of the table, and what the token before it adds.

Letters: B batch, T tokens, D model_dim.


The first values of a GPT's weights, drawn from one generator."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.trainer.model_config import SMEAR_WINDOW, GPTConfig


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


class SmearGate(nn.Module):
    """x[t] + λ · sigmoid(w · x[t, :12]) · x[t - 1]; λ starts at 0. Nothing comes over from another document."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Linear(SMEAR_WINDOW, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD: Tensor, is_first_BT: Tensor) -> Tensor:
        """`is_first_BT`: tokens without a previous one. [B, T, D] -> [B, T, D]."""
        share_BT1 = self.scale.to(x_BTD.dtype) * torch.sigmoid(self.gate(x_BTD[..., :SMEAR_WINDOW]))
        return x_BTD + share_BT1 * previous(x_BTD).masked_fill(is_first_BT[..., None], 0.0)


class BigramHash(nn.Module):
    """A table of hashed pairs (previous token, token), projected to the stream's width; it starts at 0."""

    seen_as: Callable[[Tensor], Tensor] | None = None
    """If set, the forward pass uses seen_as(table), see `Linear.seen_as`."""

    def __init__(self, buckets: int, width: int, model_dim: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.embed = nn.Embedding(buckets, width, _weight=torch.zeros(buckets, width))
        self.proj = Linear(width, model_dim)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, ids_BT: Tensor, is_first_BT: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]; a token without a previous one has the last row."""
        pairs_BT = torch.bitwise_xor(36313 * ids_BT, 27191 * previous(ids_BT)) % (self.buckets - 1)
        rows_BT = pairs_BT.masked_fill(is_first_BT, self.buckets - 1)
        pairs = self.embed(rows_BT) if self.seen_as is None else F.embedding(rows_BT, self.seen_as(self.embed.weight))
        out: Tensor = self.proj(pairs)
        return self.scale.to(out.dtype) * out


def previous(x: Tensor) -> Tensor:
    """x [B, T, ...] one token later; position 0 repeats itself."""
    return torch.cat((x[:, :1], x[:, :-1]), dim=1)


def without_previous(ids_BT: Tensor, bos_id: int) -> Tensor:
    """True where no token of the same document comes before: bool [B, T]."""
    is_first_BT = ids_BT == bos_id
    is_first_BT[:, 0] = True
    return is_first_BT


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
