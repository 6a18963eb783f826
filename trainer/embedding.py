"""What a token starts as: its row of the table, and what the token before it adds.

Letters: B batch, T tokens, D model_dim.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.trainer.linear import Linear
from quantlab.trainer.model_config import SMEAR_WINDOW


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
