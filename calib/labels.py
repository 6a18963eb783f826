"""Labels drawn from the model's own predictions, and what is known of gradients at the logits without any draw.

With such labels gradients are those of the true Fisher information. At the logits the gradient of a label y is u · (p - e_y),
so there the mean of its square over labels is known. Everything that is as wide as the vocabulary is computed for a few tokens
at a time: of a batch's logits this module adds one copy.

Legend: N sequences, B those of a batch, T tokens, V vocabulary, O outputs of a matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TINY = 1e-20  # least probability that is divided by: where float32 probabilities underflow to 0, gradients are 0
SLICE_ELEMENTS = 2**20
"""Values in what is computed at a time of [T, V] or [T, O]: few enough to stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's prediction after each token of a batch, and a label drawn from it."""

    g_TV: Tensor
    """Gradient of the cross entropy at the logits, p - e_y, float32 [T, V]."""
    labels_T: Tensor
    """One draw from each row, int64 [T]."""
    p_T: Tensor
    """Probability of each label, float32 [T]."""
    expected_V: Tensor
    """Sum over the batch of the probability of each token, float64 [V]."""

    def probabilities(self, part: slice) -> Tensor:
        """Return the probabilities after the tokens of `part`, float32 [T, V]."""
        return self.g_TV[part].scatter(1, self.labels_T[part, None], self.p_T[part, None])


def label_draws(seed: int, numbers: Sequence[int], length: int) -> Tensor:
    """Return numbers float64 [B, length], uniform in [0, 1), that depend on the seed and a sequence's own number alone.

    So the labels of a sequence are the same in any batch and on any process.
    """
    rows = [np.random.Generator(np.random.Philox(key=[seed, number])).random(length) for number in numbers]
    return torch.from_numpy(np.stack(rows))


def predict(logits_TV: Tensor, draws_T: Tensor) -> Prediction:
    """Return the model's predictions with the label that each draw in [0, 1) picks from the cumulated probabilities."""
    device = logits_TV.device
    g_TV = torch.empty(logits_TV.shape, device=device)
    labels_T = torch.empty(len(g_TV), dtype=torch.int64, device=device)
    p_T, expected_V = torch.empty(len(g_TV), device=device), torch.zeros(g_TV.shape[1], dtype=torch.float64, device=device)
    for part in token_slices(*g_TV.shape):
        p_TV = torch.softmax(logits_TV[part].float(), -1, out=g_TV[part])
        expected_V += p_TV.sum(0)
        labels_T1 = _pick(p_TV, draws_T[part].to(device))
        p_T1 = p_TV.gather(1, labels_T1)
        p_TV.scatter_(1, labels_T1, p_T1 - 1)
        labels_T[part], p_T[part] = labels_T1.squeeze(1), p_T1.squeeze(1)
    return Prediction(g_TV, labels_T, p_T, expected_V)


def _pick(p_TV: Tensor, draws_T: Tensor) -> Tensor:
    """Return the first token of each row whose cumulated probability exceeds the draw, int64 [T, 1]."""
    cumulated_TV = p_TV.cumsum(-1, dtype=torch.float64)
    thresholds_T1 = draws_T[:, None] * cumulated_TV[:, -1:]
    return torch.searchsorted(cumulated_TV, thresholds_T1, right=True).clamp_(max=p_TV.shape[1] - 1)


def is_logits(g_TO: Tensor, prediction: Prediction | None) -> bool:
    """Whether g [T, O] is the loss's gradient at the logits, or before an increasing function of each logit by itself.

    Such functions are a scale, a bias or a softcap. The gradient there is u · (p - e_y) with u >= 0, and the signs show it.
    """
    if prediction is None or g_TO.shape != prediction.g_TV.shape:
        return False
    g_T = g_TO.gather(1, prediction.labels_T[:, None]).squeeze(1)
    negatives = sum(int((g_TO[part] < 0).sum()) for part in token_slices(*g_TO.shape))
    return negatives == int((g_T < 0).sum()) and not bool((g_T > 0).any())


def expected_squares(g_TO: Tensor, prediction: Prediction, part: slice) -> Tensor:
    """Return the mean over labels of the square of a gradient u · (p - e_y) at logits: u² p (1 - p), float32 [T, O].

    Each token counts by its probability, whether it was drawn or not.

    Args:
        g_TO: gradients of the tokens of `part`.
    """
    p_TO = prediction.probabilities(part).clamp_(TINY, 1 - torch.finfo(torch.float32).eps)
    odds_TO = p_TO / (1 - p_TO)
    labels_T1 = prediction.labels_T[part, None]
    odds_T1 = odds_TO.gather(1, labels_T1)
    return odds_TO.reciprocal_().scatter_(1, labels_T1, odds_T1).mul_(g_TO.float().square())


def token_slices(tokens: int, width: int) -> Iterator[slice]:
    """Yield slices of the tokens such that [tokens of a slice, width] has SLICE_ELEMENTS values or is one token."""
    step = max(1, SLICE_ELEMENTS // width)
    for at in range(0, tokens, step):
        yield slice(at, min(at + step, tokens))
