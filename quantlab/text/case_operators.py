"""CaseOps: English capitals as operators before small letters, so that a word has the same tokens however it is written.

Four private-use characters are operators. TITLE makes the first letter of a word a capital, ALLCAPS the whole word, CAPNEXT a
letter within it; ESC stands before an operator that is part of the text itself. Words are runs of ASCII letters; nothing else
changes, so every text comes back exactly.

Source: openai/parameter-golf, record of PR 1729 (transform lossless_caps_caseops_v1).
"""

import re

import numpy as np
from numpy.typing import NDArray

TITLE, ALLCAPS, CAPNEXT, ESC = OPERATORS = "\ue001", "\ue002", "\ue003", "\ue004"
_WORD_OR_OPERATOR = re.compile(f"[A-Za-z]+|[{TITLE}-{ESC}]")
_CAPITAL = re.compile("[A-Z]")
_OPERATED = re.compile(
    f"{ESC}(?P<literal>.)|{ALLCAPS}(?P<word>[A-Za-z]+)|[{TITLE}{CAPNEXT}](?P<letter>[a-z])|[{TITLE}-{ESC}]", re.S
)
_OPERATOR = re.compile(f"{ESC}(?P<literal>.)|[{TITLE}-{ESC}]", re.S)


def encode_case(text: str) -> str:
    """Return the text with operators and without ASCII capitals."""
    return _WORD_OR_OPERATOR.sub(lambda found: _encoded(found[0]), text)


def decode_case(text: str) -> str:
    """Return the text that operators stand for, the inverse of `encode_case`.

    A model may write anything: an operator without its letters stands for nothing.
    """
    return _OPERATED.sub(_decoded, text)


def original_bytes(encoded: str) -> NDArray[np.int64]:
    """Return how many bytes of the original text (UTF-8) each character of an encoded one stands for, [characters]."""
    sizes = np.array([len(c.encode("utf-8", "surrogateescape")) for c in encoded], dtype=np.int64)
    for found in _OPERATOR.finditer(encoded):
        sizes[found.start()] = 0
    return sizes


def _encoded(word: str) -> str:
    if word in OPERATORS:
        return ESC + word
    if len(word) > 1 and word.isupper():
        return ALLCAPS + word.lower()
    first = TITLE + word[0].lower() if word[0].isupper() else word[0]
    return first + _CAPITAL.sub(lambda capital: CAPNEXT + capital[0].lower(), word[1:])


def _decoded(found: re.Match[str]) -> str:
    if found["literal"] is not None:
        return found["literal"]
    return (found["word"] or found["letter"] or "").upper()
