"""What each scored document costs: one that costs next to nothing was learned by heart.

Letters: N tokens in the stream, n scored tokens of a batch, D documents.
"""

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from quantlab.evaluation.evaluation_record import Probe
from quantlab.text.tokenizer import TokenBytes, Tokenizer

LEAST_BYTES = 256
"""Shorter documents are passed over: zlib's own header is a large part of them."""
SHARE_OF_ZLIB = 1 / 16
"""Bits of a document as a share of zlib's below which nobody predicts it who has not seen it. zlib takes 4 bits a byte of short
English documents, the best language models take 0.6; what repeats itself is short for both."""
MOST_BITS_PER_BYTE = 8 * SHARE_OF_ZLIB
"""Bits per byte from which a document is above that share, whatever it says: zlib never takes more than 8."""
MAX_MEMORIZED = 0.01
"""Share of the documents that may be known by heart: licences and the like are, honestly."""


class DocumentCosts:
    """Adds up the losses of every document of a stream while it is scored, in one process' share of it."""

    def __init__(self, stream: NDArray[np.integer], bos_id: int) -> None:
        """Take the stream that windows read, [N], each document with BOS first."""
        self.stream, self.bos_id = stream, bos_id
        self.begins_D = np.flatnonzero(stream == bos_id)
        self.ends_D = np.append(self.begins_D[1:], len(stream))[: len(self.begins_D)]
        self.nats_D = np.zeros(len(self.begins_D))
        self.scored_D = np.zeros(len(self.begins_D), np.int64)

    def enter(self, positions: NDArray[np.int64], nats: NDArray[np.floating]) -> None:
        """Add the losses at these positions, [n]; those of BOS, and of tokens before the first BOS, belong to no document."""
        which = np.searchsorted(self.begins_D, positions, "right") - 1
        counts = (which >= 0) & (self.stream[positions] != self.bos_id)
        if counts.any():
            low, high = int(which[counts].min()), int(which[counts].max()) + 1
            at = which[counts] - low
            self.nats_D[low:high] += np.bincount(at, nats[counts], minlength=high - low)
            self.scored_D[low:high] += np.bincount(at, minlength=high - low)

    def whole(self) -> NDArray[np.int64]:
        """Return the numbers of the documents of which every token was scored; the last may be cut, and is left out."""
        is_whole = (self.scored_D == self.ends_D - self.begins_D - 1) & (self.scored_D > 0)
        is_whole[-1:] = False
        return np.flatnonzero(is_whole)


def memorized(costs: DocumentCosts, token_bytes: TokenBytes, tokenizer: Tokenizer) -> Probe:
    """Check that the model does not know the scored documents by heart; it finds what costs nothing, not what costs less."""
    found, among = 0, 0
    for number in costs.whole().tolist():
        ids = costs.stream[costs.begins_D[number] : costs.ends_D[number]]
        size = int(token_bytes.count(ids[:-1], ids[1:]).sum(dtype=np.int64))
        if size < LEAST_BYTES:
            continue
        among += 1
        bits = costs.nats_D[number] / math.log(2)
        if bits < MOST_BITS_PER_BYTE * size:
            found += int(bits < SHARE_OF_ZLIB * 8 * len(zlib.compress(tokenizer.decode(ids), 9)))
    if not among:
        return Probe(name="memorized", passed=None, detail=f"no document of {LEAST_BYTES} bytes is scored whole")
    what = f"{found:,} of {among:,} documents cost less than 1/{1 / SHARE_OF_ZLIB:.0f} of what zlib takes, as if known by heart"
    return Probe(name="memorized", passed=found <= MAX_MEMORIZED * among, detail=f"{what}; {MAX_MEMORIZED:.0%} may")
