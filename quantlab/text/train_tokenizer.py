"""Train a small BPE tokenizer that gives back every byte of its input."""

import hashlib
import io
from collections.abc import Iterable
from typing import Any

import sentencepiece

from quantlab.errors import ConfigError, DataError
from quantlab.text.tokenizer import MAX_VOCAB, SPACE

MAX_BYTES = 4_000_000
SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "add_dummy_prefix": False,
    "character_coverage": 0.999,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    # Where the challenge folds text (nmt_nfkc), this keeps it: newlines and indentation are part of Python source.
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    # Whole documents are "sentences": one that is longer than the limit would be skipped (default 4,192 bytes), and the
    # newline at a sentence's end is cut off, so that a line each would leave "\n" out of the vocabulary.
    "max_sentence_length": 2**30,
    "num_threads": 1,  # written into the model, so the machine must not choose it
    "minloglevel": 2,  # errors only; they come as exceptions too
}
"""SentencePiece trainer options: the challenge's (data/download_hf_docs_and_tokenize.py) but for normalization."""


def train_tokenizer(documents: Iterable[bytes], *, vocab_size: int = 1024, max_bytes: int = MAX_BYTES, seed: int = 0) -> bytes:
    """A serialized SentencePiece BPE model, for `Tokenizer`; the same arguments give the same bytes.

    Args:
        documents: raw text; bytes that are not valid UTF-8 are left out of training (byte pieces cover them).
        vocab_size: pieces, with 256 byte pieces, 4 control pieces and the frequent characters among them.
        max_bytes: about how much text is used; documents are drawn in an order given by `seed`, the last one cut.
    Raises:
        ConfigError: vocab_size outside 261 to 65,536, or max_bytes below 1.
        DataError: no text, or its characters do not fit into vocab_size or cannot fill it.
    Source: Kudo and Richardson 2018, arXiv 1808.06226.
    """
    if not 261 <= vocab_size <= MAX_VOCAB:
        raise ConfigError(f"vocab_size must be 261 to {MAX_VOCAB}, got {vocab_size}")
    if max_bytes < 1:
        raise ConfigError(f"max_bytes must be 1 or more, got {max_bytes}")
    sentences = [_trainable(document) for document in _sample(list(documents), max_bytes=max_bytes, seed=seed)]
    if not any(sentence.strip() for sentence in sentences):
        raise DataError(f"no text to train a tokenizer on in {len(sentences)} documents")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, **SETTINGS
        )
    except RuntimeError as error:
        raise DataError(f"cannot train a tokenizer of {vocab_size} pieces on this text: {error}") from error
    return model.getvalue()


def _sample(documents: list[bytes], *, max_bytes: int, seed: int) -> list[bytes]:
    """Documents up to max_bytes in all, in the order of a hash: the same for every Python version, unlike random."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{index}".encode()).digest()

    chosen: list[bytes] = []
    left = max_bytes
    for index in sorted(range(len(documents)), key=key):
        if left <= 0:
            break
        chosen.append(documents[index][:left])
        left -= len(chosen[-1])
    return chosen


def _trainable(document: bytes) -> str:
    """Text without the characters that SentencePiece keeps for itself; it would skip a whole document for U+2585."""
    text = document.decode("utf-8", "ignore")
    return text.replace("\0", " ").replace(SPACE, " ").replace("\u2585", " ")
