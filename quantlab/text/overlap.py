"""Validation documents that training has seen too, found by how they begin."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

HEAD_TOKENS = 64


def document_heads(tokens: NDArray[np.uint16], *, bos_id: int, limit: int) -> list[bytes]:
    """The first 64 tokens after each BOS in tokens[:limit], as bytes; a shorter document gives what it has.

    Documents without tokens are left out. `tokens` goes on for 64 tokens after `limit` so that no head is cut.
    """
    at = np.flatnonzero(tokens == bos_id)
    starts = at + 1
    ends = np.minimum(starts + HEAD_TOKENS, np.append(at[1:], len(tokens)))
    is_wanted = (at < limit) & (ends > starts)
    data = tokens.tobytes()
    return [data[2 * start : 2 * end] for start, end in zip(starts[is_wanted].tolist(), ends[is_wanted].tolist(), strict=True)]


class Overlap:
    """Which validation documents begin like a training document.

    Heads are compared whole, not by hash: a document is in training only if its first 64 tokens are. Pages of one web
    site can share that much without being equal. Source: openai/parameter-golf #2127, where 80 % did.
    """

    def __init__(self) -> None:
        self._val: Counter[bytes] = Counter()
        self._found: set[bytes] = set()

    def add_val(self, heads: Iterable[bytes]) -> None:
        """Remember validation documents."""
        self._val.update(heads)

    def look_for(self, heads: Iterable[bytes]) -> None:
        """Compare training documents with all validation documents added so far."""
        self._found.update(head for head in heads if head in self._val)

    @property
    def val_documents(self) -> int:
        """Validation documents added so far."""
        return self._val.total()

    @property
    def found(self) -> int:
        """Validation documents that begin like a training document seen so far."""
        return sum(self._val[head] for head in self._found)
