"""Train a tokenizer on text files."""

from collections.abc import Sequence
from pathlib import Path

from quantlab.files import write_whole
from quantlab.outputs import check_outputs
from quantlab.text.documents import read_documents
from quantlab.text.tokenizer import Tokenizer, train_tokenizer


def train_to_file(
    sources: Sequence[Path],
    out: Path,
    *,
    vocab_size: int,
    max_bytes: int,
    seed: int = 0,
    has_operators: bool = False,
    force: bool = False,
) -> Tokenizer:
    """Write a SentencePiece model and return it as a tokenizer; the same text and arguments give the same file.

    Args:
        sources: files that `read_documents` reads.
        max_bytes: bytes of text that are used, about.
        has_operators: whether capitals become operators (CaseOps).
    Raises:
        ConfigError: an argument is out of range, or `out` exists and `force` is not given.
        DataError: a source is missing or damaged, or its text gives no vocabulary of this size.
    """
    check_outputs([out], inputs=list(sources), force=force)
    documents = (document for source in sources for document in read_documents(source))
    model = train_tokenizer(documents, vocab_size=vocab_size, max_bytes=max_bytes, seed=seed, has_operators=has_operators)
    made = Tokenizer(model, name=str(out))
    write_whole(out, model)
    return made
