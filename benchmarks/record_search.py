"""Find the k of the record pipeline with which a file fills a budget: one factor on all published k, or the best k by group."""

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from math import exp, log
from typing import Any

import torch
from numpy.typing import NDArray
from record_pipeline import Clips, Packed, RecordPipeline, decode, group_of
from torch import Tensor, nn

from quantlab.calib.sources import CalibrationConfig, calibration_tokens
from quantlab.errors import BudgetError, DataError
from quantlab.evaluation.divergence import measure_divergence
from quantlab.models.loading import LoadedModel
from quantlab.text.tokenizer import Tokenizer

EMBEDDING_FACTORS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
ATTENTION_FACTORS = (1 / 2, 3 / 4, 1.0)
AROUND = ((3 / 4, 1.0), (4 / 3, 1.0), (1.0, 3 / 4), (1.0, 4 / 3))
FILLED = 0.997
"""A solution's share of the budget, at least."""


def solve_published(record: RecordPipeline, budget_bytes: int) -> Packed:
    """Return a file of 99.7 to 100 % of `budget_bytes`, by one factor on all k. BudgetError if there is none."""
    start = hit(budget_bytes, lambda x: record.brotli_bytes(Clips().times(x, x, x)))
    return _finish(record, budget_bytes, lambda x: Clips().times(x, x, x), start)


def solve_best(record: RecordPipeline, published: Packed, budget_bytes: int, tokens: NDArray[Any], *, seq_len: int) -> Packed:
    """Return the same with the best k by group: on top of `published`, a grid of factors on the k of embedding and attention.

    The MLP's k is found to keep the bytes, so all are compared at equal brotli bytes; the least KL on `tokens` wins.

    Args:
        published: result of `solve_published` for the same budget.
        tokens: ids, [N], to choose by: neither those that will be reported on nor those of the statistics.
    Raises:
        BudgetError: no factor gives such a file.
    """
    grid = _grid(record, published.clips, tokens, seq_len)
    winner = min(grid, key=lambda row: row["kl"])
    base = published.clips.times(winner["embedding"], winner["attention"], 1.0)
    best = _finish(record, budget_bytes, lambda x: base.times(1.0, 1.0, x), winner["mlp"])
    return replace(best, grid=grid)


def hit(budget_bytes: int, size_at: Callable[[float], int], x: float = 1.0) -> float:
    """Return an x at which the size, which falls as x grows, fits the budget and fills `FILLED` of it; secants in log x."""
    at, slope, before = log(x), 0.4 * budget_bytes, (0.0, 0)
    for _ in range(20):
        size = size_at(exp(at))
        if FILLED * budget_bytes <= size <= budget_bytes:
            return exp(at)
        if before[1] and at != before[0]:
            slope = max((before[1] - size) / (at - before[0]), 0.05 * budget_bytes)
        before = (at, size)
        at += min(max((size - (1 + FILLED) / 2 * budget_bytes) / slope, -1.0), 1.0)
    raise BudgetError(f"no k gives a file of {FILLED * budget_bytes:,.0f} to {budget_bytes:,} bytes")


def _finish(record: RecordPipeline, budget_bytes: int, clips_at: Callable[[float], Clips], start: float) -> Packed:
    """Return the file that fills the budget with the smaller of both coders for each role, after a round trip."""
    files: dict[float, bytes] = {}

    def size(x: float) -> int:
        files[x] = record.encode(clips_at(x))
        return len(files[x])

    x = hit(budget_bytes, size, start)
    state, expected = decode(files[x]), record.state(clips_at(x))
    assert state.keys() == expected.keys() and all(torch.equal(state[n], t) for n, t in expected.items())
    return Packed(state, files[x], clips_at(x))


def _grid(record: RecordPipeline, base: Clips, tokens: NDArray[Any], seq_len: int) -> tuple[dict[str, float], ...]:
    """Return factors on `base` and KL of every combination that can have its brotli bytes, and of four around the best."""
    reference = Remembering(record.loaded.model)

    def scored(row: dict[str, float]) -> dict[str, float]:
        model = with_weights(record.loaded, record.state(base.times(**row)))
        return row | {"kl": measure_divergence(reference, model, tokens, seq_len=seq_len).kl_mean}

    def rows(pairs: Iterable[tuple[float, float]]) -> list[dict[str, float]]:
        balanced = [row for pair in pairs if (row := _balanced(record, base, *pair))]
        with ThreadPoolExecutor(record.workers) as pool:
            return list(pool.map(scored, balanced))

    grid = rows(product(EMBEDDING_FACTORS, ATTENTION_FACTORS))
    best = min(grid, key=lambda row: row["kl"])
    return tuple(grid + rows((best["embedding"] * e, best["attention"] * a) for e, a in AROUND))


def _balanced(record: RecordPipeline, base: Clips, embedding: float, attention: float) -> dict[str, float]:
    """Return all three factors, the MLP's such that the brotli bytes are those of `base`; empty if there is none."""
    roles = [role for role in record.roles if group_of(role) == "mlp"]
    saved = record.brotli_bytes(base) - record.brotli_bytes(base.times(embedding, attention, 1.0))
    mlp = _mlp_factor(lambda x: record.roles_bytes(roles, base.times(1.0, 1.0, x)), record.roles_bytes(roles, base) + saved)
    return {} if mlp is None else {"embedding": embedding, "attention": attention, "mlp": mlp}


def _mlp_factor(size_at: Callable[[float], int], target_bytes: int) -> float | None:
    """Return the factor, 1/32 to 32, that gives `target_bytes`; linear in its logarithm between points sqrt 2 apart."""
    j = 0
    while j > -10 and size_at(2 ** (j / 2)) < target_bytes:
        j -= 1
    while j < 10 and size_at(2 ** ((j + 1) / 2)) > target_bytes:
        j += 1
    more, less = size_at(2 ** (j / 2)), size_at(2 ** ((j + 1) / 2))
    if not less <= target_bytes <= more or less == more:
        return None
    return float(2 ** ((j + (more - target_bytes) / (more - less)) / 2))


def with_weights(loaded: LoadedModel, state: dict[str, Tensor]) -> nn.Module:
    """Return a copy of the model with other weights."""
    model = copy.deepcopy(loaded.model)
    model.load_state_dict(state)
    return model


class Remembering(nn.Module):
    """A model that remembers the logits of every batch it has seen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.answers = model, dict[bytes, Tensor]()

    def forward(self, ids: Tensor) -> Tensor:
        """Return the model's logits."""
        key = ids.numpy().tobytes()
        if key not in self.answers:
            self.answers[key] = self.model(ids)
        return self.answers[key]


def held_out_tokens(config: CalibrationConfig, loaded: LoadedModel, tokenizer: Tokenizer | None, count: int) -> NDArray[Any]:
    """Return about `count` tokens [N] of the calibration source that `config` does not use: for `solve_best` to choose by."""
    other = replace(config, seed=config.seed + 1)
    if config.source == "self":
        other = replace(other, tokens=count + config.seq_len)
        return calibration_tokens(other, loaded.model, tokenizer, loaded.vocab_size)[0].flatten().numpy()
    used, drawn = (calibration_tokens(c, loaded.model, tokenizer, loaded.vocab_size)[0] for c in (config, other))
    seen = {row.numpy().tobytes() for row in used}
    fresh = [row for row in drawn if row.numpy().tobytes() not in seen]
    if not fresh:
        raise DataError(f"calibration source {config.source} holds no sequence that the calibration leaves out")
    return torch.cat(fresh[: count // config.seq_len + 1]).numpy()
