"""Hugging Face tokenizer.json files of the kind whose bytes can be counted exactly: byte-level BPE.

Special tokens stand for no text: where a text contains the characters of one, they are encoded as ordinary text. Other added
tokens stand for their characters.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantlab.errors import ConfigError, DataError
from quantlab.fields import read_json_object
from quantlab.text.vocabulary import MAX_VOCAB, runs_of

FILE_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
"""File beside it that names BOS and EOS."""
BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "[BOS]", "<|endoftext|>")
"""Tokens that begin a document, in the order in which they are looked for where neither file says which one does."""
KEEPING_TEXT = ("ByteLevel", "Split", "Digits", "Punctuation", "UnicodeScripts")
"""Pre-tokenizers that only cut, unless they are told to remove what they cut at."""


class HuggingFaceVocabulary:
    """A byte-level BPE of the library tokenizers; see `quantlab.text.vocabulary.Vocabulary` for the fields."""

    kind = "huggingface"
    operator_ids: tuple[int, ...] = ()
    unknown_id: int | None = None
    dummy_prefix = b""

    def __init__(self, content: dict[str, Any], model_bytes: bytes, *, name: str, bos: str = "", eos: str = "") -> None:
        """Check the file and load it.

        Args:
            content: the JSON object in `model_bytes`.
            name: used in error texts.
            bos, eos: the tokens' texts, from `special_tokens_beside`; BOS is found in the file where it is empty.
        Raises:
            ConfigError: the library tokenizers is not installed.
            DataError: the file is damaged, its bytes cannot be counted exactly (the reason is named), or it has no BOS.
        """
        self.name = name
        self.normalization = self._checked(content, name)
        self._engine = _engine(model_bytes, name)
        self._engine.encode_special_tokens = True  # a text that spells "</s>" has 4 bytes that must be counted
        self._engine.no_truncation()
        self._engine.no_padding()
        self.piece_bytes, self._byte_ids = self._bytes_of_ids(name)
        self.is_boundary_V = np.array([not piece for piece in self.piece_bytes], dtype=np.bool_)
        self.has_space_V = np.zeros(len(self.piece_bytes), dtype=np.bool_)
        found = next(
            (id_ for id_ in map(self._engine.token_to_id, _bos_candidates(content, bos, eos)) if id_ is not None), None
        )
        if found is None:
            wanted = "no token begins a document"
            raise DataError(f"tokenizer {name}: {wanted}", hint=f"name bos_token in {CONFIG_NAME} beside it")
        self.bos_id: int = found
        self.eos_id: int | None = self._engine.token_to_id(eos) if eos else None
        if not self.is_boundary_V[self.bos_id]:
            raise DataError(f"tokenizer {name}: BOS {self._engine.id_to_token(found)!r} also stands for text, must be special")

    def _checked(self, content: dict[str, Any], name: str) -> str:
        """Return what normalizes text, after checking that the bytes of the file's tokens can be counted."""
        return checked_normalization(content, name)

    def _bytes_of_ids(self, name: str) -> tuple[list[bytes], list[int | None]]:
        """Return the bytes of text of each id, and the id of each single byte; None where it has no token."""
        return _bytes_of_ids(self._engine, name)

    def encode(self, data: bytes) -> list[int]:
        """Return the ids of raw bytes; bytes that are not valid UTF-8 become the tokens of single bytes.

        Raises:
            DataError: the vocabulary lacks the token of such a byte, or of a character of ASCII in the text.
        """
        tokens: list[int] = []
        for text, raw, is_raw in runs_of(data, self._raw_characters):
            tokens += self._ids_of_bytes(raw) if is_raw else self._engine.encode(text, add_special_tokens=False).ids
        return tokens

    def restore(self, data: bytes) -> bytes:
        """Return the bytes as they are."""
        return data

    @property
    def _raw_characters(self) -> str:
        """Characters that the library would leave out, as part of a regular expression's set."""
        return "".join(f"\\x{byte:02x}" for byte in range(128) if self._byte_ids[byte] is None)

    def _ids_of_bytes(self, raw: bytes) -> list[int]:
        ids = [self._byte_ids[byte] for byte in raw]
        if None in ids:
            raise DataError(f"tokenizer {self.name}: it has no token for the byte 0x{raw[ids.index(None)]:02x}")
        return [id_ for id_ in ids if id_ is not None]


def special_tokens_beside(path: Path) -> tuple[str, str]:
    """Return the texts of BOS and EOS that tokenizer_config.json beside a tokenizer.json names; empty where it names none.

    Raises:
        DataError: the file cannot be read or is not a JSON object.
    """
    config = path.with_name(CONFIG_NAME)
    if not config.is_file():
        return "", ""
    return special_tokens_of(read_json_object(config, DataError))


def special_tokens_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the texts of BOS and EOS that a tokenizer_config.json names; empty where it names none."""
    return _text_of(config.get("bos_token")), _text_of(config.get("eos_token"))


def checked_normalization(content: dict[str, Any], name: str) -> str:
    """Return the name of the Unicode normal form that a tokenizer.json applies; empty if it leaves text as it is.

    Raises:
        DataError: the bytes of its tokens cannot be counted exactly; the part and the reason are named.
    """
    normalizers = list(parts_of(content, "normalizer", "normalizers", name))
    problems = [model_problem(content.get("model"))]
    problems += [f"normalizer {part['type']} changes text" for part in normalizers if part["type"] != "NFC"]
    cutters = list(parts_of(content, "pre_tokenizer", "pretokenizers", name))
    problems += [cutting_problem(part) for part in cutters]
    byte_level = sum(part["type"] == "ByteLevel" for part in cutters)
    if byte_level != 1:
        problems.append(f"{byte_level} pre-tokenizers are ByteLevel, must be 1")
    problems += [added_problem(part) for part in added_tokens(content, name)]
    refuse_first(problems, name, "use a byte-level BPE")
    return "NFC" if normalizers else ""


def refuse_first(problems: Iterable[str | None], name: str, hint: str) -> None:
    """Raise DataError with the first reason, if there is any, why the bytes of a tokenizer's tokens cannot be counted."""
    if problem := next(filter(None, problems), None):
        raise DataError(f"tokenizer {name}: its bytes cannot be counted exactly: {problem}", hint=hint)


def model_problem(model: Any) -> str | None:
    """Return why tokens of this model are not the text, or None."""
    if not isinstance(model, dict):
        return "it has no model"
    kind = model.get("type") or ("BPE" if "merges" in model else "of no type")  # early files leave the type out
    if kind != "BPE":
        return f"the model is {kind!s:.40}, must be BPE"
    if model.get("dropout"):
        return "dropout makes its tokens random"
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            return f"{key} {model[key]!r:.40} is in tokens but not in the text"
    return None


def cutting_problem(part: dict[str, Any]) -> str | None:
    """Return why a pre-tokenizer loses text, or None."""
    kind = part["type"]
    if kind not in KEEPING_TEXT:
        return f"pre-tokenizer {kind} may remove or change text"
    if part.get("behavior") == "Removed":
        return f"pre-tokenizer {kind} removes what it cuts at"
    if kind == "ByteLevel" and part.get("add_prefix_space") is not False:
        return "pre-tokenizer ByteLevel adds a space before the text (add_prefix_space)"
    return None


def added_problem(token: dict[str, Any]) -> str | None:
    """Return why an added token loses text, or None."""
    if token.get("special") is True:
        return None  # never found in a text
    strips = [key for key in ("lstrip", "rstrip") if token.get(key)]
    return f"added token {token.get('content')!r:.40} removes the spaces beside it ({strips[0]})" if strips else None


def parts_of(content: dict[str, Any], key: str, many: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the parts of a component; a Sequence has its parts under the key `many`."""
    part = content.get(key)
    if part is None:
        return
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise DataError(f"tokenizer {name}: {key} must be an object with a type")
    if part["type"] != "Sequence":
        yield part
        return
    inner = part.get(many)
    if not isinstance(inner, list):
        raise DataError(f"tokenizer {name}: {key} Sequence must have a list {many}")
    for one in inner:
        yield from parts_of({key: one}, key, many, name)


def added_tokens(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the added tokens of a tokenizer.json. DataError unless they are a list of objects."""
    tokens = content.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise DataError(f"tokenizer {name}: added_tokens must be a list of objects")
    return tokens


def _bos_candidates(content: dict[str, Any], bos: str, eos: str) -> Iterator[str]:
    """Yield texts that may be BOS, the best first: what the config names, what the file puts before a text, known names.

    Models without BOS, such as GPT-2, were trained on documents with EOS between them.
    """
    if bos or eos:
        yield bos or eos
        return
    processor = content.get("post_processor")
    inner = processor.get("processors") if isinstance(processor, dict) else None
    for part in inner if isinstance(inner, list) else [processor]:
        single = part.get("single") if isinstance(part, dict) else None
        first = single[0] if isinstance(single, list) and single else None
        special = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(special, dict) and isinstance(special.get("id"), str):
            yield special["id"]
    yield from BOS_NAMES


def _text_of(token: Any) -> str:
    """Return the text of a token of tokenizer_config.json, which is a string or an object with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _engine(model_bytes: bytes, name: str) -> Any:
    try:
        from tokenizers import Tokenizer as Engine
    except ImportError as error:
        problem = f"tokenizer {name} is a {FILE_NAME}, which the package tokenizers reads"
        raise ConfigError(problem, hint="install quantlab-llm[hf]") from error
    try:
        return Engine.from_str(model_bytes.decode("utf-8"))
    except Exception as error:  # the library raises no narrower class
        raise DataError(f"tokenizer {name} is not a {FILE_NAME} that tokenizers can load: {str(error)[:200]}") from error


def _bytes_of_ids(engine: Any, name: str) -> tuple[list[bytes], list[int | None]]:
    """Return the bytes of text of each id, and the id of each single byte; None where it has no token."""
    ids: dict[str, int] = engine.get_vocab(with_added_tokens=False)
    added = engine.get_added_tokens_decoder()
    pieces = [b""] * size_of(ids, added, name)
    bytes_of = _bytes_of_characters()
    for token, id_ in ids.items():
        # a token with another character, like the padding of some vocabularies, cannot come out of a text
        known = [bytes_of.get(character) for character in token]
        pieces[id_] = b"" if None in known else bytes(byte for byte in known if byte is not None)
    for id_, token in added.items():
        pieces[id_] = b"" if token.special else token.content.encode("utf-8")
    characters = {byte: character for character, byte in bytes_of.items()}
    return pieces, [ids.get(characters[byte]) for byte in range(256)]


def size_of(ids: Mapping[str, int], added: Mapping[int, Any], name: str) -> int:
    """Return the number of ids, up to the largest. DataError where that is beyond MAX_VOCAB."""
    largest = max([*ids.values(), *added], default=-1)
    if not 0 <= largest < MAX_VOCAB:
        raise DataError(f"tokenizer {name}: the largest id is {largest:,}, must be 0 to {MAX_VOCAB - 1:,}")
    return largest + 1


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable characters of Latin-1 stand for their own value; the other bytes, in order, have U+0100 and what follows.
    Source: Radford et al. 2019 (GPT-2), encoder.py, bytes_to_unicode.
    """
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}
