"""Sample: what a model writes after a prompt, and what another writes from the same draws."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab.calib.sources import sample_sequences
from quantlab.errors import ConfigError
from quantlab.jobs.devices import find_device, on_device
from quantlab.jobs.tokenizers import found_tokenizer
from quantlab.models.loading import LoadedModel, Source, load, load_tokenizer
from quantlab.progress import Progress, silent, stage
from quantlab.text.tokenizer import Tokenizer

LOWEST = 1e-3
"""Lowest temperature but 0: below, logits that are divided by it overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one model wrote."""

    name: str
    """Path of the model as it was given; empty for a module."""
    ids: tuple[int, ...]
    """Tokens after the prompt."""
    text: str
    """Their bytes as UTF-8; bytes that are none are replaced by U+FFFD."""
    tokens_per_second: float
    """Tokens read and written in a second, the prompt's included."""
    same_tokens: int | None = None
    """Tokens before the first that differs from the first sample's; None for the first sample."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def sample(
    target: Source,
    *,
    prompt: str,
    against: Source | None = None,
    tokens: int = 100,
    temperature: float = 0.8,
    seed: int = 0,
    tokenizer: str | Path | Tokenizer | None = None,
    model: str | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> list[Sample]:
    """Return what a model writes after a prompt, and what a reference writes from the same random numbers.

    Args:
        target: path of a checkpoint or an artifact, or a module (see `quantlab.load`).
        prompt: text that the models read first.
        against: a reference, usually the checkpoint that was packed.
        tokens: number of tokens to write.
        temperature: logits are divided by it; 0 takes the likeliest token each time.
        seed: seed of the random numbers.
        tokenizer: file or folder of a tokenizer, or byte260; default: the one that the target carries or that is beside it.
        model: path/to/file.py:factory of another architecture, for target and reference; this runs that file.
        device: cpu or cuda; None for a GPU where there is one.
    Raises:
        ConfigError: an option is out of range, or the model's context is too short.
        CheckpointError, FormatError: a model cannot be read.
        DataError: the tokenizer is missing, damaged, or does not belong to the model.
    """
    if tokens < 1:
        raise ConfigError(f"tokens must be 1 or more, got {tokens}")
    if temperature != 0 and not LOWEST <= temperature < float("inf"):
        raise ConfigError(f"temperature must be 0, or {LOWEST:g} or more and finite, got {temperature:g}")
    loaded = load(target, model=model)
    known = load_tokenizer(tokenizer, loaded) if tokenizer is not None else found_tokenizer(target, loaded)
    models = [loaded] if against is None else [loaded, load(against, model=model)]
    ids, written = known.encode(prompt.encode(errors="surrogateescape")), list[Sample]()
    for number, one in enumerate(models):
        _check(one, loaded, len(ids) + tokens + 1)
        first = written[0].ids if written else None
        shown = stage(progress, f"sample, model {number + 1} of {len(models)}")
        with on_device(one.model, find_device(device)):
            start = time.perf_counter()
            bos_id, length = one.first_id(known), 1 + len(ids) + tokens
            row_T = sample_sequences(
                one.model, 1, length, bos_id=bos_id, prompt=ids, temperature=temperature, seed=seed, progress=shown
            )[0, 1 + len(ids) :].tolist()
        written.append(_sample(one, known, row_T, length / (time.perf_counter() - start), first))
    return written


def _check(loaded: LoadedModel, target: LoadedModel, length: int) -> None:
    if loaded.vocab_size != target.vocab_size:
        raise ConfigError(f"the reference has {loaded.vocab_size} tokens, the target {target.vocab_size}")
    if loaded.context_length is not None and length > loaded.context_length:
        problem = f"BOS, prompt and sample are {length} tokens, the model reads at most {loaded.context_length}"
        raise ConfigError(problem, hint="shorten the prompt, or ask for fewer tokens")


def _sample(loaded: LoadedModel, tokenizer: Tokenizer, ids: list[int], speed: float, first: tuple[int, ...] | None) -> Sample:
    text = tokenizer.decode([i for i in ids if i < tokenizer.vocab_size]).decode(errors="replace")
    same = None if first is None else next((n for n, (a, b) in enumerate(zip(ids, first, strict=True)) if a != b), len(ids))
    return Sample(name=loaded.name, ids=tuple(ids), text=text, tokens_per_second=speed, same_tokens=same)
