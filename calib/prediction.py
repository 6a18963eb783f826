"""What a model predicts while it is measured, and labels drawn from that: the gradients of the true Fisher information."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-20  # float32 probabilities that underflow to 0 have gradients of 0: nothing to divide


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of each token of a batch."""

    p_TV: Tensor
    """Probabilities, float32 [T, V]."""
    labels_T: Tensor
    """One draw from each row, int64 [T]."""


def sample_labels(logits_BTV: Tensor, generator: torch.Generator) -> tuple[Prediction, Tensor]:
    """The model's predictions, a label drawn from each, and the cross entropy summed over tokens."""
    logits_TV = logits_BTV.flatten(0, -2).float()
    probabilities = logits_TV.detach().softmax(-1).cpu()
    labels_T = torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(logits_TV.device)
    loss = F.cross_entropy(logits_TV, labels_T, reduction="sum")
    return Prediction(probabilities.to(logits_TV.device), labels_T), loss


def is_logits(g_TO: Tensor, prediction: Prediction | None) -> bool:
    """Whether g [T, O] is the loss's gradient at the logits, or before an increasing function of each logit by itself (a
    scale, a bias, a softcap): there it is u · (p - e_y) with u >= 0, and the signs say so."""
    if prediction is None or g_TO.shape != prediction.p_TV.shape:
        return False
    g_T = g_TO.gather(1, prediction.labels_T[:, None]).squeeze(1)
    negative_T = (g_TO < 0).sum(1) - (g_T < 0).int()
    return not bool(negative_T.any()) and not bool((g_T > 0).any())


def expected_squares(g_TO: Tensor, prediction: Prediction) -> Tensor:
    """Over labels, of a gradient u · (p - e_y) at logits: u² p (1 - p), [T, O]. Each token counts by how likely it is, drawn or
    not."""
    p_TO = prediction.p_TV.clamp(TINY, 1 - torch.finfo(torch.float32).eps)
    odds_TO = p_TO / (1 - p_TO)
    labels_T1 = prediction.labels_T[:, None]
    return g_TO.square() * (1 / odds_TO).scatter(1, labels_T1, odds_TO.gather(1, labels_T1))
