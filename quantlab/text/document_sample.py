"""A small sample of the documents that somebody read, by which a later evaluation finds out whether it scores the same ones.

A document is known by its first 64 tokens. Of all hashes the smallest are kept: two samples keep the same documents, so that a
few hundred of millions tell the share that two sets have in common.
Source of the sampling: Cohen and Kaplan, Summarizing data using bottom-k sketches, PODC 2007.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import DataError
from quantlab.text.check_data import CHUNK_TOKENS, HEAD_TOKENS, document_heads

HASH_BYTES = 5
"""Of 50,000 documents none has the hash of another set's document by chance: 2^-40 a pair."""
LEAST_TOKENS = 16
"""Shorter documents are passed over: two of them may be equal by chance."""
MOST_READ = 2**26
"""Tokens of a longer stream that are looked at, in spans that are spread over it."""


class Tokens(Protocol):
    """A long vector of token ids, in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class DocumentSample:
    """The smallest hashes of a set of documents."""

    documents: int
    """Number of different documents in the set."""
    hashes: tuple[int, ...]
    """The smallest of their hashes, ascending; all where the set is small."""

    def smallest(self, most: int) -> "DocumentSample":
        """Return a sample of at most this many hashes."""
        return DocumentSample(self.documents, self.hashes[:most])

    @property
    def bound(self) -> int:
        """Hashes up to this one are in the sample if their document is in the set."""
        return self.hashes[-1] if len(self.hashes) < self.documents else 2 ** (8 * HASH_BYTES)

    def meet(self, scored: "DocumentSample") -> tuple[int, int]:
        """Return how many of the documents of another set are in this one, and how many could be compared.

        >>> DocumentSample(9, (2, 3, 5)).meet(DocumentSample(4, (1, 3, 5, 8)))
        (2, 3)
        """
        if not self.hashes:
            return 0, 0
        bound, mine = min(self.bound, scored.bound), set(self.hashes)
        comparable = [value for value in scored.hashes if value <= bound]
        return sum(value in mine for value in comparable), len(comparable)

    def union(self, other: "DocumentSample") -> "DocumentSample":
        """Return a sample of the documents of both sets; how many there are together is at most the sum.

        >>> DocumentSample(9, (2, 3, 5)).union(DocumentSample(2, (4, 7)))
        DocumentSample(documents=11, hashes=(2, 3, 4, 5))
        """
        bound = min(self.bound, other.bound)
        together = tuple(sorted({*self.hashes, *other.hashes}))
        if len(self.hashes) == self.documents and len(other.hashes) == other.documents:
            return DocumentSample(len(together), together)
        return DocumentSample(self.documents + other.documents, tuple(value for value in together if value <= bound))

    def to_text(self) -> str:
        """Return the sample as a short text; `from_text` reads it."""
        data = b"".join(value.to_bytes(HASH_BYTES) for value in self.hashes)
        return f"{self.documents}:{base64.b64encode(data).decode()}"

    @classmethod
    def from_text(cls, text: str, where: str) -> "DocumentSample":
        """Return the sample of a text from a file. DataError if it is damaged; `where` names its place."""
        count, _, packed = text.partition(":")
        try:
            data = base64.b64decode(packed, validate=True)
            documents = int(count) if len(count) < 20 and count.isdecimal() and count.isascii() else -1
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{where}: a sample of documents is damaged: {error}") from error
        hashes = tuple(int.from_bytes(data[at : at + HASH_BYTES]) for at in range(0, len(data), HASH_BYTES))
        if len(data) % HASH_BYTES or documents < len(hashes) or any(a >= b for a, b in pairwise(hashes)):
            raise DataError(f"{where}: a sample of documents is damaged: its hashes do not ascend or are cut")
        return cls(documents, hashes)


def sample_heads(heads: Iterable[bytes], most: int) -> DocumentSample:
    """Return a sample of documents by their heads, as `document_heads` gives them."""
    found = sorted({_hash(head) for head in heads if len(head) >= 4 * LEAST_TOKENS})
    return DocumentSample(len(found), tuple(found[:most]))


def sample_documents(tokens: Tokens, bos_id: int, most: int) -> DocumentSample:
    """Return a sample of the documents that begin in a stream, or in parts of it that have `MOST_READ` tokens together.

    Args:
        tokens: token ids, [N], each document with BOS first. A document that begins before the stream is not known.
        most: largest number of hashes.
    """
    step = max(1, len(tokens) // MOST_READ) * CHUNK_TOKENS
    heads: set[bytes] = set()
    for start in range(0, len(tokens), step):
        span: NDArray[Any] = np.asarray(tokens[start : start + CHUNK_TOKENS + 1 + HEAD_TOKENS])
        heads.update(document_heads(span, bos_id=bos_id, limit=CHUNK_TOKENS))
    return sample_heads(heads, most)


def _hash(head: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(head, digest_size=HASH_BYTES).digest())
