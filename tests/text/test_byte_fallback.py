"""Tokenizers with byte fallback: exact bytes of every id, as Llama 2, Mistral and Gemma have them, and refusals by name."""

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.text.tokenizer import Tokenizer

SPACE = "\u2581"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
BOTH = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
TEXT = st.text(max_size=40)


@pytest.fixture(scope="module")
def content(python_sources: list[bytes]) -> dict[str, Any]:
    """A BPE of 300 tokens over characters of ASCII, <unk>, <s>, 256 bytes and an added token; like Llama 2 but for a prefix."""
    tokenizers = pytest.importorskip("tokenizers")
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.normalizer = tokenizers.normalizers.Replace(" ", SPACE)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False)
    texts = [source.decode("ascii", "ignore") for source in python_sources]
    engine.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    found = json.loads(engine.to_str())
    vocab = found["model"]["vocab"]
    vocab.update({f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)})
    found["added_tokens"].append(dict(found["added_tokens"][0], id=len(vocab), content="<tool>", special=False))
    return found


def tokenizer_of(content: dict[str, Any], **changes: Any) -> Tokenizer:
    return Tokenizer(json.dumps(content | changes).encode(), name="tiny", bos="<s>")


@pytest.fixture(scope="module")
def plain(content) -> Tokenizer:
    return tokenizer_of(content)


@pytest.fixture(scope="module")
def prefixed(content) -> Tokenizer:
    return tokenizer_of(content, normalizer=BOTH)


def check_bytes(tokenizer: Tokenizer, data: bytes, prefix: bytes = b"") -> None:
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == (prefix if data else b"") + data
    stream = np.array(tokenizer.encode_document(data))
    assert stream.tolist() == [tokenizer.bos_id, *ids]
    assert tokenizer.token_bytes().count(stream[:-1], stream[1:]).sum() == len(data)


@settings(deadline=None)
@given(data=st.one_of(st.binary(max_size=60), TEXT.map(lambda text: text.encode("utf-8", "replace"))))
@example(b"")
@example(bytes(range(256)))
@example("  a naïve  <tool>\n\n\tx <s> <unk> <0x41> ▁▁ \U0001f600".encode())
def test_without_a_prefix_every_byte_comes_back_and_is_counted(plain, data):
    check_bytes(plain, data)


@settings(deadline=None)
@given(text=TEXT.filter(lambda text: SPACE not in text and "<tool>" not in text))
@example(" two leading  spaces")
@example("  ")
@example("naïve <s> <0x41>\U0001f600\n")
def test_with_a_prefix_every_byte_comes_back_behind_it_and_is_counted(prefixed, text):
    check_bytes(prefixed, text.encode("utf-8", "ignore"), b" ")


@pytest.mark.parametrize("changes", [{"pre_tokenizer": SPLIT}, {"normalizer": None, "pre_tokenizer": METASPACE}])
def test_other_ways_to_write_spaces_are_exact_too(content, changes, python_sources):
    tokenizer = tokenizer_of(content, **changes)
    check_bytes(tokenizer, b"  a b ")
    stream = tokenizer.encode_documents(python_sources)
    assert tokenizer.decode(stream) == b"".join(python_sources)
    assert len(stream) < 0.8 * sum(map(len, python_sources))


def test_ids_stand_for_what_they_are(plain, content):
    vocab, table = content["model"]["vocab"], plain.token_bytes()
    pieces = plain.vocabulary.piece_bytes
    assert pieces[vocab["<0x41>"]] == b"A" and pieces[vocab["<0x81>"]] == b"\x81" and pieces[vocab["<unk>"]] == b""
    assert plain.encode("▁".encode()) == [vocab[f"<0x{byte:02X}>"] for byte in "▁".encode()]
    assert plain.encode(b"<tool>") == [len(vocab)] and table.base[len(vocab)] == 6
    assert plain.kind == "huggingface" and plain.bos_id == vocab["<s>"] and not table.has_space.any()
    assert plain.fitted(1000).vocab_size == 1000


def test_bytes_between_runs_of_text_cannot_be_counted_with_a_prefix(prefixed):
    for data in (b"a\xffb", "a▁b".encode()):
        with pytest.raises(DataError, match="the tokenizer adds spaces around it"):
            prefixed.encode(data)
    with pytest.raises(DataError, match="tokens of a document stand for other bytes"):
        prefixed.encode_document(b"a <tool> b")  # the library puts the prefix before what follows an added token, too


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase changes text"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}}, "normalizer Replace changes text"),
        ({"normalizer": {"type": "Prepend", "prepend": "x"}}, "normalizer Prepend changes text"),
        ({"pre_tokenizer": dict(METASPACE, prepend_scheme="first")}, "Metaspace puts a space before a text unless it has one"),
        ({"pre_tokenizer": dict(SPLIT, behavior="Removed")}, "Split removes what it cuts at"),
    ],
)
def test_what_cannot_be_counted_exactly_is_refused_by_name(content, changes, message):
    with pytest.raises(DataError, match=f"tokenizer tiny: its bytes cannot be counted exactly: .*{message}") as caught:
        tokenizer_of(content, **changes)
    assert caught.value.hint == "use the SentencePiece .model file that it was made from"


def test_a_missing_byte_is_refused(content):
    changed = copy.deepcopy(content)
    del changed["model"]["vocab"]["<0x7F>"]
    with pytest.raises(DataError, match="no token <0x7F>, a byte that would be lost"):
        tokenizer_of(changed)
