"""Figures of the challenge's public validation split, by which a complete export is told from a cut or changed one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownSplit:
    """One public export of the validation split."""

    name: str
    scored_tokens: int
    """Number of tokens that an evaluation scores: all but the first, cut to a multiple of its sequence length."""
    bytes: int
    """Raw bytes that the scored tokens stand for, to five digits."""
    vocab_size: int
    """Ids of its tokenizer."""
    documents: int | None = 50_000
    """Number of documents; None where the logs do not say."""
    has_table: bool = True
    """Whether the tokenizer's own table counts the bytes; otherwise a sidecar file or other code does."""


KNOWN_SPLITS = (
    KnownSplit("sp1024", 62_021_632, 151_080_000, 1024),
    KnownSplit("sp4096", 45_508_608, 151_074_000, 4096),
    KnownSplit("sp4096 of pull request 1285", 45_514_752, 151_094_000, 4096),
    KnownSplit("sp8192", 40_540_160, 151_078_000, 8192),
    KnownSplit("CaseOps sp8192", 47_851_520, 151_074_000, 8192, has_table=False),
    KnownSplit("byte260", 151_130_112, 151_080_000, 260, has_table=False),
    KnownSplit("sp1024 of the first baseline log", 63_779_840, 155_770_000, 1024, documents=None),
)
"""The public exports. Source: logs of merged records of openai/parameter-golf; bytes = tokens * val_loss / (ln 2 * val_bpb),
to about 10,000; for pull request 1285 the bytes of sp4096 and of its 6,144 further tokens."""
SEQ_LENS = (1024, 2048)
"""Sequence lengths at which the logs were written."""
BYTES_SLACK = 1e-3
"""Largest relative difference of counted bytes: the logs are rounded, and the cut leaves some tokens out."""


def find_known_split(tokens: int) -> KnownSplit | None:
    """Return the public export whose logs show this number of validation tokens, at sequences of 1,024 or 2,048; else None."""
    scored = {(tokens - 1) // seq_len * seq_len for seq_len in SEQ_LENS}
    return next((known for known in KNOWN_SPLITS if known.scored_tokens in scored), None)
