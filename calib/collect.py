"""Measure the statistics of every matrix in one pass over calibration tokens."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.calib.fisher import Use
from quantlab.calib.statistics import Statistics
from quantlab.calib.watch import FisherSums, Sums, Watcher, sample_labels
from quantlab.errors import QuantlabError, ShapeError, StatisticsError, first_line

BATCH_TOKENS = 2048
PRIOR = 0.5
"""Sightings that every row of a table or head is given: a token that the sample misses is rare, not worthless (Krichevsky and
Trofimov 1981)."""

Progress = Callable[[int, int], None]


def collect(
    model: nn.Module,
    ids_NT: Tensor,
    shapes: dict[str, tuple[int, ...]],
    *,
    model_fingerprint: str,
    source: dict[str, Any],
    seed: int = 0,
    plain: bool = True,
    progress: Progress | None = None,
) -> Statistics:
    """Hessians and output gradients of the matrices in `shapes`, labels drawn from the model's own softmax (true Fisher).

    Args:
        model: maps ids [B, T] int64 to logits [B, T, V]; its parameters carry the names in `shapes`.
        ids_NT: calibration sequences, int64 [N, T].
        shapes: [O, I] by name, of the matrices to measure.
        model_fingerprint, source: kept in the result.
        seed: of the labels.
        plain: measure what the classic methods need too; without it `products` stays empty, a third of the time is saved.
        progress: called with (sequences done, N).
    Raises:
        StatisticsError: a matrix was never used, or its statistics are zero or not finite; names it.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    watcher = Watcher(model, set(shapes), plain=plain)
    step = max(1, BATCH_TOKENS // ids_NT.shape[1])
    was_training = model.training
    model.eval()
    first_half: dict[str, Tensor] = {}
    with watcher.attached(), torch.enable_grad():
        for at in range(0, len(ids_NT), step):
            if at <= len(ids_NT) // 2 < at + step:
                first_half = {name: s.g_O.clone() for name, s in watcher.named(watcher.products).items()}
            watcher.ids_BT = ids_NT[at : at + step].to(device)
            watcher.prediction, loss = sample_labels(_logits(model, watcher.ids_BT), generator)
            loss.backward()  # type: ignore[no-untyped-call]
            if progress:
                progress(min(at + step, len(ids_NT)), len(ids_NT))
    model.train(was_training)
    tokens = ids_NT.numel()
    sums = watcher.named(watcher.products) if plain else {}
    products = {n: Use((s.H_II / tokens).float().cpu(), (s.g_O / tokens).float().cpu()) for n, s in sums.items()}
    lookups = {n: _lookup(s, tokens) for n, s in watcher.named(watcher.lookups).items()}
    stats = Statistics(
        products=products,
        lookups=lookups,
        fishers={n: _factors(s, tokens) for n, s in watcher.named(watcher.fishers).items()},
        row_agreement=_agreement(first_half, {n: s.g_O for n, s in watcher.named(watcher.products).items()}),
        ids_NT=ids_NT.int().cpu(),
        model_fingerprint=model_fingerprint,
        source={**source, "label_seed": seed, "tokens_sha256": _sha256(ids_NT)},
    )
    stats.check(shapes)
    return stats


def _lookup(sums: Sums, tokens: int) -> Use:
    frequency_O = (sums.g_O + PRIOR) / (tokens + PRIOR * len(sums.g_O))
    return Use((sums.H_II / tokens).float().cpu(), frequency_O.float().cpu())


def _factors(sums: FisherSums, tokens: int) -> Use:
    """Kronecker factors of the Fisher information, scaled so that tr G · tr H is the mean squared gradient of the matrix.

    H is the weighted mean of x xᵀ. One step of the power iteration for the nearest Kronecker product from identities, tokens
    taken as independent (sketch A of YAQA, arXiv 2505.22988).
    """
    trace_G = float(sums.G.diagonal().sum() if sums.G.ndim == 2 else sums.G.sum())
    trace_H = float(sums.H_II.diagonal().sum())  # equal to trace_G: both are Σ |x|² |g|²
    if not trace_G > 0 or not trace_H > 0:
        return Use(sums.H_II.float().cpu(), sums.G.float().cpu())  # Statistics.check names the tensor
    scale = (tokens / trace_H) ** 0.5
    G = sums.G
    if G.ndim == 1:  # rows that hardly meet, such as tokens
        G = (G + PRIOR * trace_G / tokens) / (1 + PRIOR * len(G) / tokens)
    return Use((sums.H_II * scale / tokens).float().cpu(), (G * scale / tokens).float().cpu())


def _logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    try:
        logits: Tensor = model(ids_BT)
    except QuantlabError:
        raise
    except Exception as error:
        raise ShapeError(f"the model fails on ids {list(ids_BT.shape)}: {first_line(error)}") from error
    if not logits.requires_grad:
        raise StatisticsError("the model's logits carry no gradient: its forward runs under torch.no_grad or detaches them")
    return logits


def _agreement(first_half: dict[str, Tensor], total: dict[str, Tensor]) -> dict[str, float]:
    """Correlation over rows of log g measured on the first half of the sample with log g measured on the second."""
    agreement = {}
    for name, first_O in first_half.items():
        second_O = total[name] - first_O
        seen = (first_O > 0) & (second_O > 0)
        if int(seen.sum()) > 2:
            agreement[name] = round(float(torch.corrcoef(torch.stack([first_O[seen], second_O[seen]]).log())[0, 1]), 4)
    return agreement


def _sha256(ids_NT: Tensor) -> str:
    return hashlib.sha256(ids_NT.cpu().contiguous().numpy().tobytes()).hexdigest()[:32]
