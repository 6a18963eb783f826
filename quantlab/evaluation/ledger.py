"""The ledger of an evaluation proves that every token is scored once, from left to right, before anything adapts to it.

Positions count tokens of the stream from 0. Letters: N tokens in the stream, n positions of one entry.
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import QuantlabError
from quantlab.evaluation.windows import Mode
from quantlab.text.known_splits import KNOWN_SPLITS, KnownSplit
from quantlab.text.tokenizer import TokenBytes

SPLIT_TOKENS = 2048
"""Two cuts of one split differ by fewer tokens: those after the last whole sequence."""
SPLIT_BYTES_TOLERANCE = 2e-4
"""Largest relative difference from the known bytes of a split. These are known to five digits, and 2,047 tokens are 8 kB of
151 MB; spaces that are counted twice would make a difference of 1e-1."""


def due_positions(stream: NDArray[np.integer], mode: Mode, bos_id: int) -> NDArray[np.bool_]:
    """Return which positions must be scored, [N]: all but the first, and in mode document all but BOS."""
    due = stream != bos_id if mode == "document" else np.ones(len(stream), dtype=np.bool_)
    due[0] = False
    return due


class Ledger:
    """The scores of one process' share of a stream, and the counts of what was scored."""

    def __init__(
        self,
        stream: NDArray[np.integer],
        due: NDArray[np.bool_],
        token_bytes: TokenBytes,
        *,
        bos_id: int,
        byte_counts: NDArray[np.integer] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        """Account for the due positions from `start` to `stop`, by default all.

        `stream` and `due`, both [N], are those of all processes; so are `byte_counts`, which replace the tokenizer's table.
        """
        self.byte_counts = byte_counts
        self.stream, self.due, self.token_bytes, self.bos_id = stream, due, token_bytes, bos_id
        self.start, self.next, self.stop = start, start, len(stream) if stop is None else stop
        self.nats, self.tokens, self.bytes, self.documents = 0.0, 0, 0, 0

    def write(self, positions: NDArray[np.int64], nats: NDArray[np.floating]) -> None:
        """Enter the losses of the next due positions.

        Args:
            positions: [n], ascending.
            nats: negative log-likelihood of the token at each position, [n].
        Raises:
            QuantlabError: a position is scored a second time, left out, or not due; or a loss is not finite.
        """
        end = min(int(positions.max(initial=-1)) + 1, self.stop)
        expected = self.next + np.flatnonzero(self.due[self.next : end])
        if not np.array_equal(positions, expected):
            raise QuantlabError(self._mistake(positions, expected))
        if not np.isfinite(nats).all():
            at = int(np.flatnonzero(~np.isfinite(nats))[0])
            raise QuantlabError(f"the loss is {nats[at]} at token {positions[at]:,} of the text: it must be finite")
        self.nats += float(nats.sum(dtype=np.float64))
        self._count(positions)
        self.next = max(self.next, end)

    def adaptable(self, start: int, stop: int) -> NDArray[np.integer]:
        """Return the tokens from `start` to `stop`, for a model that adapts to them. QuantlabError unless they are scored."""
        if start < self.start:
            raise QuantlabError(
                f"token {start:,} belongs to another ledger: nothing here may adapt to tokens before {self.start:,}"
            )
        waiting = self.next + np.flatnonzero(self.due[self.next : stop])
        if len(waiting):
            raise QuantlabError(f"token {waiting[0]:,} is not scored yet: nothing may adapt to tokens before {stop:,}")
        return self.stream[start:stop]

    def part(self, start: int, stop: int) -> "Ledger":
        """Return a ledger of the positions from `start` to `stop` alone: of a document that is scored beside others."""
        alike = {"bos_id": self.bos_id, "byte_counts": self.byte_counts}
        return type(self)(self.stream, self.due, self.token_bytes, **alike, start=start, stop=stop)  # type: ignore[arg-type]

    def join(self, part: "Ledger") -> None:
        """Enter all scores of a part. QuantlabError unless it is whole, and the next part of this ledger."""
        part.close()
        waiting = self.next + np.flatnonzero(self.due[self.next : part.start])
        if part.start < self.next:
            raise QuantlabError(f"token {part.start:,} is scored a second time")
        if len(waiting):
            raise QuantlabError(f"token {waiting[0]:,} must be scored before token {part.start:,}")
        if part.stop > self.stop:
            raise QuantlabError(f"token {self.stop:,} must not be scored here")
        self.nats, self.tokens = self.nats + part.nats, self.tokens + part.tokens
        self.bytes, self.documents = self.bytes + part.bytes, self.documents + part.documents
        self.next = part.stop

    def close(self) -> None:
        """Raise QuantlabError unless every due position of this share is scored."""
        left = self.next + np.flatnonzero(self.due[self.next : self.stop])
        if len(left):
            raise QuantlabError(f"token {left[0]:,} is not scored, and {len(left) - 1:,} more")

    def _count(self, positions: NDArray[np.int64]) -> None:
        """Add to the counts; a document counts at its first scored token: BOS, or the token after one that is never scored."""
        self.tokens += len(positions)
        before, here = self.stream[positions - 1], self.stream[positions]
        counts = self.token_bytes.count(before, here) if self.byte_counts is None else self.byte_counts[positions]
        self.bytes += int(counts.sum(dtype=np.int64))
        self.documents += int(((here == self.bos_id) | ~self.due[positions - 1]).sum())

    def _mistake(self, positions: NDArray[np.int64], expected: NDArray[np.int64]) -> str:
        """Return an error text for the first wrong position."""
        both = min(len(positions), len(expected))
        at = int(np.argmax(np.append(positions[:both] != expected[:both], True)))
        position = int(positions[at])
        if position < self.next or position in positions[:at]:
            return f"token {position:,} is scored a second time"
        if position >= self.stop or not self.due[position]:
            return f"token {position:,} must not be scored here"
        return f"token {expected[at]:,} must be scored before token {position:,}"


def implied_bytes(nats: float, bpb: float) -> float:
    """Return the number of bytes that a score was divided by; this also works for figures in another project's log."""
    return nats / (math.log(2) * bpb)


def public_split(targets: int) -> KnownSplit | None:
    """Return the public split that has this number of targets (BOS tokens included), or None."""
    return next((split for split in KNOWN_SPLITS if abs(targets - split.scored_tokens) < SPLIT_TOKENS), None)


def bytes_match(split: KnownSplit, byte_count: float) -> bool:
    """Return whether the text of `split` has about this number of bytes. If not, the byte counts or the text are wrong."""
    return abs(byte_count - split.bytes) <= SPLIT_BYTES_TOLERANCE * split.bytes
