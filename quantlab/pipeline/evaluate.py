"""Score a loaded model on text or token shards."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError
from quantlab.pipeline.models import Loaded
from quantlab.pipeline.progress import Progress, silent, stage
from quantlab.text.documents import read_documents
from quantlab.text.shards import read_shards
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.compare import Comparison, compare
from quantlab.trainer.evaluate import Score, evaluate


def evaluation_tokens(text: Path | None, shards: str | None, tokenizer: Tokenizer) -> NDArray[Any]:
    """Token ids [N] of a text file (each document begun with BOS) or of all shards that match a pattern."""
    if text is not None:
        return tokenizer.encode_documents(read_documents(text))
    if shards is None:
        raise ConfigError("evaluation needs a text file or token shards")
    return np.asarray(read_shards(shards))


def evaluate_target(
    loaded: Loaded, tokens: NDArray[Any], tokenizer: Tokenizer, *, seq_len: int, progress: Progress = silent
) -> Score:
    """Bits per byte of the loaded model on `tokens`, in sequences of `seq_len` that do not overlap."""
    counts = tokenizer.token_bytes()
    return evaluate(loaded.model, tokens, counts, seq_len=seq_len, progress=stage(progress, "evaluate"))


def compare_targets(
    reference: Loaded, loaded: Loaded, tokens: NDArray[Any], *, seq_len: int, progress: Progress = silent
) -> Comparison:
    """KL, flips and paired loss difference of `loaded` against `reference` on the same sequences."""
    return compare(reference.model, loaded.model, tokens, seq_len=seq_len, progress=stage(progress, "compare"))
