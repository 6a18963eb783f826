"""What training tokens must be, and a name for them."""

import hashlib
from typing import Any

import numpy as np

from quantlab.errors import DataError
from quantlab.trainer.config import TrainConfig

_FINGERPRINT_TOKENS = 1 << 20


def check_tokens(tokens: Any, config: TrainConfig) -> None:
    """Raise DataError unless `tokens` is uint16 [N], N above seq_len, with ids below the vocabulary size."""
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise DataError(f"training tokens must be uint16 [N], got {tokens.dtype} {list(tokens.shape)}")
    if len(tokens) <= config.seq_len:
        raise DataError(f"training needs more than seq_len = {config.seq_len} tokens, got {len(tokens)}")
    largest = int(tokens.max())
    if largest >= config.model.vocab_size:
        raise DataError(f"training tokens hold id {largest}, the model's vocab_size is {config.model.vocab_size}")


def fingerprint(tokens: Any) -> str:
    """Count and hash of the first million tokens: enough to notice other data, quick on a memory map."""
    head = np.ascontiguousarray(tokens[:_FINGERPRINT_TOKENS])
    return f"{len(tokens)} tokens, sha256 {hashlib.sha256(head.tobytes()).hexdigest()[:16]}"
