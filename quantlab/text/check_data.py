"""Check token shards before a score on them is believed: headers, ids, documents, bytes, and train/validation overlap."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError, DataError
from quantlab.progress import Progress, silent, stage
from quantlab.text.known_splits import BYTES_SLACK, find_known_split
from quantlab.text.shards import ShardStream, open_shards
from quantlab.text.tokenizer import TokenBytes, Tokenizer

HEAD_TOKENS = 64
"""Tokens at the beginning of a document by which it is recognized."""
CHUNK_TOKENS = 2**22
"""Tokens that are checked at once."""
BOS_ID = 1
"""BOS of all the challenge's tokenizers; used where no tokenizer is given."""

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    is_ok: bool
    text: str
    """One line that says what was found, and for a failure what is allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCount:
    """Counts of the shards of one split."""

    shards: int
    tokens: int
    documents: int
    """Number of tokens that are BOS."""
    max_id: int
    """Largest token id."""
    bytes: int | None
    """Raw bytes of all tokens but the first, by the tokenizer's table; None without one or with ids that it does not have."""


@dataclass(frozen=True, slots=True)
class DataCheck:
    """All findings, and the counts of each split that could be read."""

    findings: list[Finding]
    splits: dict[str, SplitCount]
    overlap: int | None
    """Number of validation documents that begin like a training document; None if they could not be compared."""

    @property
    def is_ok(self) -> bool:
        """Whether no check failed."""
        return all(finding.is_ok for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings and counts as JSON values."""
        return {"ok": self.is_ok, **asdict(self)}


def check_data(
    train: str, val: str, tokenizer: Path | None = None, *, max_overlap: float = 0.01, progress: Progress = silent
) -> DataCheck:
    """Check training and validation shards. What is wrong with them is a finding, not an error.

    Args:
        train, val: glob patterns of the shards of each split.
        tokenizer: tokenizer that made the tokens; without it bytes are not counted.
        max_overlap: share of the validation documents, 0 to 1, that may occur in training. The web repeats itself, so
            large corpora share some; a wrong split shares most.
    Raises:
        ConfigError: `max_overlap` is out of range.
    """
    if not 0 <= max_overlap <= 1:
        raise ConfigError(f"max overlap must be 0 to 1, got {max_overlap}")
    findings: list[Finding] = []
    known = _try(findings, "tokenizer", lambda: Tokenizer.load(tokenizer), _about_tokenizer) if tokenizer else None
    overlap, splits = Overlap(), {}
    for name, pattern, take in (("val", val, overlap.add_val), ("train", train, overlap.look_for)):  # in this order
        stream = _try(findings, f"{name} shards", partial(open_shards, pattern), _about_shards)
        if stream is not None:
            splits[name] = _count(stream, known, take, stage(progress, f"read {name}"))
            findings += _split_findings(name, splits[name], known)
    if "val" in splits:
        findings += _known_findings(splits["val"])
    if "train" not in splits or not splits["train"].documents or not overlap.val_documents:
        return DataCheck(findings, splits, None)
    findings.append(_overlap_finding(overlap.found, overlap.val_documents, max_overlap))
    return DataCheck(findings, splits, overlap.found)


def _try(findings: list[Finding], check: str, make: Callable[[], Made], about: Callable[[Made], str]) -> Made | None:
    """Return the result of `make` and note a finding about it; a DataError becomes a finding, and the result is None."""
    try:
        made = make()
    except DataError as error:
        findings.append(Finding(check=check, is_ok=False, text=str(error)))
        return None
    findings.append(Finding(check=check, is_ok=True, text=about(made)))
    return made


def _about_tokenizer(tokenizer: Tokenizer) -> str:
    # a SentencePiece model without the piece U+2581 is refused when it is loaded
    space = ", a lone space (U+2581) is a piece" if tokenizer.kind in ("sentencepiece", "caseops") else ""
    space += ", with case operators" if tokenizer.has_operators else ""
    changes = f", normalizes text ({tokenizer.normalization})" if tokenizer.normalization else ""
    return f"{tokenizer.name}: {tokenizer.vocab_size:,} pieces, BOS {tokenizer.bos_id}{space}{changes}"


def _about_shards(stream: ShardStream) -> str:
    return f"{len(stream.paths):,} with {len(stream):,} tokens, headers and sizes agree"


def _count(
    stream: ShardStream, tokenizer: Tokenizer | None, take: Callable[[list[bytes]], None], report: Callable[[int, int], None]
) -> SplitCount:
    """Return the counts of a split in one pass over its shards; `take` is called with the heads of the documents."""
    bos_id = tokenizer.bos_id if tokenizer else BOS_ID
    table = tokenizer.token_bytes() if tokenizer else None
    documents, max_id, counts = 0, 0, list[int | None]()
    for start in range(0, len(stream), CHUNK_TOKENS):
        tokens = stream[start : start + CHUNK_TOKENS + 1 + HEAD_TOKENS]
        documents += int(np.count_nonzero(tokens[:CHUNK_TOKENS] == bos_id))
        max_id = max(max_id, int(tokens.max()))
        counts.append(_count_bytes(tokens, table))
        take(document_heads(tokens, bos_id=bos_id, limit=CHUNK_TOKENS))
        report(min(start + CHUNK_TOKENS, len(stream)), len(stream))
    known = [count for count in counts if count is not None]
    total = sum(known) if len(known) == len(counts) else None
    return SplitCount(shards=len(stream.paths), tokens=len(stream), documents=documents, max_id=max_id, bytes=total)


def _count_bytes(tokens: NDArray[Any], table: TokenBytes | None) -> int | None:
    """Return the bytes of tokens 1 to CHUNK_TOKENS, so that all chunks count each token but the stream's first once."""
    if table is None or int(tokens.max()) >= len(table.base):
        return None
    target = tokens[1 : CHUNK_TOKENS + 1]
    return int(table.count(tokens[: len(target)], target).sum(dtype=np.int64))


def _split_findings(name: str, split: SplitCount, tokenizer: Tokenizer | None) -> list[Finding]:
    bos_id = tokenizer.bos_id if tokenizer else BOS_ID
    found = f"{split.documents:,} documents, each begins with BOS ({bos_id})"
    missing = f"no BOS ({bos_id}) in {split.tokens:,} tokens: the beginnings of documents cannot be found"
    findings = [Finding(check=f"{name} documents", is_ok=split.documents > 0, text=found if split.documents else missing)]
    if tokenizer:
        findings.append(_ids_finding(name, split, tokenizer.vocab_size))
    if split.bytes is not None:
        text = f"{split.bytes:,} by the tokenizer's table, {split.bytes / max(1, split.tokens - 1):.5f} per token"
        findings.append(Finding(check=f"{name} bytes", is_ok=split.bytes > 0, text=text))
    return findings


def _ids_finding(name: str, split: SplitCount, vocab_size: int) -> Finding:
    text = f"the largest is {split.max_id:,}, the tokenizer has 0 to {vocab_size - 1:,}"
    # With a larger tokenizer than the shards' own, every id is in range and every byte count is wrong. The last pieces of a
    # vocabulary are rare characters, but a hundred tokens for each piece always include some of the upper half.
    is_foreign = split.tokens > 100 * vocab_size and split.max_id < vocab_size // 2
    if is_foreign:
        text += ": the shards were made by another tokenizer"
    return Finding(check=f"{name} ids", is_ok=split.max_id < vocab_size and not is_foreign, text=text)


def _known_findings(val: SplitCount) -> list[Finding]:
    """Return the check against the public export that has this number of tokens: documents and bytes must agree too."""
    known = find_known_split(val.tokens)
    if known is None:
        return []
    text, is_ok = f"as many tokens as the public export {known.name}, which scores {known.scored_tokens:,}", True
    if known.documents is not None:
        text += f"; it has {known.documents:,} documents, here {val.documents:,}"
        is_ok = known.documents == val.documents
    if known.has_table:
        text += f"; they stand for {known.bytes / 1e6:.3f} MB" + (f", here {val.bytes / 1e6:.3f} MB" if val.bytes else "")
        is_ok &= val.bytes is None or abs(val.bytes / known.bytes - 1) <= BYTES_SLACK
    return [Finding(check="val export", is_ok=is_ok, text=text)]


def _overlap_finding(found: int, documents: int, max_overlap: float) -> Finding:
    share = found / documents
    what = f"begin with the same {HEAD_TOKENS} tokens as a training document"
    text = f"{found:,} of {documents:,} validation documents with text ({share:.2%}) {what}; {max_overlap:.2%} may"
    return Finding(check="overlap", is_ok=share <= max_overlap, text=text)


def document_heads(tokens: NDArray[Any], *, bos_id: int, limit: int) -> list[bytes]:
    """Return the first 64 tokens after each BOS in tokens[:limit], as bytes of uint32.

    A shorter document gives all that it has. Documents without tokens are left out.
    `tokens` continues for 64 tokens after `limit` so that no head is cut.
    """
    at = np.flatnonzero(tokens == bos_id)
    starts = at + 1
    ends = np.minimum(starts + HEAD_TOKENS, np.append(at[1:], len(tokens)))
    is_wanted = (at < limit) & (ends > starts)
    data = tokens.astype("<u4").tobytes()  # shards of both versions give the same bytes
    return [data[4 * start : 4 * end] for start, end in zip(starts[is_wanted].tolist(), ends[is_wanted].tolist(), strict=True)]


class Overlap:
    """Counts validation documents that begin with the same 64 tokens as a training document.

    Heads are compared whole, not by hash. Pages of one web site can share that many tokens without being equal.
    Source: openai/parameter-golf #2127, where 80 % of the validation documents were found in training.
    """

    def __init__(self) -> None:
        self._val: Counter[bytes] = Counter()
        self._found: set[bytes] = set()

    def add_val(self, heads: Iterable[bytes]) -> None:
        """Remember the heads of validation documents."""
        self._val.update(heads)

    def look_for(self, heads: Iterable[bytes]) -> None:
        """Look the heads of training documents up among all validation documents added so far."""
        self._found.update(head for head in heads if head in self._val)

    @property
    def val_documents(self) -> int:
        """Number of validation documents added so far."""
        return self._val.total()

    @property
    def found(self) -> int:
        """Number of validation documents that begin like a training document seen so far."""
        return sum(self._val[head] for head in self._found)
