"""Tokens of text or shards, and the bytes of text that each stands for where the tokenizer's table cannot tell.

Letter: N tokens.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError, DataError
from quantlab.text.documents import read_documents
from quantlab.text.shards import read_shards, read_sidecars
from quantlab.text.tokenizer import TokenBytes, Tokenizer

MOST_APART = 0.02
"""Largest relative difference of the sums: a tokenizer that normalizes stands for other bytes than the text had."""


def read_stream(
    text: str | Path | None, shards: str | None, tokenizer: Tokenizer | None
) -> tuple[NDArray[Any], NDArray[np.uint16] | None]:
    """Return the token ids [N] of a text file (each document begins with BOS) or of all shards that match a pattern.

    The second value has the bytes of text that each token stands for, [N]: of shards with sidecars, and of text that a
    tokenizer with case operators cuts. Otherwise it is None, and the tokenizer's table counts.

    Raises:
        DataError: text, shards or sidecars are missing or damaged, or sidecars count other bytes than the tokenizer's pieces.
    """
    if text is not None and tokenizer is not None:
        documents = read_documents(Path(text))
        if not tokenizer.has_operators:
            return tokenizer.encode_documents(documents), None
        counted = [tokenizer.encode_counted(document) for document in documents]
        ids, counts = ([value for part in parts for value in part] for parts in zip(*counted, strict=True))
        return np.array(ids, dtype=tokenizer.dtype), np.array(counts, dtype=np.uint16)
    if shards is None:
        raise ConfigError("a text file with its tokenizer or token shards are needed")
    stream, sidecar = np.asarray(read_shards(shards)), read_sidecars(shards)
    if sidecar is not None and tokenizer is not None and len(stream) and int(stream.max()) < tokenizer.vocab_size:
        check_sidecars(shards, stream, sidecar, tokenizer.token_bytes())
    return stream, sidecar


def check_sidecars(shards: str, stream: NDArray[np.integer], counts: NDArray[np.integer], token_bytes: TokenBytes) -> None:
    """Raise DataError if sidecars [N] count other bytes than the pieces of a stream [N] can stand for.

    A sidecar divides the score, so one with more bytes than there are would make it better.
    """
    found = int(counts[1:].sum(dtype=np.int64))
    wanted = int(token_bytes.count(stream[:-1], stream[1:]).sum(dtype=np.int64))
    if abs(found - wanted) > MOST_APART * wanted:
        raise DataError(
            f"the byte counts beside {shards!r} add up to {found:,}, the tokenizer's pieces to {wanted:,}: more than "
            f"{MOST_APART:.0%} apart",
            hint="name the tokenizer of these shards, or make the shards anew",
        )
