"""Probe whether a model obeys the rules of valid scoring: change what a prediction must not depend on, and compare bits.

Rules: github.com/openai/parameter-golf issue 1017, conditions 1 (causal) and 2 (a normalized distribution over all tokens).
Letters: B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantlab.errors import ConfigError, ShapeError
from quantlab.evaluation.evaluation_record import Probe
from quantlab.evaluation.scoring import device_of, eval_mode, predict

SUM_TOLERANCE = 1e-9
"""Largest error of a sum of probabilities. Rounding in float64 explains 7e-12: each of at most 65,536 terms adds 1.1e-16."""
CUTS = 16
"""Cuts of each row in the flip test: positions from which on the row's tokens are changed."""

Predict = Callable[[Tensor], Tensor]


def run_probes(model: nn.Module, ids_BT: Tensor, *, bos_id: int = 1, seed: int = 0) -> list[Probe]:
    """Run every probe on the same tokens, in eval mode, on the model's device; the model is left as it was.

    Args:
        model: maps ids, int64 [B, T], to logits, floating [B, T, V].
        ids_BT: token ids, int64, two rows or more of two tokens or more; real text reveals more than random ids do.
        bos_id: token that begins each of the two documents of the probe `packed`.
        seed: seed of the tokens that replace others.
    Raises:
        ShapeError: ids or logits have another shape.
        ConfigError: bos_id is not in the vocabulary.
    """
    if ids_BT.ndim != 2 or min(ids_BT.shape) < 2 or ids_BT.dtype != torch.int64:
        raise ShapeError(f"ids must be int64 with 2 rows and 2 tokens or more, got {ids_BT.dtype} {list(ids_BT.shape)}")
    ids_BT = ids_BT.to(device_of(model))
    generator = torch.Generator().manual_seed(seed)

    def logits(ids: Tensor) -> Tensor:
        return predict(model, ids)

    with eval_mode(model):
        vocab_size = logits(ids_BT).shape[-1]
        if not 0 <= bos_id < vocab_size:
            raise ConfigError(f"bos_id must be 0 to {vocab_size - 1}, got {bos_id}")
        return [
            determinism(logits, ids_BT),
            normalization(logits, ids_BT),
            flip(logits, ids_BT, generator),
            rows(logits, ids_BT, generator),
            packed(logits, ids_BT, bos_id),
        ]


def determinism(logits: Predict, ids_BT: Tensor) -> Probe:
    """Test that two calls with the same ids give the same bits."""
    differ, largest = _difference(logits(ids_BT), logits(ids_BT))
    detail = f"{_of(differ)} predictions differ between two calls, logits by {largest:.2g}"
    return Probe(name="determinism", passed=not differ.any(), detail=detail)


def normalization(logits: Predict, ids_BT: Tensor) -> Probe:
    """Test that the probabilities of the whole vocabulary sum to 1, in float64; NaN logits fail."""
    return normalized(logits(ids_BT))


def normalized(logits_BTV: Tensor) -> Probe:
    """Test that the probabilities of these predictions sum to 1."""
    sum_BT = torch.stack([row_TV.double().softmax(-1).sum(-1) for row_TV in logits_BTV])
    error_BT = (sum_BT - 1.0).abs().nan_to_num(nan=math.inf)
    broken = ~(error_BT <= SUM_TOLERANCE)
    text = f"{_of(broken)} sums over {logits_BTV.shape[-1]:,} tokens are not 1, largest error {float(error_BT.max()):.2g}"
    return Probe(name="normalization", passed=not broken.any(), detail=f"{text} (allowed {SUM_TOLERANCE:g})")


def flip(
    logits: Predict,
    ids_BT: Tensor,
    generator: torch.Generator,
    *,
    length_B: Tensor | None = None,
    cuts: int = CUTS,
    tolerance: float = 0.0,
) -> Probe:
    """Test that predictions before position t keep their bits when the tokens from t on change, for many t in every row.

    Args:
        length_B: number of tokens of each row that count; all by default.
        cuts: number of t in a row.
        tolerance: largest difference of logits that counts as none.
    """
    before = logits(ids_BT)
    length_B = torch.full((len(ids_BT),), ids_BT.shape[1]) if length_B is None else length_B
    broken, largest, count, first = 0, 0.0, 0, ""
    for cut_B in _cuts(length_B, cuts):
        column_T = torch.arange(ids_BT.shape[1])
        is_kept_BT = column_T < torch.minimum(cut_B, length_B)[:, None]
        is_same_BT = (column_T < cut_B[:, None]).to(ids_BT.device)
        changed_BT = torch.where(is_same_BT, ids_BT, _others(ids_BT, before.shape[-1], generator))
        differ_BT, gap = _difference(before, logits(changed_BT), is_kept_BT, tolerance)
        if differ_BT.any() and not first:
            row, at = differ_BT.nonzero()[0].tolist()
            first = f"; first: position {at} sees tokens from {int(cut_B[row])} on"
        broken, count, largest = broken + int(differ_BT.sum()), count + int(is_kept_BT.sum()), max(largest, gap)
    detail = f"{broken:,} of {count:,} predictions change with later tokens, logits by {largest:.2g}{first}"
    return Probe(name="flip", passed=broken == 0, detail=detail)


def rows(logits: Predict, ids_BT: Tensor, generator: torch.Generator, *, tolerance: float = 0.0) -> Probe:
    """Test that a row's predictions keep their bits when all other rows change: windows in a batch hold each other's future."""
    before = logits(ids_BT)
    changed_BT = _others(ids_BT, before.shape[-1], generator)
    changed_BT[0] = ids_BT[0]
    differ, largest = _difference(before[:1], logits(changed_BT)[:1], tolerance=tolerance)
    detail = f"{_of(differ)} predictions of a row change with the other rows, logits by {largest:.2g}"
    return Probe(name="rows", passed=not differ.any(), detail=detail)


def packed(logits: Predict, ids_BT: Tensor, bos_id: int) -> Probe:
    """Report how far a document's predictions change when another document stands before it, which is allowed."""
    half = ids_BT.shape[1] // 2  # so that both documents fit a model whose length is limited
    documents = ids_BT[:2, :half].clone()
    documents[:, 0] = bos_id
    alone = logits(documents[1:])
    after = logits(documents.view(1, -1))[:, half:]
    differ, largest = _difference(alone, after)
    p, q = alone.double().log_softmax(-1), after.double().log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    detail = f"{_of(differ)} predictions differ after another document, logits by {largest:.2g}, KL {kl:.2g} nats"
    return Probe(name="packed", passed=None, detail=detail)


def _cuts(length_B: Tensor, most: int) -> list[Tensor]:
    """Return cuts, a tensor [B] with one for each row at a time, all spread evenly from 1 to a row's length - 1."""
    rows = len(length_B)
    total = max(1, min(most, int(length_B.max()) - 1)) * rows
    steps = torch.arange(total).view(-1, rows) * (length_B - 2).clamp_min(0) // max(1, total - 1)
    return list(1 + steps)


def _others(ids_BT: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Return ids that all differ from those in `ids_BT`, unless the vocabulary has only one."""
    step_BT = torch.randint(1, max(2, vocab_size), ids_BT.shape, generator=generator).to(ids_BT.device)
    return (ids_BT + step_BT) % vocab_size


def _difference(a_BTV: Tensor, b_BTV: Tensor, where_BT: Tensor | None = None, tolerance: float = 0.0) -> tuple[Tensor, float]:
    """Return where the logits differ by more than a tolerance, bool [B, T], and the largest difference; NaN equals NaN."""
    gap_BT = torch.stack([_gap(a_TV, b_TV) for a_TV, b_TV in zip(a_BTV, b_BTV, strict=True)]).cpu()  # a row bounds the memory
    if where_BT is not None:
        gap_BT = gap_BT.masked_fill(~where_BT, 0.0)
    return gap_BT > tolerance, float(gap_BT.max())


def _gap(a_TV: Tensor, b_TV: Tensor) -> Tensor:
    """Return the largest difference of logits at each position, float64 [T]; infinity where one is NaN alone."""
    same = (a_TV == b_TV) | (a_TV.isnan() & b_TV.isnan())
    return torch.where(same, 0.0, (a_TV.double() - b_TV.double()).abs().nan_to_num(nan=math.inf)).amax(-1)


def _of(broken: Tensor) -> str:
    return f"{int(broken.sum()):,} of {broken.numel():,}"
