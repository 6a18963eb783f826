"""A tokenizer of any kind for raw bytes, the bytes of text that each token stands for, and training of a small BPE model.

Letters: V ids in the vocabulary, N tokens.
"""

import copy
import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from quantlab.errors import ConfigError, DataError
from quantlab.fields import parse_json
from quantlab.files import read_regular
from quantlab.text.byte_fallback_vocabulary import ByteFallbackVocabulary, has_byte_fallback
from quantlab.text.byte_vocabulary import NAME as BYTE260
from quantlab.text.byte_vocabulary import ByteVocabulary, byte260_file
from quantlab.text.case_operators import OPERATORS, encode_case
from quantlab.text.case_vocabulary import CaseVocabulary, has_operators
from quantlab.text.huggingface_vocabulary import FILE_NAME as HUGGINGFACE_FILE
from quantlab.text.huggingface_vocabulary import HuggingFaceVocabulary, special_tokens_beside
from quantlab.text.sentencepiece_vocabulary import SPACE, SentencePieceVocabulary
from quantlab.text.vocabulary import Vocabulary
from quantlab.text.vocabulary_files import has_vocabulary_files, tokenizer_json_of

MAX_TRAINED = 2**16
"""Largest vocabulary that is trained: its ids fit into the challenge's shards of uint16."""
FILE_NAMES = ("tokenizer.model", HUGGINGFACE_FILE)
"""Files that are looked for in a folder, the preferred first."""

_log = logging.getLogger(__name__)

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
    is_known: bool = True
    """Whether there was a tokenizer to count with; without one all counts are 0 and there are no bits per byte."""

    @classmethod
    def unknown(cls, vocab_size: int) -> "TokenBytes":
        """Return what stands for the counts of V tokens where there is no tokenizer."""
        none_V = np.zeros(vocab_size, np.bool_)
        return cls(base=none_V.astype(np.int32), has_space=none_V, is_boundary=none_V, is_known=False)

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
    """A tokenizer that encodes bytes, valid UTF-8 or not, and knows the bytes of text of each of its tokens.

    It is a SentencePiece model, one with case operators (CaseOps), a Hugging Face tokenizer.json (byte-level BPE, or BPE with
    byte fallback), or the challenge's byte260. Where `normalization` is empty, decode(encode(x)) == x for all bytes that can be
    encoded. A tokenizer that normalizes, like those of the challenge, with NFKC, loses what it normalizes.
    """

    def __init__(self, model_bytes: bytes, *, name: str = "tokenizer", bos: str = "", eos: str = "") -> None:
        """Read the content of a tokenizer's file, whose first bytes tell the kind.

        Args:
            name: used in error texts.
            bos, eos: texts of these tokens for a tokenizer.json, which does not name them; BOS is looked for in the file where
                it is empty.
        Raises:
            ConfigError: the package that reads this kind is not installed.
            DataError: it is no tokenizer, or the bytes of its tokens cannot be counted exactly.
        """
        self.name = name
        self.model_bytes = model_bytes
        self.special_tokens = {"bos": bos, "eos": eos}
        """Arguments that, with the model's bytes and the name, make this tokenizer again."""
        self.vocabulary = _read_vocabulary(model_bytes, name, bos, eos)
        self.vocab_size: int = len(self.vocabulary.piece_bytes)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer's file, or that in a folder; the name byte260 stands for the challenge's byte tokenizer.

        In a folder tokenizer.model is preferred to tokenizer.json, and that to vocab.json and merges.txt. BOS and EOS of these
        are those of tokenizer_config.json beside them, where there is one.

        Raises:
            ConfigError: the package that reads this kind is not installed.
            DataError: the file is missing or damaged, or the bytes of its tokens cannot be counted exactly.
        """
        if str(path) == BYTE260:
            return cls(byte260_file(), name=BYTE260)
        path = Path(path)
        if path.is_dir():
            found = tokenizer_file(path)
            if found is None and has_vocabulary_files(path):
                bos, eos = special_tokens_beside(path / HUGGINGFACE_FILE)
                return cls(tokenizer_json_of(path), name=str(path), bos=bos, eos=eos)
            if found is None:
                raise DataError(f"folder {path} has no tokenizer: neither {' nor '.join(FILE_NAMES)}")
            path = found
        bos, eos = special_tokens_beside(path) if path.suffix == ".json" else ("", "")
        return cls(read_regular(path, DataError, "tokenizer"), name=str(path), bos=bos, eos=eos)

    @property
    def kind(self) -> str:
        """Kind of the tokenizer: sentencepiece, caseops, huggingface or byte260."""
        return self.vocabulary.kind

    @property
    def bos_id(self) -> int:
        """Id that begins every document."""
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """Id that ends a text; None where the tokenizer names none."""
        return self.vocabulary.eos_id

    @property
    def normalization(self) -> str:
        """Names what changes text before it is cut into tokens, so that bytes are those of the changed text; or empty."""
        return self.vocabulary.normalization

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its token ids: uint16 for up to 65,536 of them, otherwise uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the tokenizer's file."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    def standalone_file(self) -> bytes:
        """Return the tokenizer's file, to be written where no other file tells its BOS.

        Raises:
            DataError: from this file alone another BOS, or none, would be read.
        """
        alone = Tokenizer(self.model_bytes, name=self.name) if any(self.special_tokens.values()) else self
        if alone.bos_id != self.bos_id:
            problem = f"BOS is id {self.bos_id}, but without the config beside it {alone.bos_id} would be read"
            raise DataError(f"tokenizer {self.name}: {problem}", hint="add BOS to the file's post_processor")
        return self.model_bytes

    def check_vocab(self, vocab_size: int) -> None:
        """Raise DataError unless the model's vocabulary has this tokenizer's size."""
        if vocab_size != self.vocab_size:
            raise DataError(
                f"tokenizer {self.name} has {self.vocab_size} pieces, the model has {vocab_size}",
                hint="name the tokenizer that the model was trained with",
            )

    def fitted(self, vocab_size: int) -> "Tokenizer":
        """Return this tokenizer with the vocabulary's size of a model.

        Models of Hugging Face often have more rows than ids, for a round number. The ids of those rows stand for no text.

        Raises:
            DataError: the model has fewer ids, or more where the tokenizer is of another kind.
        """
        if self.kind != HuggingFaceVocabulary.kind or vocab_size < self.vocab_size:
            self.check_vocab(vocab_size)
        fitted = copy.copy(self)
        fitted.vocab_size = vocab_size
        return fitted

    def encode(self, data: bytes) -> list[int]:
        """Return the token ids of raw bytes, without BOS.

        Bytes that are not valid UTF-8 become tokens of single bytes.

        Raises:
            DataError: there is such a byte, and the vocabulary lacks byte pieces or the tokenizer adds spaces around them.
        """
        return self.vocabulary.encode(data)

    def encode_document(self, document: bytes) -> list[int]:
        """Return BOS and the token ids of a document, after checking that they stand for its bytes.

        Raises:
            DataError: the document cannot be encoded, or its ids stand for other bytes and the tokenizer does not normalize.
        """
        return [self.bos_id, *self._checked(self.encode(document), document)]

    def encode_counted(self, document: bytes) -> tuple[list[int], list[int]]:
        """Return what `encode_document` returns, and how many bytes of the document each token stands for: BOS for none.

        For CaseOps the counts add up to the document's bytes, also where its model normalizes. For other kinds they are those
        of `token_bytes`.
        """
        if isinstance(self.vocabulary, CaseVocabulary):
            ids, counts = self.vocabulary.encode_counted(document)
            return [self.bos_id, *self._checked(ids, document)], [0, *counts]
        stream = np.array(self.encode_document(document))
        return stream.tolist(), [0, *self.token_bytes().count(stream[:-1], stream[1:]).tolist()]

    @property
    def has_operators(self) -> bool:
        """Whether its tokens must be counted with `encode_counted` to be exact: it has case operators."""
        return bool(self.vocabulary.operator_ids)

    def _checked(self, ids: list[int], document: bytes) -> list[int]:
        """Return the ids. DataError where one of them loses bytes, or where they stand for other bytes."""
        unknown = self.vocabulary.unknown_id
        if unknown is not None and unknown in ids:
            raise DataError(
                f"tokenizer {self.name}: the text has characters that the vocabulary lacks, their bytes would be lost"
            )
        if not self.normalization and not self._stands_for(ids, document):
            problem = f"the {len(ids):,} tokens of a document stand for other bytes than its {len(document):,}"
            raise DataError(f"tokenizer {self.name}: {problem}: bits per byte would be wrong")
        return ids

    def encode_documents(self, documents: Iterable[bytes]) -> NDArray[Any]:
        """Return one token stream in which each document is BOS and its tokens, without EOS, as in the challenge's shards.

        A tokenizer that normalizes logs how many documents it changed.

        Returns:
            uint16 [N], or uint32 for a vocabulary above 65,536.
        Raises:
            DataError: there are no documents, none has any text, or the ids of one do not stand for its bytes.
        """
        arrays: list[NDArray[Any]] = []
        changed = 0
        for document in documents:
            ids = self.encode_document(document)
            changed += bool(self.normalization) and not self._stands_for(ids, document)
            arrays.append(np.array(ids, dtype=self.dtype))
        if not any(len(array) > 1 for array in arrays):
            raise DataError(f"tokenizer {self.name}: {len(arrays)} documents gave no tokens, but text is needed")
        if changed:
            what = "bytes are counted on the changed text"
            _log.warning(
                "tokenizer %s normalizes (%s): %d of %d documents changed, %s",
                self.name,
                self.normalization,
                changed,
                len(arrays),
                what,
            )
        return np.concatenate(arrays)

    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> bytes:
        """Return the raw bytes of token ids; control, special, unknown and unused ids stand for none.

        Raises:
            DataError: an id is out of range.
        """
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token} cannot be decoded, tokenizer {self.name} has 0 to {self.vocab_size - 1}")
        pieces = self.vocabulary.piece_bytes
        return self.vocabulary.restore(b"".join(pieces[token] for token in tokens if token < len(pieces)))

    def token_bytes(self) -> TokenBytes:
        """Return the byte counts of the vocabulary, from which bits per byte follow.

        For SentencePiece: a U+2581 inside a piece counts as the one space byte that it stands for; the challenge's code counts
        3, but none of its tokenizers has such a piece. A space directly after BOS counts 0. That is exact for models that put a
        dummy space before the text; for the others it is one byte short where a document starts with a space. The other kinds
        are exact everywhere, but CaseOps where the text itself has an operator: see `encode_counted`.
        """
        known = self.vocabulary
        lengths = np.array([len(piece) for piece in known.piece_bytes], dtype=np.int32)
        lengths[list(known.operator_ids)] = 0
        unused = self.vocab_size - len(lengths)
        return TokenBytes(
            base=np.pad(lengths - known.has_space_V, (0, unused)).astype(np.int32, copy=False),
            has_space=np.pad(known.has_space_V, (0, unused)),
            is_boundary=np.pad(known.is_boundary_V, (0, unused), constant_values=True),
        )

    def _stands_for(self, ids: Sequence[int], document: bytes) -> bool:
        text = self.vocabulary.restore(b"".join(map(self.vocabulary.piece_bytes.__getitem__, ids)))
        return text == document or text == self.vocabulary.dummy_prefix + document


def tokenizer_file(folder: Path) -> Path | None:
    """Return the tokenizer's file in a folder, tokenizer.model before tokenizer.json; None if there is none."""
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def _read_vocabulary(model_bytes: bytes, name: str, bos: str, eos: str) -> Vocabulary:
    if not model_bytes.startswith(b"{"):  # no SentencePiece model begins with this byte: its wire type is out of use
        found = SentencePieceVocabulary(model_bytes, name=name)
        return CaseVocabulary(model_bytes, name=name) if has_operators(found.processor) else found
    content = parse_json(model_bytes, f"tokenizer {name}", DataError)
    if content.get("tokenizer_type") == "pure_byte":
        return ByteVocabulary(content, name=name)
    if "model" in content:
        kind = ByteFallbackVocabulary if has_byte_fallback(content, name) else HuggingFaceVocabulary
        return kind(content, model_bytes, name=name, bos=bos, eos=eos)
    raise DataError(f"tokenizer {name}: its JSON is neither a {HUGGINGFACE_FILE} nor the challenge's byte tokenizer")


def train_tokenizer(
    documents: Iterable[bytes],
    *,
    vocab_size: int = 1024,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
    has_operators: bool = False,
) -> bytes:
    """Return a serialized SentencePiece BPE model for `Tokenizer`; the same arguments give the same bytes.

    Args:
        documents: raw text; bytes that are not valid UTF-8 are left out of training (byte pieces cover them).
        vocab_size: number of pieces, including 256 byte pieces, 4 control pieces and the frequent characters.
        max_bytes: bytes of text that are used, about; documents are taken in an order that `seed` decides, and the last is cut.
        seed: decides which documents are used.
        has_operators: whether it is for text with case operators (CaseOps), each of which is a piece.
    Raises:
        ConfigError: vocab_size is not 261 to 65,536, or max_bytes is below 1.
        DataError: there is no text, or its characters do not fit into vocab_size or cannot fill it.
    Source: Kudo and Richardson 2018, arXiv 1808.06226.
    """
    if not 261 <= vocab_size <= MAX_TRAINED:
        raise ConfigError(f"vocab_size must be 261 to {MAX_TRAINED}, got {vocab_size}")
    if max_bytes < 1:
        raise ConfigError(f"max_bytes must be 1 or more, got {max_bytes}")
    sentences = [_trainable(document) for document in _sample(list(documents), max_bytes=max_bytes, seed=seed)]
    sentences = [encode_case(sentence) for sentence in sentences] if has_operators else sentences
    settings = SETTINGS | ({"user_defined_symbols": list(OPERATORS)} if has_operators else {})
    if not any(sentence.strip() for sentence in sentences):
        raise DataError(f"no text to train a tokenizer on in {len(sentences)} documents")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, **settings
        )
    except RuntimeError as error:
        raise DataError(f"cannot train a tokenizer of {vocab_size} pieces on this text: {error}") from error
    return model.getvalue()


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
