"""Layers of the GPT beside attention, and the initial values of its weights.

`Linear` is a linear map without bias. `SmearGate` and `BigramHash` add to an embedding what the token before it tells.

Letters: B batch, T tokens, D model_dim, O outputs, I inputs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.trainer.model_config import SMEAR_WINDOW, GPTConfig

MIN_ORTHOGONAL = 64
"""A matrix with a shorter side than this is initialised as torch does it."""


class Linear(nn.Linear):
    """Linear map y = x Wᵀ. Its memory is left unset, because `GPT` draws every weight from its own generator."""

    weight_transform: Callable[[Tensor], Tensor] | None = None
    """If set, the forward pass uses weight_transform(weight); the weight itself is stored and trained."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Do nothing, so that no global random state is touched."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., I] to [..., O]."""
        return F.linear(input, self.weight if self.weight_transform is None else self.weight_transform(self.weight))


class SmearGate(nn.Module):
    """Adds a share of the previous token's embedding: x[t] + λ · sigmoid(w · x[t, :12]) · x[t - 1], with λ starting at 0.

    Nothing is added from another document.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = Linear(SMEAR_WINDOW, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD: Tensor, is_first_BT: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]; `is_first_BT` marks tokens without a previous one in their document."""
        share_BT1 = self.scale.to(x_BTD.dtype) * torch.sigmoid(self.gate(x_BTD[..., :SMEAR_WINDOW]))
        return x_BTD + share_BT1 * previous(x_BTD).masked_fill(is_first_BT[..., None], 0.0)


class ValueEmbedding(nn.Module):
    """Second embedding of the tokens, mapped to the width of the values; the map starts at 0."""

    def __init__(self, vocab_size: int, width: int, kv_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width, _weight=torch.zeros(vocab_size, width))
        self.proj = Linear(width, kv_dim)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Map ids [B, T] to [B, T, K · E]."""
        out: Tensor = self.proj(self.embed(ids_BT))
        return self.scale.to(out.dtype) * out


class BigramHash(nn.Module):
    """Table of hashed pairs (previous token, token), projected to the width of the stream; it starts at 0."""

    weight_transform: Callable[[Tensor], Tensor] | None = None
    """If set, the forward pass uses weight_transform(table), see `Linear.weight_transform`."""

    def __init__(self, buckets: int, width: int, model_dim: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.embed = nn.Embedding(buckets, width, _weight=torch.zeros(buckets, width))
        self.proj = Linear(width, model_dim)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, ids_BT: Tensor, is_first_BT: Tensor) -> Tensor:
        """Map ids [B, T] to [B, T, D]; a token without a previous one uses the last row."""
        pairs_BT = torch.bitwise_xor(36313 * ids_BT, 27191 * previous(ids_BT)) % (self.buckets - 1)
        rows_BT = pairs_BT.masked_fill(is_first_BT, self.buckets - 1)
        pairs = (
            self.embed(rows_BT)
            if self.weight_transform is None
            else F.embedding(rows_BT, self.weight_transform(self.embed.weight))
        )
        out: Tensor = self.proj(pairs)
        return self.scale.to(out.dtype) * out


def previous(x: Tensor) -> Tensor:
    """Return x [B, T, ...] shifted one token later; position 0 repeats itself."""
    return torch.cat((x[:, :1], x[:, :-1]), dim=1)


def without_previous(ids_BT: Tensor, bos_id: int) -> Tensor:
    """Return where no token of the same document comes before, bool [B, T]."""
    is_first_BT = ids_BT == bos_id
    is_first_BT[:, 0] = True
    return is_first_BT


@torch.no_grad()
def initialise_(model: nn.Module, generator: torch.Generator) -> None:
    """Fill the embedding and every `Linear` of a GPT; projections into the stream, lm_head and gates start at 0."""
    config: GPTConfig = model.config  # type: ignore[assignment]
    std = config.tied_embed_init_std if config.tie_embeddings else 1.0
    model.get_parameter("tok_emb.weight").normal_(0.0, std, generator=generator)
    if config.embed_power_law:
        _shape_spectrum_(model.get_parameter("tok_emb.weight"))
    if config.mix_by_depth:
        _mix_by_depth_(model, config)
    for name, parameter in model.named_parameters():
        is_full_gate = config.attn_gate == "full" and name.endswith("attn_gate_w")
        if is_full_gate or name == "ve_shared.embed.weight":
            parameter.normal_(0.0, 0.01, generator=generator)
    for name, module in model.named_modules():
        if not isinstance(module, Linear):
            continue
        if name.endswith(("proj", "lm_head", "gate")) and name not in ("bigram.proj", "embed_proj", "head_proj"):
            module.weight.zero_()
        else:
            _draw_(module.weight, config.init, generator)


def _shape_spectrum_(table_VD: Tensor) -> None:
    """Give a table the singular values s, s / √2, s / √3 and so on, where s is its largest one (record of pull request 60)."""
    u, s, vh = torch.linalg.svd(table_VD, full_matrices=False)
    table_VD.copy_((u * (s[0] * torch.arange(1, len(s) + 1, dtype=s.dtype) ** -0.5)) @ vh)


def _mix_by_depth_(model: nn.Module, config: GPTConfig) -> None:
    """Let block i begin with share σ(3 i / (L - 1) - 1.5) of the stream and the rest of the embedding (the same record)."""
    for i in range(config.num_layers):
        share = torch.sigmoid(torch.tensor(3.0 * (i / max(config.num_layers - 1, 1) - 0.5)))
        mix_2D = model.get_parameter(f"blocks.{i}.resid_mix")
        mix_2D[0], mix_2D[1] = share, 1.0 - share


def _draw_(weight_OI: Tensor, kind: str, generator: torch.Generator) -> None:
    rows, columns = weight_OI.shape
    if kind == "uniform" or min(rows, columns) < MIN_ORTHOGONAL:
        bound = columns**-0.5  # the default of nn.Linear
        weight_OI.uniform_(-bound, bound, generator=generator)
        return
    gain = (rows / columns) ** 0.5 if kind == "spectral" else 1.0
    nn.init.orthogonal_(weight_OI, gain=gain, generator=generator)
