"""Measure the statistics of every matrix in one pass, forward and backward, over calibration tokens."""

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
PRIOR_COUNT = 0.5
"""Prior count of every row of an embedding or head: a token that the sample misses is rare, not worthless (the KT estimator,
Krichevsky and Trofimov 1981)."""

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
    """Return the statistics of the matrices in `shapes`, with labels drawn from the model's own softmax (true Fisher).

    Args:
        model: maps ids [B, T] int64 to logits [B, T, V]; its parameters have the names in `shapes`.
        ids_NT: calibration sequences, int64 [N, T].
        shapes: [O, I] by name, of the matrices to measure.
        model_fingerprint, source: stored in the result.
        seed: seed of the labels.
        plain: whether to measure `products` too, which the GPTQ and RTN baselines need; without them `products` stays empty and
            a third of the time is saved.
        progress: called with (sequences done, N).
    Raises:
        StatisticsError: a matrix was never used, or its statistics are zero or not finite; names it.
    """
    watcher = Watcher(model, set(shapes), plain=plain)
    first_half = _run(model, watcher, ids_NT, seed, progress)
    tokens, products = ids_NT.numel(), watcher.named(watcher.products)
    stats = Statistics(
        products={name: _product(sums, tokens) for name, sums in products.items()} if plain else {},
        lookups={name: _lookup(sums, tokens) for name, sums in watcher.named(watcher.lookups).items()},
        fishers={name: _factors(sums, tokens) for name, sums in watcher.named(watcher.fishers).items()},
        row_agreement=_agreement(first_half, {name: sums.g_O for name, sums in products.items()}),
        ids_NT=ids_NT.int().cpu(),
        model_fingerprint=model_fingerprint,
        source={**source, "label_seed": seed, "tokens_sha256": _sha256(ids_NT)},
    )
    stats.check(shapes)
    return stats


def _run(model: nn.Module, watcher: Watcher, ids_NT: Tensor, seed: int, progress: Progress | None) -> dict[str, Tensor]:
    """Run the model forward and backward on all sequences while `watcher` sums; return the sums g [O] of the first half."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    step = max(1, BATCH_TOKENS // ids_NT.shape[1])
    was_training = model.training
    model.eval()
    first_half: dict[str, Tensor] = {}
    with watcher.attached(), torch.enable_grad():
        for at in range(0, len(ids_NT), step):
            if at <= len(ids_NT) // 2 < at + step:
                first_half = {name: sums.g_O.clone() for name, sums in watcher.named(watcher.products).items()}
            watcher.ids_BT = ids_NT[at : at + step].to(device)
            watcher.prediction, loss = sample_labels(_logits(model, watcher.ids_BT), generator)
            loss.backward()  # type: ignore[no-untyped-call]
            if progress:
                progress(min(at + step, len(ids_NT)), len(ids_NT))
    model.train(was_training)
    return first_half


def _product(sums: Sums, tokens: int) -> Use:
    """Return the means over tokens."""
    return Use((sums.H_II / tokens).float().cpu(), (sums.g_O / tokens).float().cpu())


def _lookup(sums: Sums, tokens: int) -> Use:
    """Return the mean squared gradient of each column, and the frequency of each row with a prior count."""
    frequency_O = (sums.g_O + PRIOR_COUNT) / (tokens + PRIOR_COUNT * len(sums.g_O))
    return Use((sums.H_II / tokens).float().cpu(), frequency_O.float().cpu())


def _factors(sums: FisherSums, tokens: int) -> Use:
    """Return Kronecker factors of the Fisher information, scaled so that tr G · tr H is the matrix's mean squared gradient.

    H is the weighted mean of x xᵀ. One step of the power iteration for the nearest Kronecker product from identities, tokens
    taken as independent (sketch A of YAQA, arXiv 2505.22988).
    """
    trace_G = float(sums.G.diagonal().sum() if sums.G.ndim == 2 else sums.G.sum())
    trace_H = float(sums.H_II.diagonal().sum())  # equal to trace_G: both are Σ |x|² |g|²
    if not trace_G > 0 or not trace_H > 0:
        return Use(sums.H_II.float().cpu(), sums.G.float().cpu())  # Statistics.check names the tensor
    scale = (tokens / trace_H) ** 0.5
    G = sums.G
    if G.ndim == 1:  # rows that are hardly ever active together, such as tokens
        G = (G + PRIOR_COUNT * trace_G / tokens) / (1 + PRIOR_COUNT * len(G) / tokens)
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
    """Return the correlation over rows of log g on the first half of the sample with log g on the second, by tensor."""
    agreement = {}
    for name, first_O in first_half.items():
        second_O = total[name] - first_O
        seen = (first_O > 0) & (second_O > 0)
        if int(seen.sum()) > 2:
            agreement[name] = round(float(torch.corrcoef(torch.stack([first_O[seen], second_O[seen]]).log())[0, 1]), 4)
    return agreement


def _sha256(ids_NT: Tensor) -> str:
    return hashlib.sha256(ids_NT.cpu().contiguous().numpy().tobytes()).hexdigest()[:32]
