"""Sources of calibration tokens: text that the model writes itself, a text file, token shards, or random tokens.

The model's own text is the default: it needs no data at all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantlab.calib.processes import Alone, Processes
from quantlab.errors import CheckpointError, ConfigError, DataError
from quantlab.text.check_data import HEAD_TOKENS
from quantlab.text.document_sample import DocumentSample, sample_heads
from quantlab.text.documents import read_documents
from quantlab.text.shards import read_shards
from quantlab.text.tokenizer import Tokenizer

BATCH = 128
"""Sequences that are sampled at once."""
MAX_LOGITS = 2**26
"""Largest number of logits in one call of a model without a cache, but at least those of one sequence."""


@torch.no_grad()  # not inference_mode: a table that the model builds now and keeps must serve backward later
def sample_sequences(
    model: nn.Module,
    count: int,
    length: int,
    *,
    bos_id: int = 1,
    prompt: Sequence[int] = (),
    temperature: float = 1.0,
    seed: int = 0,
    processes: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return sequences int64 [count, length] drawn from the model, each of which begins with BOS and the prompt.

    A model with `new_cache(batch, length)` and `forward(ids, cache=...)` reads each token once; any other reads its whole
    prefix again for every token, which is slower by the length. On a GPU the model runs in bfloat16 autocast, as it is scored.

    A token is decided by its logits and by one uniform number, which depends on `seed`, `length` and the token's place alone:
    how sequences are grouped into calls does not enter, but for the rounding of logits.

    Args:
        model: maps ids [B, T] to logits [B, T, V].
        prompt: ids that follow BOS.
        temperature: logits are divided by it; 1 draws from the model's own distribution, 0 takes the likeliest token.
        seed: seed of the draws.
        processes: those that draw a share each; all get all sequences.
        progress: called with (tokens done, count · length); of several processes with this one's share.
    Raises:
        CheckpointError: a logit is not finite.
    """
    processes = processes or Alone()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    ids_NT = torch.full((count, length), bos_id, dtype=torch.int64)
    ids_NT[:, 1 : 1 + len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
    uniform_NT = torch.rand(count, length, generator=torch.Generator().manual_seed(seed))
    mine = torch.arange(processes.rank, count, processes.size)
    for lo in range(0, len(mine), BATCH):
        rows_B = mine[lo : lo + BATCH]
        ids_BT, uniform_BT = (x[rows_B].to(device) for x in (ids_NT, uniform_NT))
        rows = len(ids_BT)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            read = _reader(model, ids_BT)
            for t in range(1, length):
                logits_BV = read(t)  # also of a prompt's tokens, for the cache
                if t > len(prompt):
                    ids_BT[:, t] = _draw(logits_BV.float(), uniform_BT[:, t], temperature)
                if progress and t % 16 == 0:
                    progress(lo * length + t * rows, len(mine) * length)
        ids_NT[rows_B] = ids_BT.to(ids_NT.device)
        if progress:
            progress(lo * length + rows * length, len(mine) * length)
    model.train(was_training)
    return _joined(ids_NT, mine, processes, device)


def _joined(ids_NT: Tensor, mine: Tensor, processes: Processes, device: torch.device) -> Tensor:
    """Return the sequences of all processes, of which this one drew the rows `mine`."""
    if processes.size == 1:
        return ids_NT
    drawn_NT = torch.zeros_like(ids_NT)
    drawn_NT[mine] = ids_NT[mine]
    return processes.sum_(drawn_NT.to(device))().cpu()


def _draw(logits_BV: Tensor, uniform_B: Tensor, temperature: float = 1.0) -> Tensor:
    """Return tokens int64 [B]: the first at which the cumulated probability exceeds a uniform number below 1."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    total_BV = (logits_BV / temperature).softmax(-1).cumsum(-1)
    if not bool(total_BV[:, -1].isfinite().all()):
        raise CheckpointError("the model predicts values that are not finite")
    bound_B1 = uniform_B[:, None] * total_BV[:, -1:]  # below the last total, so a token is always found
    return torch.searchsorted(total_BV, bound_B1, right=True).squeeze(1)


def _reader(model: nn.Module, ids_BT: Tensor) -> Callable[[int], Tensor]:
    """Return a function from t = 1, 2, ... to the logits [B, V] that follow the first t tokens, as `ids_BT` then holds them."""
    if not hasattr(model, "new_cache"):
        vocab_size = model(ids_BT[:1, :1]).shape[-1]
        return lambda t: _last_logits(model, ids_BT[:, :t], max(1, MAX_LOGITS // (t * vocab_size)))
    new_cache: Any = model.new_cache
    cache = new_cache(*ids_BT.shape)
    return lambda t: model(ids_BT[:, t - 1 : t], cache=cache)[:, -1]


def _last_logits(model: nn.Module, ids_BT: Tensor, rows: int) -> Tensor:
    """Return the logits of the last position, [B, V]; the model reads that many rows at a time."""
    # a view would keep the logits of all positions
    return torch.cat([model(ids_BT[at : at + rows])[:, -1].clone() for at in range(0, len(ids_BT), rows)])


KINDS = ("self", "random", "text", "tokens")
MOST_DOCUMENTS = 256
"""Documents of the calibration text that the statistics name, so that no evaluation scores them unnoticed."""
UNCACHED_LENGTH = 64
"""Most tokens of a held-out sequence that a model without a cache writes: each reads its whole prefix again."""
UNCACHED_SHARE = 4
"""Such a model writes this share of the tokens."""
READ_AHEAD = 8  # read this many times the tokens that are used, then choose among them


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationConfig:
    """The tokens to measure on."""

    source: str = "self"
    """`self`, `random`, `text:FILE` or `tokens:GLOB`."""
    tokens: int = 65536
    """Tokens to use; a file that holds fewer gives what it has."""
    seq_len: int = 512
    """Tokens in one sequence."""
    temperature: float = 1.0
    """Sampling temperature of the model's own text."""
    seed: int = 0
    """Seed of the draws and of the choice of sequences."""

    def __post_init__(self) -> None:
        kind, _, path = self.source.partition(":")
        if kind not in KINDS or (kind in ("text", "tokens")) != bool(path):
            raise ConfigError(f"calibration source must be self, random, text:FILE or tokens:GLOB, got {self.source!r}")
        if self.seq_len < 2 or self.tokens < self.seq_len:
            raise ConfigError(
                f"calibration needs sequences of 2 tokens or more and at least one of them, got {self.tokens} tokens in "
                f"sequences of {self.seq_len}"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be 0 to 2**63 - 1, got {self.seed}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}")


def calibration_tokens(
    config: CalibrationConfig,
    model: nn.Module,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    *,
    bos_id: int = 1,
    processes: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Return sequences int64 [N, seq_len], and a description of where they come from for the statistics file.

    Args:
        bos_id: first token of the model's own text.
        processes: those that share the sampling of the model's own text.
    Raises:
        ConfigError: `text:` without a tokenizer.
        DataError: a file is missing, damaged, too short for one sequence, or has ids beyond the vocabulary.
    """
    kind, _, path = config.source.partition(":")
    count = config.tokens // config.seq_len
    about = {"kind": kind, "seed": config.seed, "seq_len": config.seq_len}
    if kind == "self":
        about["temperature"] = config.temperature
        ids = sample_sequences(
            model,
            count,
            config.seq_len,
            bos_id=bos_id,
            temperature=config.temperature,
            seed=config.seed,
            processes=processes,
            progress=progress,
        )
        return ids, about
    if kind == "random":
        generator = torch.Generator().manual_seed(config.seed)
        return torch.randint(vocab_size, (count, config.seq_len), generator=generator), about
    stream = read_shards(path) if kind == "tokens" else _read_text(Path(path), tokenizer, config.tokens * READ_AHEAD)
    about["file"] = Path(path).name
    ids, places = _choose_sequences(path, stream, count, config, vocab_size)
    bos_id = tokenizer.bos_id if tokenizer else bos_id
    about["documents"] = _documents_at(stream, places, config.seq_len, bos_id).to_text()
    return ids, about


def held_out_tokens(
    config: CalibrationConfig,
    model: nn.Module,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    *,
    tokens: int,
    bos_id: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, str]:
    """Return sequences int64 [N, T] that `calibration_tokens` does not return, and the kind of their source.

    They come from the same source; from the model itself where a file holds no other sequences. A model without a cache, which
    is slow to sample from, writes short sequences.

    Args:
        tokens: about as many as are returned.
    """
    kind, _, path = config.source.partition(":")
    if kind in ("text", "tokens"):
        stream = read_shards(path) if kind == "tokens" else _read_text(Path(path), tokenizer, config.tokens * READ_AHEAD)
        used, count = config.tokens // config.seq_len, max(1, tokens // config.seq_len)
        rows_NT, _ = _choose_sequences(path, stream, used + count, config, vocab_size, skip=used)
        if len(rows_NT):
            return rows_NT, kind
        kind = "self"
    other = other_draw(replace(config, source=kind), model, tokens)
    return calibration_tokens(other, model, tokenizer, vocab_size, bos_id=bos_id, progress=progress)[0], kind


def other_draw(config: CalibrationConfig, model: nn.Module, tokens: int) -> CalibrationConfig:
    """Return the config of about so many tokens, drawn anew from the model itself or at random."""
    length = config.seq_len
    if config.source == "self" and not hasattr(model, "new_cache"):
        length, tokens = min(length, UNCACHED_LENGTH), tokens // UNCACHED_SHARE
    count = max(1, tokens // length)
    return replace(config, tokens=count * length, seq_len=length, seed=(config.seed + 1) % 2**63)


def _read_text(path: Path, tokenizer: Tokenizer | None, enough: int) -> np.ndarray[Any, Any]:
    if tokenizer is None:
        raise ConfigError(f"calibration text {path} needs a tokenizer", hint="pass --tokenizer FILE")
    # one token is at least one byte, so this reads enough; a long file is not read to its end
    return tokenizer.encode_documents(_first_bytes(read_documents(path), 4 * enough))


def _first_bytes(documents: Iterable[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for document in documents:
        yield document
        size += len(document)
        if size >= limit:
            return


def _choose_sequences(
    path: str, stream: np.ndarray[Any, Any], count: int, config: CalibrationConfig, vocab: int, *, skip: int = 0
) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Return the first `count` sequences in a random order of all, but for the first `skip`, in the order of the stream.

    Returns:
        ids: int64 [N, seq_len].
        places: where each begins in the stream, [N].
    """
    whole = len(stream) // config.seq_len
    if whole == 0:
        raise DataError(f"calibration data {path} has {len(stream)} tokens, one sequence needs {config.seq_len}")
    if int(stream.max()) >= vocab:
        raise DataError(f"calibration data {path} has token id {int(stream.max())}, the model's vocabulary is {vocab}")
    rows = stream[: whole * config.seq_len].reshape(whole, config.seq_len)
    chosen = np.sort(np.random.default_rng(config.seed).permutation(whole)[skip:count])
    return torch.from_numpy(rows[chosen].astype(np.int64)), chosen * config.seq_len


def _documents_at(stream: np.ndarray[Any, Any], places: np.ndarray[Any, Any], seq_len: int, bos_id: int) -> DocumentSample:
    """Return a sample of the documents that have a token in one of the sequences, which begin at `places`."""
    begins = np.flatnonzero(stream == bos_id)
    first, last = np.searchsorted(begins, places, "right") - 1, np.searchsorted(begins, places + seq_len - 1, "right") - 1
    read = {int(n) for low, high in zip(first, last, strict=True) for n in range(max(0, low), high + 1)}
    ends = np.append(begins[1:], len(stream))
    heads = (stream[begins[n] + 1 : min(begins[n] + 1 + HEAD_TOKENS, ends[n])] for n in sorted(read))
    return sample_heads((head.astype("<u4").tobytes() for head in heads), MOST_DOCUMENTS)
