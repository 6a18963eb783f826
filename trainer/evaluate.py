"""Bits per byte of a model on a token stream, the way the Parameter Golf baseline counts it.

B: sequences in a batch, T: tokens in a sequence, V: vocabulary, N: tokens in the stream.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from quantlab.errors import ConfigError, DataError, QuantlabError, ShapeError
from quantlab.text.tokenizer import TokenBytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a model scored on a text, and the counts to check it by."""

    val_bpb: float
    """Bits per byte: nats / (ln 2 · bytes)."""
    val_loss: float
    """Mean nats per token."""
    tokens: int
    """Scored tokens, BOS among them."""
    bytes: int
    """Bytes of raw text that the scored tokens stand for."""
    nats: float
    """Total negative log-likelihood, summed in float64."""
    seq_len: int
    """Tokens of context at most; each sequence starts without any."""

    def to_dict(self) -> dict[str, float | int]:
        """The fields by name, for JSON."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    tokens: NDArray[np.integer],
    token_bytes: TokenBytes,
    *,
    seq_len: int = 1024,
    batch_tokens: int = 32768,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score each token once, in sequences that neither overlap nor see each other.

    The first token is never a target, and what is left after the last whole sequence is not scored: of N tokens
    (N-1) // seq_len · seq_len are. BOS targets cost nats and count 0 bytes.

    Args:
        model: maps ids, int64 [B, T], to logits, floating [B, T, V]; runs in eval mode, its modes are restored.
        tokens: ids, uint16 or any integer dtype, [N].
        token_bytes: byte counts of the V pieces of the tokenizer that made the tokens.
        seq_len: T.
        batch_tokens: most tokens in one call of the model, which bounds the logits; one sequence at least.
        progress: called with (sequences done, sequences in all) after each batch.
    Raises:
        ConfigError: seq_len or batch_tokens below 1.
        DataError: fewer than seq_len + 1 tokens, an id that is not in the vocabulary, or no bytes of text.
        ShapeError: tokens is not a vector of integers, or the logits are not [B, T, V].
        QuantlabError: a loss that is not finite.
    Source: openai/parameter-golf train_gpt.py, eval_val.
    """
    stream = _usable(tokens, token_bytes, seq_len)
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be 1 or more, got {batch_tokens}")
    byte_count = int(token_bytes.count(stream[:-1], stream[1:]).sum(dtype=np.int64))
    if byte_count == 0:
        raise DataError(f"the {len(stream) - 1:,} scored tokens stand for 0 bytes of text")
    nats = _total_nats(model, stream, len(token_bytes.base), seq_len, max(1, batch_tokens // seq_len), progress)
    count = len(stream) - 1
    return Score(
        val_bpb=nats / (math.log(2) * byte_count),
        val_loss=nats / count,
        tokens=count,
        bytes=byte_count,
        nats=nats,
        seq_len=seq_len,
    )


def _usable(tokens: NDArray[np.integer], token_bytes: TokenBytes, seq_len: int) -> NDArray[np.integer]:
    """The scored part of the stream and the token before it."""
    if seq_len < 1:
        raise ConfigError(f"seq_len must be 1 or more, got {seq_len}")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ShapeError(f"tokens must be a vector of integers, got {tokens.dtype} {tokens.shape}")
    if len(tokens) <= seq_len:
        raise DataError(f"{len(tokens):,} tokens are too few: one sequence of {seq_len:,} needs {seq_len + 1:,}")
    vocab_size = len(token_bytes.base)
    for token in (int(tokens.min()), int(tokens.max())):
        if not 0 <= token < vocab_size:
            raise DataError(f"token id {token} in the text, the vocabulary has 0 to {vocab_size - 1}")
    usable = (len(tokens) - 1) // seq_len * seq_len
    return tokens[: usable + 1]


def _total_nats(
    model: nn.Module,
    stream: NDArray[np.integer],
    vocab_size: int,
    seq_len: int,
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> float:
    """Float64 sum over all sequences, `batch` of them at a time."""
    device = next(model.parameters(), torch.empty(0)).device
    sequences = (len(stream) - 1) // seq_len
    total = 0.0
    with torch.inference_mode(), _eval_mode(model):
        for start in range(0, sequences, batch):
            stop = min(start + batch, sequences)
            ids = torch.from_numpy(stream[start * seq_len : stop * seq_len + 1].astype(np.int64)).to(device)
            nats_BT = _nats(model(ids[:-1].view(-1, seq_len)), ids[1:].view(-1, seq_len), vocab_size)
            _check_finite(nats_BT, start)
            total += float(nats_BT.sum(dtype=torch.float64))
            if progress is not None:
                progress(stop, sequences)
    return total


def _nats(logits_BTV: Tensor, y_BT: Tensor, vocab_size: int) -> Tensor:
    """Loss of each token, float32 [B, T], whatever the dtype of the logits."""
    if logits_BTV.shape != (*y_BT.shape, vocab_size):
        raise ShapeError(f"logits must be {[*y_BT.shape, vocab_size]}, the model gave {list(logits_BTV.shape)}")
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), y_BT.flatten(), reduction="none").view_as(y_BT)


def _check_finite(nats_BT: Tensor, first_sequence: int) -> None:
    bad = (~torch.isfinite(nats_BT)).nonzero()
    if len(bad):
        row, column = (int(index) for index in bad[0])
        value = float(nats_BT[row, column])
        raise QuantlabError(f"loss is {value} in sequence {first_sequence + row}, token {column}: must be finite")


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; after it each module is as it was, also where parts of a model differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
