"""The challenge's byte tokenizer (byte260): pad 0, BOS 1, EOS 2, unknown 3, and each byte is the id of its value plus 4."""

import json
from typing import Any

import numpy as np

from quantlab.errors import DataError

NAME = "byte260"
"""Stands for this tokenizer where the path of a tokenizer is asked for."""
CONFIG = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": 4, "byte_count": 256}
"""The ids, under the keys of the challenge's file."""
SPECIAL_IDS = CONFIG["byte_offset"]


def byte260_file() -> bytes:
    """Return the challenge's tokenizer file.

    Source: openai/parameter-golf data/pure_byte_tokenizer.py, whose file has these keys.
    """
    content = {"tokenizer_type": "pure_byte", "config": CONFIG, "vocab_size": SPECIAL_IDS + 256}
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"


class ByteVocabulary:
    """Every byte is one token; see `quantlab.text.vocabulary.Vocabulary` for the fields."""

    kind = NAME
    bos_id = CONFIG["bos_id"]
    eos_id: int | None = CONFIG["eos_id"]
    normalization = ""
    unknown_id: int | None = None
    dummy_prefix = b""
    operator_ids: tuple[int, ...] = ()

    def __init__(self, content: dict[str, Any], *, name: str) -> None:
        """Check the file's content. DataError if its ids are others than those of byte260."""
        if content.get("config") != CONFIG or content.get("vocab_size") != SPECIAL_IDS + 256:
            raise DataError(f"tokenizer {name}: byte tokenizer with other ids, only those of {NAME} are known: {CONFIG}")
        self.piece_bytes = [b""] * SPECIAL_IDS + [bytes([byte]) for byte in range(256)]
        self.is_boundary_V = np.arange(SPECIAL_IDS + 256) < SPECIAL_IDS
        self.has_space_V = np.zeros(SPECIAL_IDS + 256, dtype=np.bool_)

    def encode(self, data: bytes) -> list[int]:
        """Return the value of each byte plus 4."""
        return [byte + SPECIAL_IDS for byte in data]

    def restore(self, data: bytes) -> bytes:
        """Return the bytes as they are."""
        return data
