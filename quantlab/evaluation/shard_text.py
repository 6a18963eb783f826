"""Checks of the text that token shards stand for: that the tokenizer is theirs, and that the text was not changed before.

Shards have no text. What their tokens decode to must be cut into the same tokens again; a tokenizer that only has as many
pieces decodes them to nonsense, whose bytes mean nothing.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import DataError
from quantlab.evaluation.evaluation_record import Probe
from quantlab.text.tokenizer import Tokenizer

MOST_DOCUMENTS = 64
"""Documents that are looked at, spread over the stream."""
MOST_TOKENS = 16384
"""Longer documents are passed over."""
MAX_CHANGED = 0.1
"""Share of the documents that may be cut into other tokens: what a text normalizes to may be normalized again."""
LEAST_LETTERS = 10_000
"""Letters that have a capital, of which an honest text shows at least one."""


def shard_text_checks(stream: NDArray[np.integer], tokenizer: Tokenizer) -> list[Probe]:
    """Return the check that documents come back from their own text, and a line on text without capital letters.

    Args:
        stream: token ids, [N], each document with BOS first.
    """
    documents = list(_documents(stream, tokenizer.bos_id))
    if not documents:
        return [Probe(name="tokens", passed=None, detail="no whole document is scored, so none can be cut into tokens again")]
    texts = [_text(ids, tokenizer) for ids in documents]
    changed = sum(not _comes_back(ids, text, tokenizer) for ids, text in zip(documents, texts, strict=True))
    what = f"{changed:,} of {len(documents):,} documents are cut into other tokens by this tokenizer"
    is_ok = changed <= MAX_CHANGED * len(documents)
    return [Probe(name="tokens", passed=is_ok, detail=f"{what}; {MAX_CHANGED:.0%} may"), *_case(texts)]


def _documents(stream: NDArray[np.integer], bos_id: int) -> Iterator[NDArray[Any]]:
    """Yield the tokens of whole documents without BOS, evenly chosen among all; the last may be cut."""
    begins = np.flatnonzero(stream == bos_id)
    lengths = np.diff(begins) - 1
    usable = np.flatnonzero((lengths > 0) & (lengths <= MOST_TOKENS))
    for at in usable[:: max(1, -(-len(usable) // MOST_DOCUMENTS))].tolist():
        yield stream[begins[at] + 1 : begins[at + 1]]


def _text(ids: NDArray[Any], tokenizer: Tokenizer) -> bytes:
    """Return the text of a document, without the space that some tokenizers put before each."""
    return tokenizer.decode(ids).removeprefix(tokenizer.vocabulary.dummy_prefix)


def _comes_back(ids: NDArray[Any], text: bytes, tokenizer: Tokenizer) -> bool:
    expected: list[int] = ids.tolist()
    if expected and expected[-1] == tokenizer.eos_id:
        expected.pop()
    try:
        return tokenizer.encode(text) == expected
    except DataError:  # bytes that the tokenizer cannot express are not of its making
        return False


def _case(texts: list[bytes]) -> Iterator[Probe]:
    letters = "".join(text.decode(errors="ignore") for text in texts)
    cased = sum(letter.lower() != letter.upper() for letter in letters)
    if cased >= LEAST_LETTERS and letters == letters.lower():
        detail = f"no capital among {cased:,} letters: text that was changed before it was cut has other bytes than its source"
        yield Probe(name="letter case", passed=None, detail=detail)
