"""Hugging Face tokenizer.json files with byte fallback, such as those of Llama 2, Mistral and Gemma: BPE over characters.

A space is written as U+2581, and a character that the vocabulary lacks as its bytes, <0x00> to <0xFF>. Where the text itself
has U+2581 it becomes bytes, as with SentencePiece.
"""

from typing import Any

import numpy as np

from quantlab.errors import DataError
from quantlab.text.huggingface_vocabulary import (
    HuggingFaceVocabulary,
    added_problem,
    added_tokens,
    cutting_problem,
    model_problem,
    parts_of,
    refuse_first,
    size_of,
)
from quantlab.text.vocabulary import runs_of

SPACE = "\u2581"


def has_byte_fallback(content: dict[str, Any], name: str) -> bool:
    """Return whether a tokenizer.json falls back to bytes and is not byte-level."""
    model = content.get("model")
    kinds = {part["type"] for part in parts_of(content, "pre_tokenizer", "pretokenizers", name)}
    return isinstance(model, dict) and model.get("byte_fallback") is True and "ByteLevel" not in kinds


class ByteFallbackVocabulary(HuggingFaceVocabulary):
    """A BPE with byte fallback; see `quantlab.text.vocabulary.Vocabulary` for the fields."""

    def __init__(self, content: dict[str, Any], model_bytes: bytes, *, name: str, bos: str = "", eos: str = "") -> None:
        """Check the file and load it. The arguments and errors are those of HuggingFaceVocabulary."""
        super().__init__(content, model_bytes, name=name, bos=bos, eos=eos)
        first = self._engine.encode("a", add_special_tokens=False).ids
        self.dummy_prefix = b" " if first and self.piece_bytes[first[0]].startswith(b" ") else b""
        if self.dummy_prefix:
            is_byte_V = np.zeros(len(self.piece_bytes), np.bool_)
            is_byte_V[[id_ for id_ in self._byte_ids if id_ is not None]] = True
            self.has_space_V = np.array([piece.startswith(b" ") for piece in self.piece_bytes]) & ~is_byte_V

    def _checked(self, content: dict[str, Any], name: str) -> str:
        problems = [model_problem(content.get("model"))]
        problems += [_normalizer_problem(part) for part in parts_of(content, "normalizer", "normalizers", name)]
        problems += [_cutter_problem(part) for part in parts_of(content, "pre_tokenizer", "pretokenizers", name)]
        problems += [added_problem(token) for token in added_tokens(content, name)]
        refuse_first(problems, name, "use the SentencePiece .model file that it was made from")
        return ""

    def _bytes_of_ids(self, name: str) -> tuple[list[bytes], list[int | None]]:
        ids: dict[str, int] = self._engine.get_vocab(with_added_tokens=False)
        added = self._engine.get_added_tokens_decoder()
        pieces = [b""] * size_of(ids, added, name)
        for id_, token in added.items():
            pieces[id_] = b"" if token.special else token.content.encode("utf-8")
        byte_ids = [ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        if None in byte_ids:  # of characters that the vocabulary lacks these bytes would be lost without a word
            raise DataError(f"tokenizer {name}: no token <0x{byte_ids.index(None):02X}>, a byte that would be lost")
        special = {id_ for id_, token in added.items() if token.special}
        for token, id_ in ids.items():  # text, unlike an added token, never reaches the model with U+2581 of its own
            pieces[id_] = b"" if id_ in special else token.replace(SPACE, " ").encode("utf-8")
        for byte, id_ in enumerate(byte_ids):
            if id_ is not None:
                pieces[id_] = bytes([byte])
        return pieces, byte_ids

    def encode(self, data: bytes) -> list[int]:
        """Return the ids of raw bytes; bytes that are not valid UTF-8, and U+2581, become the tokens of bytes.

        Raises:
            DataError: there is such a byte, and the tokenizer adds a space before every run of text.
        """
        tokens: list[int] = []
        for text, raw, is_raw in runs_of(data, SPACE):
            if is_raw and self.dummy_prefix:
                problem = f"byte 0x{raw[0]:02x} is not valid UTF-8 or part of U+2581, and the tokenizer adds spaces around it"
                raise DataError(f"tokenizer {self.name}: {problem}")
            tokens += self._ids_of_bytes(raw) if is_raw else self._engine.encode(text, add_special_tokens=False).ids
        return tokens


def _normalizer_problem(part: dict[str, Any]) -> str | None:
    """Return what is wrong with a normalizer that does more than write spaces as U+2581, and one before the text."""
    if part["type"] == "Prepend" and part.get("prepend") == SPACE:
        return None
    if part["type"] == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == SPACE:
        return None
    return f"normalizer {part['type']} changes text"


def _cutter_problem(part: dict[str, Any]) -> str | None:
    if part["type"] != "Metaspace":
        return cutting_problem(part)
    if part.get("replacement") == SPACE and part.get("prepend_scheme") == "never":
        return None
    return "pre-tokenizer Metaspace puts a space before a text unless it has one (prepend_scheme)"
