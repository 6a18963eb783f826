"""What every kind of tokenizer gives: the bytes of text of each id, and the ids of raw bytes.

Letter: V ids in the vocabulary.
"""

import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MAX_VOCAB = 2**22
"""Most ids of a vocabulary: a table of them stays small, whatever a file says."""


class Vocabulary(Protocol):
    """A tokenizer file that was read and checked. Each kind has a class in a module of its own."""

    kind: str
    """sentencepiece, caseops, huggingface or byte260."""
    bos_id: int
    """Id that begins every document."""
    eos_id: int | None
    """Id that ends a text; None where the tokenizer names none."""
    normalization: str
    """What changes text before it is cut into tokens, by name; empty where nothing does."""
    unknown_id: int | None
    """Id of characters that the vocabulary lacks, which lose their bytes; None where nothing can be lacking."""
    dummy_prefix: bytes
    """What the tokenizer puts before every text, a space or nothing; where it follows BOS it is not counted."""
    piece_bytes: list[bytes]
    """Bytes of text of each id, V of them; empty for ids that stand for no text."""
    is_boundary_V: NDArray[np.bool_]
    """Whether the id stands for no text: control, special, unknown and unused ids."""
    has_space_V: NDArray[np.bool_]
    """Whether the first byte is a space that is not part of the text where the id directly follows a boundary."""

    operator_ids: tuple[int, ...]
    """Ids whose bytes are no text but change how the bytes after them are written; empty for all kinds but caseops."""

    def encode(self, data: bytes) -> list[int]:
        """Return the ids of raw bytes, without BOS. DataError where the vocabulary cannot express a byte."""

    def restore(self, data: bytes) -> bytes:
        """Return the text that joined `piece_bytes` stand for."""


def runs_of(data: bytes, raw_characters: str = "") -> Iterator[tuple[str, bytes, bool]]:
    """Yield the runs of raw bytes that a tokenizer of text can take and those that it cannot, in turns.

    Bytes that are not valid UTF-8 and the given characters are in the second kind of run.

    Yields:
        The run as text (decoded with surrogateescape), its bytes, and whether it is of the second kind.
    """
    marks = f"[\udc80-\udcff{raw_characters}]"
    # valid UTF-8 never decodes to surrogates, so U+DC80 to U+DCFF mark exactly the invalid bytes
    pattern = f"(?P<raw>{marks}+)|{marks.replace('[', '[^', 1)}+"
    for run in re.finditer(pattern, data.decode("utf-8", "surrogateescape")):
        yield run[0], run[0].encode("utf-8", "surrogateescape"), run["raw"] is not None
