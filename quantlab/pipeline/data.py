"""Training and validation tokens, and the tokenizer that made them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError
from quantlab.text.documents import read_documents
from quantlab.text.shards import read_shards
from quantlab.text.stdlib_corpus import shuffled, stdlib_documents
from quantlab.text.tokenizer import Tokenizer
from quantlab.text.train_tokenizer import train_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where training text comes from."""

    train: str = "stdlib"
    """`stdlib` (the English and Python text that ships with CPython), `text:FILE` or `tokens:GLOB`."""
    tokenizer: str = ""
    """SentencePiece .model file; empty with `stdlib` to train one on the training split."""

    def __post_init__(self) -> None:
        kind, _, path = self.train.partition(":")
        if kind not in ("stdlib", "text", "tokens") or (kind != "stdlib") != bool(path):
            raise ConfigError(f"data.train must be stdlib, text:FILE or tokens:GLOB, got {self.train!r}")
        if kind != "stdlib" and not self.tokenizer:
            raise ConfigError(f"data.train {self.train} needs data.tokenizer, a SentencePiece .model file")


@dataclass(frozen=True, slots=True)
class TokenizedData:
    """Token streams, each document begun with BOS."""

    tokenizer: Tokenizer
    train: NDArray[np.uint16]
    val: NDArray[np.uint16] | None
    """Held-out documents of the embedded corpus; None for the user's own data."""


def load_data(config: DataConfig, vocab_size: int, seed: int) -> TokenizedData:
    """Read or make the tokenizer, then the tokens; `vocab_size` is the model's.

    Raises:
        DataError: a file is missing or damaged, or the tokenizer has another vocabulary than the model.
    """
    kind, _, path = config.train.partition(":")
    if kind == "stdlib":
        return _stdlib_data(config, vocab_size, seed)
    tokenizer = Tokenizer.load(config.tokenizer)
    tokenizer.check_vocab(vocab_size)
    tokens: NDArray[Any] = read_shards(path) if kind == "tokens" else tokenizer.encode_documents(read_documents(Path(path)))
    return TokenizedData(tokenizer, tokens, None)


def _stdlib_data(config: DataConfig, vocab_size: int, seed: int) -> TokenizedData:
    documents = shuffled(stdlib_documents(), seed=seed)
    train = [d.text for d in documents if d.split == "train"]
    val = [d.text for d in documents if d.split == "val"]
    if config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
    else:
        tokenizer = Tokenizer(train_tokenizer(train, vocab_size=vocab_size))
    tokenizer.check_vocab(vocab_size)
    return TokenizedData(tokenizer, tokenizer.encode_documents(train), tokenizer.encode_documents(val))
