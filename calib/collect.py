"""Measure the statistics of every matrix in one pass, forward and backward, over calibration tokens."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from quantlab.calib.fisher import Use
from quantlab.calib.labels import label_draws, predict
from quantlab.calib.priors import fill_unreached_
from quantlab.calib.processes import Alone, Processes
from quantlab.calib.statistics import Statistics, UsesOnDemand
from quantlab.calib.triangle import GramSum
from quantlab.calib.watch import FisherSums, LookupSums, Sums, Watcher
from quantlab.errors import ConfigError, QuantlabError, ShapeError, StatisticsError, first_line

BATCH_TOKENS = 512
"""Tokens of a batch on a CPU, where more only take more memory, if that is more than one sequence."""
GPU_BATCH_TOKENS = 2048
"""The same on any other device."""
BATCH_OUTPUTS = 2**26
"""Values in the output of the tallest matrix, usually logits, that a batch may have, if it is more than one sequence."""
PRIOR_COUNT = 0.5
"""Prior count of every row of an embedding or head: a token that the sample misses is rare, not worthless (the KT estimator,
Krichevsky and Trofimov 1981)."""

Progress = Callable[[int, int], None]


def collect(
    model: nn.Module,
    ids_NT: Tensor,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    model_fingerprint: str,
    source: dict[str, Any],
    seed: int = 0,
    plain: bool = True,
    scratch: Path | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Return the statistics of the matrices in `shapes`, with labels drawn from the model's own softmax (true Fisher).

    The work is done on the model's device. The result holds sums of upper triangles in float64 and computes each `Use` from
    them when it is asked for.

    Args:
        model: maps ids [B, T] int64 to logits [B, T, V]; its parameters have the names in `shapes`.
        ids_NT: calibration sequences, int64 [N, T].
        shapes: [O, I] by name, of the matrices to measure.
        model_fingerprint, source: stored in the result.
        seed: seed of the labels.
        plain: whether to measure `products` too, which the GPTQ and RTN baselines need; without them `products` stays empty and
            a third of the time is saved.
        scratch: folder for nameless files that hold the sums of the CPU, so that the system can page them out.
        processes: those that share the sequences; all have the same `ids_NT` and get the same result.
        progress: called with (sequences done, N); of several processes with this one's share.
    Raises:
        StatisticsError: a matrix was never used and has no siblings that were, is used in a way that cannot be measured, or its
            statistics are zero or not finite; names it.
        ConfigError: there are more processes than sequences.
        QuantlabError: the disk of `scratch` is full.
    """
    processes = processes or Alone()
    if processes.size > len(ids_NT):
        raise ConfigError(f"{processes.size} processes cannot share {len(ids_NT)} calibration sequences")
    watcher = Watcher(model, set(shapes), plain=plain, scratch=scratch)
    first_half = _run(model, watcher, ids_NT, _batch_sequences(model, ids_NT, shapes), seed, processes, progress)
    priors = fill_unreached_(watcher, shapes)
    tokens, products = ids_NT.numel(), watcher.named(watcher.products)
    lookups, fishers = watcher.named(watcher.lookups), watcher.named(watcher.fishers)
    stats = Statistics(
        products=UsesOnDemand(products if plain else (), lambda name: _product(products[name], tokens)),
        lookups=UsesOnDemand(lookups, lambda name: _lookup(lookups[name], tokens)),
        fishers=UsesOnDemand(fishers, lambda name: _factors(fishers[name], tokens)),
        row_agreement=_agreement(first_half, {name: sums.g_O for name, sums in products.items()}),
        ids_NT=ids_NT.int().cpu(),
        model_fingerprint=model_fingerprint,
        source={**source, **_where(model, processes), "label_seed": seed, "tokens_sha256": _sha256(ids_NT)},
        priors=priors,
    )
    stats.check(shapes)
    return stats


def _where(model: nn.Module, processes: Processes) -> dict[str, Any]:
    """Return what may change the last digits of sums besides the tokens: several processes, another device than a CPU."""
    kind = next(model.parameters()).device.type
    return ({"processes": processes.size} if processes.size > 1 else {}) | ({"device": kind} if kind != "cpu" else {})


def _batch_sequences(model: nn.Module, ids_NT: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> int:
    tallest = max(rows for rows, _ in shapes.values())
    limit = BATCH_TOKENS if next(model.parameters()).device.type == "cpu" else GPU_BATCH_TOKENS
    return max(1, min(limit, BATCH_OUTPUTS // tallest) // ids_NT.shape[1])


def _run(
    model: nn.Module,
    watcher: Watcher,
    ids_NT: Tensor,
    step: int,
    seed: int,
    processes: Processes,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Run the model forward and backward on all sequences while `watcher` sums; return the sums g [O] of the first half.

    Args:
        step: sequences in a batch.
    """
    was_training = model.training
    model.eval()
    first_half: dict[str, Tensor] = {}
    share = len(range(processes.rank, len(ids_NT), processes.size))
    done, middle = 0, len(ids_NT) // 2
    with watcher.attached(), torch.enable_grad():
        for start, stop in ((0, middle), (middle, len(ids_NT))):
            first_half = {name: sums.g_O.clone() for name, sums in watcher.named(watcher.products).items()}
            mine = range(start + (processes.rank - start) % processes.size, stop, processes.size)
            for at in range(0, len(mine), step):
                numbers = mine[at : at + step]
                _run_batch(model, watcher, ids_NT[list(numbers)], label_draws(seed, numbers, ids_NT.shape[1]))
                done += len(numbers)
                if progress:
                    progress(done, share)
    model.train(was_training)
    kinds = watcher.kinds().to(next(model.parameters()).device)
    watcher.complete_(processes.sum_(kinds)())  # of an expert that only another process saw
    # a process that had no sequence in the first half has zeros there: all processes must sum the same tensors
    whole = {name: sums.g_O for name, sums in watcher.named(watcher.products).items()}
    first_half = {name: first_half.get(name, torch.zeros_like(g_O)) for name, g_O in whole.items()}
    _sum_over(processes, watcher, first_half)
    return first_half


def _run_batch(model: nn.Module, watcher: Watcher, ids_BT: Tensor, draws_BT: Tensor) -> None:
    """Run the model forward and backward on a batch, with the labels that the draws in [0, 1) pick."""
    watcher.ids_BT = ids_BT.to(next(model.parameters()).device)
    logits = _logits(model, watcher.ids_BT)
    prediction = watcher.prediction = predict(logits.detach().flatten(0, -2), draws_BT.flatten())
    gradient, edge = prediction.g_TV.view(logits.shape).to(logits.dtype), get_gradient_edge(logits)
    del logits  # as large as the gradient, and needed no more
    torch.autograd.backward(edge, gradient)


def _sum_over(processes: Processes, watcher: Watcher, first_half: dict[str, Tensor]) -> None:
    """Replace all sums by those over all processes."""
    tensors = [tensor for sums in watcher.sums() for tensor in sums.flat]
    for tensor in [*tensors, *first_half.values()]:
        processes.sum_(tensor)()


def _product(sums: Sums, tokens: int) -> Use:
    """Return the means over tokens."""
    assert sums.H is not None  # collect gives none otherwise
    return Use(sums.H.full(1 / tokens), (sums.g_O / tokens).float().cpu())


def _lookup(sums: LookupSums, tokens: int) -> Use:
    """Return the mean squared gradient of each column, and the frequency of each row with a prior count."""
    frequency_O = (sums.counts_O + PRIOR_COUNT) / (tokens + PRIOR_COUNT * len(sums.counts_O))
    return Use((sums.h_I / tokens).float().cpu(), frequency_O.float().cpu())


def _factors(sums: FisherSums, tokens: int) -> Use:
    """Return Kronecker factors of the Fisher information, scaled so that tr G · tr H is the matrix's mean squared gradient.

    H is the weighted mean of x xᵀ. One step of the power iteration for the nearest Kronecker product from identities, tokens
    taken as independent (sketch A of YAQA, arXiv 2505.22988).
    """
    trace = sums.H.trace  # that of G is equal: both are Σ |x|² |g|²
    scale = (tokens / trace) ** 0.5 / tokens if trace > 0 else 1.0  # Statistics.check names a tensor without any
    if isinstance(sums.G, GramSum):
        return Use(sums.H.full(scale), sums.G.full(scale))
    # rows that are hardly ever active together, such as tokens
    G_O = (sums.G + PRIOR_COUNT * sums.G.sum() / tokens) / (1 + PRIOR_COUNT * len(sums.G) / tokens)
    return Use(sums.H.full(scale), (G_O * scale).float().cpu())


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
