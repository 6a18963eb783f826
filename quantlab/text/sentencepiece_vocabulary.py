"""SentencePiece models: their pieces as bytes, the ids of raw bytes, and which normalization is inside."""

from collections.abc import Iterator

import numpy as np
import sentencepiece

from quantlab.errors import DataError
from quantlab.text.vocabulary import MAX_VOCAB, runs_of

SPACE = "\u2581"
"""SentencePiece writes a space as this character (U+2581).

Where the text itself has it, it must become byte pieces: SentencePiece would turn it into a space, which is 1 byte for 3.
"""
_NORMALIZER_SPEC = 3
"""Field of the model's message that describes the normalizer."""
_NAME, _CHARACTER_MAP, _REMOVES_SPACES = 1, 2, 4
"""Fields of that description. Removal of extra spaces is on where the field is absent."""


class SentencePieceVocabulary:
    """A SentencePiece model; see `quantlab.text.vocabulary.Vocabulary` for the fields."""

    kind = "sentencepiece"
    operator_ids: tuple[int, ...] = ()

    def __init__(self, model_bytes: bytes, *, name: str) -> None:
        """Load a serialized model; `name` is used in error texts.

        Raises:
            DataError: it is not a SentencePiece model, has too many pieces, no BOS piece, or no piece for a space.
        """
        self.name = name
        if not model_bytes:  # SentencePiece accepts an empty model and fails only later
            raise DataError(f"tokenizer {name} is empty")
        self.processor = sp = sentencepiece.SentencePieceProcessor()
        try:
            sp.LoadFromSerializedProto(model_bytes)
            self._byte_ids = _byte_ids(sp)
            self.piece_bytes = [_piece_bytes(sp, token) for token in range(sp.vocab_size())]
        except (RuntimeError, ValueError) as error:  # ValueError: a damaged piece that is not UTF-8
            raise DataError(f"tokenizer {name} is not a SentencePiece model: {error}") from error
        _check_processor(sp, name)
        ids = range(sp.vocab_size())
        self.bos_id: int = sp.bos_id()
        self.eos_id: int | None = sp.eos_id() if sp.eos_id() >= 0 else None
        self.unknown_id: int | None = sp.unk_id()
        self.is_boundary_V = np.array([_is_boundary(sp, i) for i in ids], dtype=np.bool_)
        self.has_space_V = np.array([not sp.is_byte(i) and self.piece_bytes[i].startswith(b" ") for i in ids], dtype=np.bool_)
        self.dummy_prefix = b" " if self.piece_bytes[sp.encode("a")[0]].startswith(b" ") else b""
        self.normalization = normalization_of(model_bytes)

    def encode(self, data: bytes) -> list[int]:
        """Return the ids of raw bytes; bytes that are not valid UTF-8, and U+2581, become byte pieces.

        Raises:
            DataError: there is such a byte, and the vocabulary lacks byte pieces or the tokenizer adds spaces around them.
        """
        tokens: list[int] = []
        offset = 0
        for text, raw, is_raw in runs_of(data, SPACE):
            tokens += self._encode_raw(raw, offset) if is_raw else self.processor.encode(text)
            offset += len(raw)
        return tokens

    def restore(self, data: bytes) -> bytes:
        """Return the bytes as they are."""
        return data

    def _encode_raw(self, raw: bytes, offset: int) -> list[int]:
        problem = f"byte 0x{raw[0]:02x} at offset {offset} is not valid UTF-8 or part of U+2581"
        if self._byte_ids is None:
            raise DataError(f"tokenizer {self.name}: {problem}, and the vocabulary lacks byte pieces")
        if self.dummy_prefix:  # a space, counted as a byte, would be added before the text after every such byte
            raise DataError(f"tokenizer {self.name}: {problem}, and the tokenizer adds spaces around it")
        return [self._byte_ids[byte] for byte in raw]


def normalization_of(model_bytes: bytes) -> str:
    """Return what a serialized model does to text before it cuts it: the normalizer's name, removal of extra spaces.

    The result is empty where the text stays as it is. The model must be one that SentencePiece has loaded.

    Source: sentencepiece_model.proto, messages ModelProto and NormalizerSpec; protocol buffers' wire format.
    """
    found: dict[int, bytes | int] = {}
    for number, value in _fields(model_bytes):
        if number == _NORMALIZER_SPEC and isinstance(value, bytes):
            found.update(_fields(value))
    name, parts = found.get(_NAME, b""), list[str]()
    if found.get(_CHARACTER_MAP):
        label = name.decode("utf-8", "replace") if isinstance(name, bytes) else ""
        parts.append(label if label.isprintable() and label else "own rules")
    if found.get(_REMOVES_SPACES, 1):
        parts.append("extra spaces removed")
    return ", ".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield number and value of each field of a message; fixed-width values are given as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise DataError(f"SentencePiece model: field {key >> 3} has wire type {kind}, must be 0, 1, 2 or 5")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a position, and the position after it."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise DataError(f"SentencePiece model: no number at byte {at:,}")


def _check_processor(processor: sentencepiece.SentencePieceProcessor, name: str) -> None:
    if processor.vocab_size() > MAX_VOCAB:
        raise DataError(f"tokenizer {name} has {processor.vocab_size():,} pieces, at most {MAX_VOCAB:,} are allowed")
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
