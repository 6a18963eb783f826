"""A SentencePiece tokenizer for raw bytes, the bytes of text that each token stands for, and training of a small BPE model.

Letters: V pieces in the vocabulary, N tokens.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from quantlab.errors import ConfigError, DataError

SPACE = "\u2581"
"""SentencePiece writes a space as this character (U+2581)."""
MAX_VOCAB = 2**16
"""Largest vocabulary: token ids are stored as uint16."""

_SPANS = re.compile(f"(?P<raw>[\udc80-\udcff{SPACE}]+)|[^\udc80-\udcff{SPACE}]+")
"""Cuts text that was decoded with surrogateescape into runs that must become byte pieces (raw) and runs for SentencePiece.

A U+2581 in the text itself is raw too: SentencePiece would turn it into a space, which is 1 byte where the text has 3.
"""


MAX_BYTES = 4_000_000
"""Bytes of text on which a tokenizer is trained by default."""
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
    # The challenge normalizes text (nmt_nfkc); this does not, because newlines and indentation are part of Python source.
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    # Whole documents are "sentences". One longer than the limit (default 4,192 bytes) would be skipped, and the newline at a
    # sentence's end is cut off, so a sentence for each line would leave "\n" out of the vocabulary.
    "max_sentence_length": 2**30,
    "num_threads": 1,  # stored in the model, so it must not depend on the machine
    "minloglevel": 2,  # errors only, which are also raised as exceptions
}
"""Options of the SentencePiece trainer: except for normalization, those of the challenge
(data/download_hf_docs_and_tokenize.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBytes:
    """Number of bytes of raw text that each token of a vocabulary stands for.

    Source: openai/parameter-golf train_gpt.py, build_sentencepiece_luts.
    """

    base: NDArray[np.int32]
    """Bytes of each piece without its leading space, [V]; 1 for a byte piece; 0 for control, unknown and unused pieces."""
    has_space: NDArray[np.bool_]
    """Whether the piece starts with a space, [V]."""
    is_boundary: NDArray[np.bool_]
    """Whether it is a control, unknown or unused piece, [V]; a space directly after one is not part of the text."""

    def count(self, prev: NDArray[np.integer], target: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the bytes of each target token.

        Args:
            prev: token ids, any shape.
            target: token ids, the same shape; target[i] follows prev[i].
        Returns:
            int32, the same shape.
        """
        count: NDArray[np.int32] = self.base[target] + (self.has_space[target] & ~self.is_boundary[prev])
        return count


class Tokenizer:
    """A SentencePiece model that encodes bytes, valid UTF-8 or not.

    With identity normalization and byte pieces, as `train_tokenizer` makes them, decode(encode(x)) == x for all bytes.
    A model with another normalization, like the challenge's NFKC, loses what it normalizes.
    """

    def __init__(self, model_bytes: bytes, *, name: str = "tokenizer") -> None:
        """Load a serialized model; `name` is used in error texts.

        Raises:
            DataError: it is not a SentencePiece model, has more than 65,536 pieces, no BOS piece, or no piece for a space.
        """
        self.name = name
        self.model_bytes = model_bytes
        if not model_bytes:  # SentencePiece accepts an empty model and fails only later
            raise DataError(f"tokenizer {name} is empty")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
            self._byte_ids = _byte_ids(self._processor)
            self._piece_bytes = [_piece_bytes(self._processor, token) for token in range(self._processor.vocab_size())]
        except (RuntimeError, ValueError) as error:  # ValueError: a damaged piece that is not UTF-8
            raise DataError(f"tokenizer {name} is not a SentencePiece model: {error}") from error
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        _check_processor(self._processor, name)
        self._has_dummy_prefix = self._piece_bytes[self._processor.encode("a")[0]].startswith(b" ")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `.model` file. DataError if it is missing or damaged."""
        try:
            return cls(Path(path).read_bytes(), name=str(path))
        except OSError as error:
            raise DataError(f"cannot read tokenizer {path}: {error.strerror}") from error

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the model file."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    def check_vocab(self, vocab_size: int) -> None:
        """Raise DataError unless the model's vocabulary has this tokenizer's size."""
        if vocab_size != self.vocab_size:
            raise DataError(f"tokenizer {self.name} has {self.vocab_size} pieces, the model has {vocab_size}")

    def encode(self, data: bytes) -> list[int]:
        """Return the token ids of raw bytes, without BOS; bytes that are not valid UTF-8 become byte pieces.

        Raises:
            DataError: there is such a byte, and the vocabulary lacks byte pieces or the tokenizer adds spaces around them.
        """
        tokens: list[int] = []
        offset = 0
        # Valid UTF-8 never decodes to surrogates, so U+DC80 to U+DCFF mark exactly the invalid bytes.
        for span in _SPANS.finditer(data.decode("utf-8", "surrogateescape")):
            raw = span[0].encode("utf-8", "surrogateescape")
            tokens += self._encode_raw(raw, offset) if span["raw"] else self._processor.encode(span[0])
            offset += len(raw)
        return tokens

    def encode_documents(self, documents: Iterable[bytes]) -> NDArray[np.uint16]:
        """Return one token stream in which each document is BOS and its tokens, without EOS, as in the challenge's shards.

        Returns:
            uint16 [N].
        Raises:
            DataError: there are no documents, or none has any text.
        """
        arrays = [np.array([self.bos_id, *self.encode(document)], dtype=np.uint16) for document in documents]
        if not any(len(array) > 1 for array in arrays):
            raise DataError(f"tokenizer {self.name}: {len(arrays)} documents gave no tokens, but text is needed")
        return np.concatenate(arrays)

    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> bytes:
        """Return the raw bytes of token ids; control, unknown and unused pieces stand for none.

        Raises:
            DataError: an id is out of range.
        """
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token} cannot be decoded, tokenizer {self.name} has 0 to {self.vocab_size - 1}")
        return b"".join(self._piece_bytes[token] for token in tokens)

    def token_bytes(self) -> TokenBytes:
        """Return the byte counts of the vocabulary, from which bits per byte follow.

        A U+2581 inside a piece counts as the one space byte that it stands for; the challenge's code counts 3, but none of its
        tokenizers has such a piece. A space directly after BOS counts 0. That is exact for models that put a dummy space before
        the text; for the others it is one byte short where a document starts with a space.
        """
        sp, ids = self._processor, range(self.vocab_size)
        has_space = np.array([not sp.is_byte(i) and self._piece_bytes[i].startswith(b" ") for i in ids])
        lengths = np.array([len(piece) for piece in self._piece_bytes], dtype=np.int32)
        is_boundary = np.array([_is_boundary(sp, i) for i in ids])
        return TokenBytes(base=lengths - has_space, has_space=has_space, is_boundary=is_boundary)

    def _encode_raw(self, raw: bytes, offset: int) -> list[int]:
        problem = f"byte 0x{raw[0]:02x} at offset {offset} is not valid UTF-8 or part of U+2581"
        if self._byte_ids is None:
            raise DataError(f"tokenizer {self.name}: {problem}, and the vocabulary lacks byte pieces")
        if self._has_dummy_prefix:  # a space, counted as a byte, would be added before the text after every such byte
            raise DataError(f"tokenizer {self.name}: {problem}, and the tokenizer adds spaces around it")
        return [self._byte_ids[byte] for byte in raw]


def train_tokenizer(documents: Iterable[bytes], *, vocab_size: int = 1024, max_bytes: int = MAX_BYTES, seed: int = 0) -> bytes:
    """Return a serialized SentencePiece BPE model for `Tokenizer`; the same arguments give the same bytes.

    Args:
        documents: raw text; bytes that are not valid UTF-8 are left out of training (byte pieces cover them).
        vocab_size: number of pieces, including 256 byte pieces, 4 control pieces and the frequent characters.
        max_bytes: bytes of text that are used, about; documents are taken in an order that `seed` decides, and the last is cut.
        seed: decides which documents are used.
    Raises:
        ConfigError: vocab_size is not 261 to 65,536, or max_bytes is below 1.
        DataError: there is no text, or its characters do not fit into vocab_size or cannot fill it.
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


def _check_processor(processor: sentencepiece.SentencePieceProcessor, name: str) -> None:
    if processor.vocab_size() > MAX_VOCAB:
        raise DataError(f"tokenizer {name} has {processor.vocab_size():,} pieces, uint16 holds {MAX_VOCAB:,}")
    if processor.bos_id() < 0:
        raise DataError(f"tokenizer {name} has no BOS piece, which starts every document")
    # Without this piece a single space becomes <0xE2><0x96><0x81>: 3 bytes are counted for 1, bits per byte are 20 % too low
    # (openai/parameter-golf issue 897). Trained models have it, since the space is the most frequent character. Only a model
    # with escape_whitespaces off, which is not usual, is refused although its counts would be right.
    if processor.piece_to_id(SPACE) == processor.unk_id():
        raise DataError(f"tokenizer {name} has no piece for a single space (U+2581): its byte counts would be wrong")


def _byte_ids(processor: sentencepiece.SentencePieceProcessor) -> list[int] | None:
    """Return the ids of the 256 byte pieces, in the order of the bytes; None if any is missing."""
    ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    return ids if all(processor.is_byte(token) for token in ids) else None


def _is_boundary(processor: sentencepiece.SentencePieceProcessor, token: int) -> bool:
    return bool(processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token))


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    """Return the bytes of text that a token stands for."""
    if _is_boundary(processor, token):
        return b""
    piece: str = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace(SPACE, " ").encode("utf-8")


def _sample(documents: list[bytes], *, max_bytes: int, seed: int) -> list[bytes]:
    """Return documents up to max_bytes in all, in the order of a hash, which unlike `random` no Python version changes."""

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
    """Return the text without the characters that SentencePiece reserves; it would skip a whole document for U+2585."""
    text = document.decode("utf-8", "ignore")
    return text.replace("\0", " ").replace(SPACE, " ").replace("\u2585", " ")
