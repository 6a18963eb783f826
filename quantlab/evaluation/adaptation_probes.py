"""Probe a whole adaptive evaluation: that it sees no later token, and that without a step it is the plain evaluation.

The procedure runs on a few short pieces of the scored text, with smaller chunks where those of the evaluation are large.

Letters: N tokens, V vocabulary.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantlab.evaluation.adaptation_config import Adaptation, LoraAdaptation, PhasedAdaptation, SgdAdaptation
from quantlab.evaluation.adaptive_scoring import chunk_of, score_adapted
from quantlab.evaluation.evaluation_record import Probe
from quantlab.evaluation.sampled_probes import ROUNDING, SCORE_TOLERANCE
from quantlab.evaluation.scoring import device_of, score_tokens
from quantlab.evaluation.token_losses import TokenLosses
from quantlab.evaluation.windows import Mode
from quantlab.text.tokenizer import TokenBytes

DOCUMENTS = 4
"""Most documents in the probed pieces."""
CUTS = (0.3, 0.6, 0.9)
"""Places of the cuts of the flip test, as shares of the pieces."""


def probe_adaptation(
    model: nn.Module,
    tokens: NDArray[np.integer],
    token_bytes: TokenBytes,
    adaptation: Adaptation,
    *,
    seq_len: int,
    mode: Mode,
    stride: int | None,
    bos_id: int,
    seed: int = 0,
) -> list[Probe]:
    """Return the probes "adaptation flip" and "adaptation step 0" of `score_adapted` with the same arguments."""
    pieces = _pieces(tokens, adaptation, seq_len, bos_id)
    small = _small(adaptation, seq_len, int((pieces == bos_id).sum()))
    way: dict[str, Any] = {"seq_len": seq_len, "mode": mode, "stride": stride, "bos_id": bos_id}
    return [
        adapted_flip(model, pieces, token_bytes, small, seed=seed, **way),
        step_zero(model, pieces, token_bytes, small, **way),
    ]


def adapted_flip(
    model: nn.Module, tokens: NDArray[np.integer], token_bytes: TokenBytes, adaptation: Adaptation, *, seed: int, **way: Any
) -> Probe:
    """Test that predictions up to a position keep their logits when it and all later tokens change; BOS stay where they are."""
    generator, vocab_size = np.random.default_rng(seed), len(token_bytes.base)
    tolerance = ROUNDING if device_of(model).type == "cpu" else 0.0
    before = _predictions(model, tokens, token_bytes, adaptation, **way)
    broken, count, largest, first = 0, 0, 0.0, ""
    for share in CUTS:
        cut = max(1, int(share * len(tokens)))
        others = _others(tokens[cut:], vocab_size, way["bos_id"], generator)
        after = _predictions(model, np.concatenate((tokens[:cut], others)), token_bytes, adaptation, **way)
        gap = (before[: cut + 1] - after[: cut + 1]).abs().amax(1)
        scored = ~gap.isnan()
        differ = scored & (gap > tolerance)
        if bool(differ.any()) and not first:
            first = f"; first: token {int(differ.nonzero()[0])} sees tokens from {cut} on"
        broken, count = broken + int(differ.sum()), count + int(scored.sum())
        largest = max(largest, float(gap[scored].amax()) if bool(scored.any()) else 0.0)
    detail = f"{broken:,} of {count:,} predictions change with later tokens, logits by {largest:.2g}{first}"
    return Probe(name="adaptation flip", passed=broken == 0, detail=detail)


def step_zero(
    model: nn.Module, tokens: NDArray[np.integer], token_bytes: TokenBytes, adaptation: Adaptation, **way: Any
) -> Probe:
    """Test that without a step every token has the loss of the plain evaluation."""
    still = _still(adaptation)
    _, nats = score_adapted(model, tokens, token_bytes, still, **way)
    losses = TokenLosses(len(tokens))
    score_tokens(model, tokens, token_bytes, **{**way, "stride": chunk_of(adaptation) or way["stride"]}, losses=losses)
    plain = losses.nats_N[: len(nats)]  # mode chunked leaves out the last tokens
    gap = np.abs(nats - plain)
    is_same = np.array_equal(np.isnan(nats), np.isnan(plain))
    worst, allowed = float(np.nanmax(gap)), SCORE_TOLERANCE[device_of(model).type]
    detail = f"without a step a token's loss is at most {worst:.2g} nats from the plain one (allowed {allowed:g})"
    return Probe(name="adaptation step 0", passed=is_same and worst <= allowed, detail=detail)


def _predictions(
    model: nn.Module, tokens: NDArray[np.integer], token_bytes: TokenBytes, adaptation: Adaptation, **way: Any
) -> Tensor:
    """Return the logits that predicted each token, float32 [N, V]; NaN where none is scored."""
    found = torch.full((len(tokens), len(token_bytes.base)), torch.nan)

    def hear(positions: NDArray[np.int64], logits_nV: Tensor) -> None:
        found[torch.from_numpy(positions)] = logits_nV.detach().cpu()

    score_adapted(model, tokens, token_bytes, adaptation, hear=hear, **way)
    return found


def _pieces(tokens: NDArray[np.integer], adaptation: Adaptation, seq_len: int, bos_id: int) -> NDArray[np.integer]:
    """Return the tokens that are probed: the first chunks of some documents, or the first chunks of the stream."""
    chunk = chunk_of(adaptation)
    if chunk is None:
        return tokens[: 6 * seq_len + 1]
    starts = np.flatnonzero(tokens == bos_id)
    stops = np.append(starts[1:], len(tokens))
    longest = np.sort(np.argsort(starts - stops, kind="stable")[:DOCUMENTS])
    return np.concatenate([tokens[starts[d] : min(stops[d], starts[d] + 3 * chunk + chunk // 2 + 1)] for d in longest])


def _small(adaptation: Adaptation, seq_len: int, documents: int) -> Adaptation:
    """Return the adaptation with chunks and phases that fit the pieces."""
    if isinstance(adaptation, SgdAdaptation):
        return replace(adaptation, chunk=min(adaptation.chunk, 2 * seq_len))
    if isinstance(adaptation, PhasedAdaptation):
        phases = max(1, min(adaptation.phases, documents - 1))
        return replace(adaptation, phases=phases, prefix=phases)
    return adaptation


def _still(adaptation: Adaptation) -> Adaptation:
    """Return the adaptation without an effect."""
    if isinstance(adaptation, PhasedAdaptation):
        return replace(adaptation, lora=replace(adaptation.lora, lr=0.0), sgd=replace(adaptation.sgd, lr=0.0))
    if isinstance(adaptation, LoraAdaptation):
        return replace(adaptation, lr=0.0)
    return replace(adaptation, lr=0.0)


def _others(tokens: NDArray[np.integer], vocab_size: int, bos_id: int, generator: np.random.Generator) -> NDArray[np.integer]:
    """Return ids that all differ from `tokens` and are not BOS; BOS itself stays, so that documents keep their lengths."""
    ids = tokens.astype(np.int64)
    at = ids - (ids > bos_id)  # place among the ids without BOS
    moved = (at + generator.integers(1, max(2, vocab_size - 1), len(ids))) % (vocab_size - 1)
    return np.where(ids == bos_id, bos_id, moved + (moved >= bos_id)).astype(tokens.dtype)
