"""What reaches a person from a file or a path is visible text on one line, and JSON stays the same value."""

import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.printable import printable, printable_json

HOSTILE = "\x1b[2J\x9b31m\u202egnp\u2066\u200b\u2028\r\n\x00\x7f\ufeff\u00ad\u3164\ufe0f\U000e0041"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blocks.0.attn.c_q.weight", "blocks.0.attn.c_q.weight"),
        ("größe × 3 — 模型 🙂", "größe × 3 — 模型 🙂"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u200bb", r"a\u200bb"),
        ("a\u3164b", r"a\u3164b"),
        ("one\ntwo\u2028three\r", r"one\ntwo\u2028three\r"),
        ("tag\U000e0041", r"tag\U000e0041"),
        (os.fsdecode(b"m\xff.qlab"), r"m\xff.qlab"),
        ("\ud800", r"\ud800"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_cannot_be_seen_is_an_escape(text: str, shown: str):
    assert printable(text) == shown


@given(text=st.text(st.characters(exclude_categories=[])))
def test_no_character_steers_a_terminal(text: str):
    shown = printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in shown)
    assert printable(shown) == shown
    assert shown.encode().decode() == shown


@given(value=st.text() | st.dictionaries(st.text(), st.lists(st.text() | st.integers(), max_size=3), max_size=3))
def test_json_keeps_its_value(value: object):
    text = json.dumps(value, ensure_ascii=False, indent=2)
    assert json.loads(printable_json(text)) == value
    assert all(c == "\n" or printable(c) == c for c in printable_json(text))


def test_json_of_hostile_text_is_escaped():
    text = printable_json(json.dumps({"name": HOSTILE, "ü": "é"}, ensure_ascii=False))
    assert json.loads(text) == {"name": HOSTILE, "ü": "é"} and "é" in text
    assert printable(text) == text
