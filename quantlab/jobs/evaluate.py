"""Score a loaded model on text or token shards, and probe whether its scores are honest.

How much memory a model and a process take."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantlab.errors import ConfigError, DataError
from quantlab.evaluation.divergence import Divergence, measure_divergence
from quantlab.evaluation.probes import Probe, run_probes
from quantlab.evaluation.scoring import Score, device_of, score_tokens
from quantlab.evaluation.windows import Mode
from quantlab.models.loading import Loaded
from quantlab.progress import Progress, silent, stage
from quantlab.text.documents import read_documents
from quantlab.text.shards import read_shards
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.packed import PackedWeight, weight_bytes
from quantlab.trainer.world import World

PROBE_ROWS = 4
"""Sequences in a probe's batch."""


def evaluation_tokens(text: Path | None, shards: str | None, tokenizer: Tokenizer) -> NDArray[Any]:
    """Token ids [N] of a text file (each document begun with BOS) or of all shards that match a pattern."""
    if text is not None:
        return tokenizer.encode_documents(read_documents(text))
    if shards is None:
        raise ConfigError("evaluation needs a text file or token shards")
    return np.asarray(read_shards(shards))


def evaluate_target(
    loaded: Loaded,
    tokens: NDArray[Any],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    mode: Mode = "chunked",
    stride: int | None = None,
    world: World | None = None,
    progress: Progress = silent,
) -> Score:
    """Bits per byte of the loaded model on `tokens`; see `quantlab.evaluation.scoring.score_tokens`.

    With a `world` the model runs on its device, and is put back; without one where it is.
    """
    with _on(loaded.model, world.device if world else device_of(loaded.model)):
        return score_tokens(
            loaded.model,
            tokens,
            tokenizer.token_bytes(),
            seq_len=seq_len,
            mode=mode,
            stride=stride,
            bos_id=tokenizer.bos_id,
            world=world,
            progress=stage(progress, "evaluate"),
        )


def compare_targets(
    reference: Loaded, loaded: Loaded, tokens: NDArray[Any], *, seq_len: int, progress: Progress = silent
) -> Divergence:
    """KL, flips and paired loss difference of `loaded` against `reference` on the same sequences, where `loaded` is."""
    with _on(reference.model, device_of(loaded.model)):
        return measure_divergence(reference.model, loaded.model, tokens, seq_len=seq_len, progress=stage(progress, "compare"))


def probe_target(
    loaded: Loaded,
    tokens: NDArray[Any] | None = None,
    *,
    seq_len: int = 128,
    bos_id: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> list[Probe]:
    """Probe the loaded model on sequences spread over `tokens` [N], or on random ids.

    Args:
        bos_id: that of the model's own config if None, which is 1 unless it says otherwise.
        device: where the model runs, and is put back from; where it is if None.
    Raises:
        ConfigError: seq_len below 2.
        DataError: too few tokens, or an id that is not in the vocabulary.
    """
    if seq_len < 2:
        raise ConfigError(f"seq_len must be 2 or more, got {seq_len}")
    if bos_id is None:
        bos_id = int(loaded.config.get("bos_id", 1))
    ids = _random_ids(loaded.vocab_size, seq_len, seed) if tokens is None else _spread(tokens, seq_len, loaded.vocab_size)
    with _on(loaded.model, device or device_of(loaded.model)):
        return run_probes(loaded.model, torch.from_numpy(ids), bos_id=bos_id, seed=seed)


def _random_ids(vocab_size: int, seq_len: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, vocab_size, (PROBE_ROWS, seq_len))


def _spread(tokens: NDArray[Any], seq_len: int, vocab_size: int) -> NDArray[np.int64]:
    """int64 [rows, seq_len], from the first token to the last."""
    needed = PROBE_ROWS * seq_len
    if len(tokens) < needed:
        raise DataError(f"{len(tokens):,} tokens are too few: {PROBE_ROWS} sequences of {seq_len:,} need {needed:,}")
    starts = np.arange(PROBE_ROWS) * (len(tokens) - seq_len) // (PROBE_ROWS - 1)
    ids = np.stack([tokens[start : start + seq_len] for start in starts]).astype(np.int64)
    if ids.max() >= vocab_size:
        raise DataError(f"token id {ids.max()} in the text, the vocabulary has 0 to {vocab_size - 1}")
    return ids


@contextmanager
def _on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on `device` inside, and where it was after it."""
    home = device_of(model)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def memory_of(loaded: Loaded, device: torch.device) -> dict[str, Any]:
    """What the model's weights take, packed or decoded, and the peak so far: of tensors on a GPU, of the process on a CPU."""
    is_packed = any(isinstance(module, PackedWeight) for module in loaded.model.modules())
    return {
        "weights": "packed" if is_packed else "decoded",
        "weight_bytes": weight_bytes(loaded.model),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_of_process(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
