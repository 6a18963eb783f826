"""Training and validation tokens, and the tokenizer that made them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError
from quantlab.text.documents import read_documents
from quantlab.text.shards import open_shards, read_shards
from quantlab.text.stdlib_corpus import shuffled, stdlib_documents
from quantlab.text.tokenizer import Tokenizer
from quantlab.text.train_tokenizer import train_tokenizer
from quantlab.trainer.loader import TokenSource


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where training text comes from."""

    train: str = "stdlib"
    """`stdlib` (the English and Python text that ships with CPython), `text:FILE` or `tokens:GLOB`."""
    val: str = ""
    """Validation text, `text:FILE` or `tokens:GLOB`; empty for none, or with `stdlib` for its own held-out documents."""
    tokenizer: str = ""
    """SentencePiece .model file; empty with `stdlib` to train one on the training split."""

    def __post_init__(self) -> None:
        kind, _, path = self.train.partition(":")
        if kind not in ("stdlib", "text", "tokens") or (kind != "stdlib") != bool(path):
            raise ConfigError(f"data.train must be stdlib, text:FILE or tokens:GLOB, got {self.train!r}")
        val_kind, _, val_path = self.val.partition(":")
        if self.val and (val_kind not in ("text", "tokens") or not val_path):
            raise ConfigError(f"data.val must be text:FILE or tokens:GLOB, got {self.val!r}")
        if kind != "stdlib" and not self.tokenizer:
            raise ConfigError(f"data.train {self.train} needs data.tokenizer, a SentencePiece .model file")


@dataclass(frozen=True, slots=True)
class TokenizedData:
    """Token streams, each document begun with BOS."""

    tokenizer: Tokenizer
    train: TokenSource
    val: NDArray[np.uint16] | None
    """Validation tokens; None where there are none."""


def load_data(config: DataConfig, vocab_size: int, seed: int) -> TokenizedData:
    """Read or make the tokenizer, then the tokens; `vocab_size` is the model's.

    Raises:
        DataError: a file is missing or damaged, or the tokenizer has another vocabulary than the model.
    """
    if config.train == "stdlib":
        data = _stdlib_data(config, vocab_size, seed)
        return replace(data, val=_read(config.val, data.tokenizer)) if config.val else data
    tokenizer = Tokenizer.load(config.tokenizer)
    tokenizer.check_vocab(vocab_size)
    kind, _, path = config.train.partition(":")
    val = _read(config.val, tokenizer) if config.val else None
    train = open_shards(path) if kind == "tokens" else _read(config.train, tokenizer)  # shards stay on disk
    return TokenizedData(tokenizer, train, val)


def _read(source: str, tokenizer: Tokenizer) -> NDArray[np.uint16]:
    kind, _, path = source.partition(":")
    tokens: NDArray[Any] = read_shards(path) if kind == "tokens" else tokenizer.encode_documents(read_documents(Path(path)))
    return tokens


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
