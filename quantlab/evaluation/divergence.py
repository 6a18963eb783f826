"""Measure how far one model's predictions are from another's on the same tokens.

The result is far less noisy than a difference of two losses: both models predict every token, and the divergence does not
depend on the label.

Letters: N sequences, B sequences in a batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantlab.errors import DataError, QuantlabError, ShapeError
from quantlab.evaluation.scoring import device_of

Z95 = 1.959964
"""Half-width of a 95 % normal interval, in standard errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """A model compared with a reference over the same tokens."""

    tokens: int
    """Positions compared."""
    kl_mean: float
    """Mean over positions of KL(reference ‖ model), nats."""
    kl_q99: float
    """99th percentile over positions, nats."""
    top1_flips: float
    """Share of positions whose most likely token differs."""
    reference_loss: float
    """Mean loss of the reference on the true next tokens, nats per token."""
    loss_difference: float
    """Mean loss of the model minus that of the reference on the true next tokens, nats per token."""
    loss_difference_low: float
    """Lower end of the difference's 95 % interval: paired by token, standard error over whole sequences."""
    loss_difference_high: float
    """Upper end of that interval."""

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields by name, for JSON."""
        return asdict(self)


def measure_divergence(
    reference: nn.Module,
    model: nn.Module,
    tokens: NDArray[np.integer],
    *,
    seq_len: int = 1024,
    batch_tokens: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> Divergence:
    """Run both models over `tokens` in sequences that do not overlap, and compare their predictions.

    Args:
        reference, model: map ids int64 [B, T] to logits [B, T, V] of the same vocabulary; both in eval mode, on one device.
        tokens: token ids, a vector of M; (M - 1) // seq_len sequences are compared, at least two.
        seq_len: T.
        batch_tokens: largest number of tokens in one call of the models, but at least one sequence. It is small because memory
            allocators return larger float64 logits to the system after every batch, and the page faults cost as much time as
            the models.
        progress: called with (sequences done, sequences in all).
    Raises:
        DataError: there are fewer than two sequences.
        ShapeError: the models have different vocabularies.
        QuantlabError: a prediction is not finite.
    """
    count = (len(tokens) - 1) // seq_len
    if count < 2:
        raise DataError(
            f"{len(tokens):,} tokens are too few: a comparison needs two sequences of {seq_len:,} and one token more"
        )
    stream = torch.from_numpy(tokens[: count * seq_len + 1].astype(np.int64))
    x_NT, y_NT = stream[:-1].view(count, seq_len), stream[1:].view(count, seq_len)
    step, device, parts = max(1, batch_tokens // seq_len), device_of(model), []
    with torch.inference_mode():
        for at in range(0, count, step):
            x_BT, y_BT = x_NT[at : at + step].to(device), y_NT[at : at + step].to(device)
            parts.append([column.cpu() for column in _compare_batch(reference(x_BT), model(x_BT), y_BT)])
            if progress:
                progress(min(at + step, count), count)
    return _summary(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _compare_batch(reference_BTV: Tensor, model_BTV: Tensor, y_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return KL, whether the top token flips, the reference's loss and the loss difference, each float64 [B, T], in nats."""
    if reference_BTV.shape != model_BTV.shape:
        shapes = f"{list(model_BTV.shape)} and {list(reference_BTV.shape)}"
        raise ShapeError(f"the model and its reference must have one vocabulary, their logits are {shapes}")
    p, q = reference_BTV.double().log_softmax(-1), model_BTV.double().log_softmax(-1)
    kl_BT = (p.exp() * (p - q)).sum(-1)
    p_BT, q_BT = (x.gather(-1, y_BT[..., None]).squeeze(-1) for x in (p, q))
    return kl_BT, (p.argmax(-1) != q.argmax(-1)).double(), -p_BT, p_BT - q_BT


def _summary(kl_NT: Tensor, flips_NT: Tensor, loss_NT: Tensor, difference_NT: Tensor) -> Divergence:
    if not bool(torch.isfinite(kl_NT).all()):
        raise QuantlabError(f"{int((~torch.isfinite(kl_NT)).sum()):,} of {kl_NT.numel():,} predictions are not finite")
    by_sequence = difference_NT.mean(1)
    error = float(by_sequence.std()) / math.sqrt(len(by_sequence))
    mean = float(difference_NT.mean())
    return Divergence(
        tokens=kl_NT.numel(),
        kl_mean=float(kl_NT.mean()),
        kl_q99=float(np.quantile(kl_NT.numpy(), 0.99)),
        top1_flips=float(flips_NT.mean()),
        reference_loss=float(loss_NT.mean()),
        loss_difference=mean,
        loss_difference_low=mean - Z95 * error,
        loss_difference_high=mean + Z95 * error,
    )
