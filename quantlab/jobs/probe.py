"""Check whether a model scores honestly: it sees no later token and no other row, and its probabilities sum to 1."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantlab.errors import ConfigError, DataError
from quantlab.evaluation.evaluation_record import Probe
from quantlab.evaluation.probes import run_probes
from quantlab.jobs.devices import on_device
from quantlab.jobs.tokenizers import found_tokenizer
from quantlab.models.loading import LoadedModel, Source, load, load_tokenizer
from quantlab.text.counted_stream import read_stream
from quantlab.text.shards import read_shards
from quantlab.text.tokenizer import Tokenizer

PROBE_ROWS = 4
"""Sequences in a probe's batch."""


def probe(
    target: Source,
    *,
    text: str | Path | None = None,
    tokens: str | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    seq_len: int = 128,
    seed: int = 0,
    model: str | None = None,
) -> list[Probe]:
    """Run every probe on sequences spread over a text or token shards, or on random ids without either.

    Args:
        target: path of a checkpoint or an artifact, or a module (see `quantlab.load`).
        text: plain text, or .jsonl with a text field; also .zst of either; needs a tokenizer, or tokenizer.model beside it.
        tokens: a glob pattern of token shards.
        seq_len: tokens in each of the four sequences, 2 or more.
        seed: seed of random ids and of the tokens that are put in place of others.
        model: path/to/file.py:factory of another architecture; this runs that file.
    Raises:
        ConfigError: both of `text` and `tokens` are given, seq_len is below 2, or the seed is not 0 to 2**63 - 1.
        DataError: there are too few tokens, or an id is not in the vocabulary.
    """
    if text is not None and tokens is not None:
        raise ConfigError("text and tokens are both given, at most one is needed", hint="leave out one of them")
    if seq_len < 2:
        raise ConfigError(f"seq_len must be 2 or more, got {seq_len}")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be 0 to 2**63 - 1, got {seed}")
    loaded = load(target, model=model)
    known = load_tokenizer(tokenizer, loaded) if tokenizer else None
    if text is not None and known is None:
        known = found_tokenizer(target, loaded)
    ids = _ids(loaded, _stream(text, tokens, known), seq_len, seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with on_device(loaded.model, device):
        return run_probes(loaded.model, torch.from_numpy(ids), bos_id=loaded.first_id(known), seed=seed)


def _stream(text: str | Path | None, tokens: str | None, tokenizer: Tokenizer | None) -> NDArray[Any] | None:
    if tokens is not None:
        return np.asarray(read_shards(tokens))
    return read_stream(text, None, tokenizer)[0] if text is not None and tokenizer is not None else None


def _ids(loaded: LoadedModel, stream: NDArray[Any] | None, seq_len: int, seed: int) -> NDArray[np.int64]:
    """Return int64 [rows, seq_len]: spread from the first token of a stream to its last, or random."""
    if stream is None:
        return np.random.default_rng(seed).integers(0, loaded.vocab_size, (PROBE_ROWS, seq_len))
    needed = PROBE_ROWS * seq_len
    if len(stream) < needed:
        raise DataError(f"{len(stream):,} tokens are too few: {PROBE_ROWS} sequences of {seq_len:,} need {needed:,}")
    starts = np.arange(PROBE_ROWS) * (len(stream) - seq_len) // (PROBE_ROWS - 1)
    ids = np.stack([stream[start : start + seq_len] for start in starts]).astype(np.int64)
    if ids.max() >= loaded.vocab_size:
        raise DataError(f"token id {ids.max()} in the text, the vocabulary has 0 to {loaded.vocab_size - 1}")
    return ids
