"""The difference that adaptation makes, with an interval over documents.

Letters: N tokens of the stream, D documents.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from quantlab.evaluation.evaluation_record import Gain
from quantlab.evaluation.scoring import Score


def gain_of(
    adapted: NDArray[np.float32], plain: NDArray[np.float32], stream: NDArray[np.integer], bos_id: int, score: Score
) -> Gain:
    """Return the gain of adaptation, whose interval treats documents as drawn at random.

    Args:
        adapted, plain: loss of the token at each position, [N], NaN where none is scored.
        stream: the tokens, [N]; BOS begins a document.
        score: the plain score.
    """
    is_scored = ~np.isnan(plain)
    document = np.cumsum(stream == bos_id)[is_scored]
    difference = (adapted[is_scored].astype(np.float64)) - plain[is_scored].astype(np.float64)
    sums_D, counts_D = np.bincount(document, difference).astype(np.float64), np.bincount(document)
    sums_D, counts_D = sums_D[counts_D > 0], counts_D[counts_D > 0]
    mean = float(sums_D.sum() / counts_D.sum())
    low, high = _interval(mean, sums_D, counts_D)
    return Gain(
        plain_bpb=score.val_bpb,
        plain_loss=score.val_loss,
        loss_difference=mean,
        loss_difference_low=low,
        loss_difference_high=high,
        documents=len(counts_D),
    )


def _interval(mean: float, sums_D: NDArray[np.float64], counts_D: NDArray[np.int64]) -> tuple[float, float] | tuple[None, None]:
    """Return the ends of the 95 % interval of a ratio of sums over documents; none for a single document."""
    D = len(counts_D)
    if D < 2:
        return None, None
    residual = sums_D - mean * counts_D
    error = math.sqrt(float((residual**2).sum()) * D / (D - 1)) / float(counts_D.sum())
    half = float(t.ppf(0.975, D - 1)) * error
    return mean - half, mean + half
