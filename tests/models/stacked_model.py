"""A small model with every kind of weight, as a user's file: stacked experts, a kernel, a head equal to the embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, VOCABULARY, EXPERTS = 64, 64, 4


class Stacked(nn.Module):
    """Maps ids [B, T] to logits [B, T, V]; the last expert is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCABULARY, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3)
        self.experts = nn.Parameter(torch.empty(EXPERTS, WIDTH, WIDTH))
        self.A_log = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Parameter(torch.empty(VOCABULARY, WIDTH))

    def forward(self, ids_BT: Tensor) -> Tensor:
        x = torch.tanh(self.emb(ids_BT))
        x = x + torch.tanh(self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2))
        routes = ids_BT % (EXPERTS - 1)
        for expert in range(EXPERTS - 1):
            at = routes == expert
            x = x.masked_scatter(at[..., None], x[at] + torch.tanh(x[at] @ self.experts[expert].T))
        x = x * torch.exp(-self.A_log.exp().mean(0))
        return 4 * self.norm(x) @ self.head.T


def random_stacked() -> Stacked:
    """Return the model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stacked()
        with torch.no_grad():
            for parameter in (model.emb.weight, model.experts, model.A_log):
                parameter.normal_(0, WIDTH**-0.5)
            model.head.copy_(model.emb.weight)
    return model.eval()


def factory(state: dict[str, Tensor]) -> nn.Module:
    """Return the model with the weights of a state dict."""
    model = Stacked()
    model.load_state_dict(state)
    return model
