"""A SentencePiece model over raw bytes, and how many bytes of text each of its tokens stands for.

Train a small BPE tokenizer that gives back every byte of its input."""

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

_SPANS = re.compile(f"(?P<raw>[\udc80-\udcff{SPACE}]+)|[^\udc80-\udcff{SPACE}]+")
"""Text decoded with surrogateescape, cut into runs that must become byte pieces and runs for SentencePiece.

A U+2581 in the text itself is raw too: SentencePiece would turn it into a space, 1 byte where the text has 3.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBytes:
    """How many bytes of raw text each token of a vocabulary stands for.

    Source: openai/parameter-golf train_gpt.py, build_sentencepiece_luts.
    """

    base: NDArray[np.int32]
    """[V], bytes of the piece without its leading space; 1 for a byte piece; 0 for control, unknown and unused."""
    has_space: NDArray[np.bool_]
    """[V], the piece starts with a space."""
    is_boundary: NDArray[np.bool_]
    """[V], control, unknown and unused pieces: a space directly after one is not part of the text."""

    def count(self, prev: NDArray[np.integer], target: NDArray[np.integer]) -> NDArray[np.int32]:
        """Bytes of each target token.

        Args:
            prev: ids, any shape.
            target: ids, the same shape; target[i] follows prev[i].
        Returns:
            int32, the same shape.
        """
        count: NDArray[np.int32] = self.base[target] + (self.has_space[target] & ~self.is_boundary[prev])
        return count


class Tokenizer:
    """A SentencePiece model that takes bytes, valid UTF-8 or not.

    With identity normalization and byte pieces (as `train_tokenizer` makes them) decode(encode(x)) == x for all bytes.
    A model with another normalization, like the challenge's NFKC, loses what it normalizes.
    """

    def __init__(self, model_bytes: bytes, *, name: str = "tokenizer") -> None:
        """Take a serialized model; `name` stands in error texts.

        Raises:
            DataError: not a SentencePiece model, more than 65,536 pieces, no BOS piece, or no piece for a space.
        """
        self.name = name
        self.model_bytes = model_bytes
        if not model_bytes:  # SentencePiece takes an empty model for "none given" and fails only later
            raise DataError(f"tokenizer {name} is empty")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
            self._byte_ids = _byte_ids(self._processor)
            self._piece_bytes = [_piece_bytes(self._processor, token) for token in range(self._processor.vocab_size())]
        except (RuntimeError, ValueError) as error:  # ValueError: a damaged piece or message that is not UTF-8
            raise DataError(f"tokenizer {name} is not a SentencePiece model: {error}") from error
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        _check_processor(self._processor, name)
        self._has_dummy_prefix = self._piece_bytes[self._processor.encode("a")[0]].startswith(b" ")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `.model` file. Raises DataError when it is missing or damaged."""
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
        """Token ids of raw bytes, without BOS; bytes that are not valid UTF-8 become byte pieces.

        Raises:
            DataError: such a byte, and the vocabulary has no byte pieces.
        """
        tokens: list[int] = []
        offset = 0
        # Valid UTF-8 never decodes to surrogates, so U+DC80..U+DCFF mark exactly the invalid bytes.
        for span in _SPANS.finditer(data.decode("utf-8", "surrogateescape")):
            raw = span[0].encode("utf-8", "surrogateescape")
            tokens += self._encode_raw(raw, offset) if span["raw"] else self._processor.encode(span[0])
            offset += len(raw)
        return tokens

    def encode_documents(self, documents: Iterable[bytes]) -> NDArray[np.uint16]:
        """One token stream: each document is BOS and its tokens, with no EOS, as in the challenge's shards.

        Returns:
            uint16 [N].
        Raises:
            DataError: no documents, or none with any text.
        """
        arrays = [np.array([self.bos_id, *self.encode(document)], dtype=np.uint16) for document in documents]
        if not any(len(array) > 1 for array in arrays):
            raise DataError(f"tokenizer {self.name}: {len(arrays)} documents gave no tokens, there must be 1 or more")
        return np.concatenate(arrays)

    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> bytes:
        """Raw bytes of token ids; control, unknown and unused pieces give none.

        Raises:
            DataError: an id out of range.
        """
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token}, tokenizer {self.name} has 0 to {self.vocab_size - 1}")
        return b"".join(self._piece_bytes[token] for token in tokens)

    def token_bytes(self) -> TokenBytes:
        """Byte counts of the vocabulary, for bits per byte.

        A U+2581 inside a piece counts as the one space byte it stands for (the challenge's code says 3; none of
        its tokenizers has such a piece). A space directly after BOS counts 0: exact for models that put a
        dummy space before the text, one byte short of the text for the others where a document starts with a space.
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
        if self._has_dummy_prefix:  # it would put a space, counted as a byte, before the text after every such byte
            raise DataError(f"tokenizer {self.name}: {problem}, and the tokenizer adds spaces around it")
        return [self._byte_ids[byte] for byte in raw]


def _check_processor(processor: sentencepiece.SentencePieceProcessor, name: str) -> None:
    if processor.vocab_size() > MAX_VOCAB:
        raise DataError(f"tokenizer {name} has {processor.vocab_size():,} pieces, uint16 holds {MAX_VOCAB:,}")
    if processor.bos_id() < 0:
        raise DataError(f"tokenizer {name} has no BOS piece, which starts every document")
    # Without this piece a lone space becomes <0xE2><0x96><0x81>: 3 bytes counted for 1, bits per byte 20 % too low
    # (openai/parameter-golf issue 897). Trainers keep the space, it is the most frequent character; only a model
    # with escape_whitespaces off, which none of the usual ones has, is refused although its counts were right.
    if processor.piece_to_id(SPACE) == processor.unk_id():
        raise DataError(f"tokenizer {name} has no piece for a single space (U+2581): its byte counts would be wrong")


def _byte_ids(processor: sentencepiece.SentencePieceProcessor) -> list[int] | None:
    """Ids of the 256 byte pieces, in the order of the bytes; None where any is missing."""
    ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    return ids if all(processor.is_byte(token) for token in ids) else None


def _is_boundary(processor: sentencepiece.SentencePieceProcessor, token: int) -> bool:
    return bool(processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token))


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    """The text that a token stands for."""
    if _is_boundary(processor, token):
        return b""
    piece: str = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace(SPACE, " ").encode("utf-8")


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
