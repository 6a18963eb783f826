"""Tokenizers of Hugging Face and byte260: exact bytes of every id, refusals by name, BOS, vocabularies above 65,536."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.text.byte_vocabulary import CONFIG, byte260_file
from quantlab.text.huggingface_vocabulary import _bytes_of_characters
from quantlab.text.prepare import Batch, encode_batches
from quantlab.text.tokenizer import Tokenizer

ANY_BYTES = st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")))
SPECIAL = "<|endoftext|>"


@pytest.fixture(scope="module")
def content(python_sources: list[bytes]) -> dict[str, Any]:
    """A byte-level BPE of 390 tokens, one special, and an added token that is not, as the object in its tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=390,
        special_tokens=[SPECIAL],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator([source.decode() for source in python_sources], trainer)
    engine.add_tokens(["naïve <tool>"])
    return json.loads(engine.to_str())


def tokenizer_of(content: dict[str, Any], **changes: Any) -> Tokenizer:
    return Tokenizer(json.dumps(content | changes).encode(), name="tiny")


@pytest.fixture(scope="module")
def bpe(content) -> Tokenizer:
    return tokenizer_of(content)


@pytest.fixture(scope="module")
def byte260() -> Tokenizer:
    return Tokenizer.load("byte260")


def check_bytes(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data
    stream = np.array(tokenizer.encode_document(data))
    assert stream.tolist() == [tokenizer.bos_id, *ids]
    assert tokenizer.token_bytes().count(stream[:-1], stream[1:]).sum() == len(data)


@settings(deadline=None)
@given(data=ANY_BYTES)
@example(bytes(range(256)))
def test_byte260_gives_every_byte_and_counts_it(byte260, data):
    assert byte260.encode(data) == [byte + 4 for byte in data]
    check_bytes(byte260, data)


@settings(deadline=None)
@given(data=ANY_BYTES)
@example(b"")
@example(bytes(range(256)))
@example("naïve <tool>s say naïve <tool naïve <tool> <|endoftext|> ▁ \ufeff\ufffd \r\n\t  x".encode())
@example(b" \xe2\x96\x81 \xe2\x96 \xed\xa0\x80 \xc0\x80 \xf4\x90\x80\x80 <|endoftext|>")
def test_byte_level_bpe_gives_every_byte_back_and_counts_it(bpe, data):
    check_bytes(bpe, data)


def test_python_source_comes_back_and_is_shortened(bpe, python_sources):
    stream = bpe.encode_documents(python_sources)
    assert stream.dtype == np.uint16 and bpe.decode(stream) == b"".join(python_sources)
    counts = bpe.token_bytes().count(stream[:-1], stream[1:])
    assert counts.sum() == sum(map(len, python_sources)) and len(stream) < 0.7 * counts.sum()


def test_special_tokens_stand_for_no_text_and_added_ones_for_theirs(bpe, content):
    table, added = bpe.token_bytes(), {token["content"]: token["id"] for token in content["added_tokens"]}
    assert bpe.bos_id == added[SPECIAL] and table.base[bpe.bos_id] == 0 and table.is_boundary[bpe.bos_id]
    assert bpe.encode("naïve <tool>".encode()) == [added["naïve <tool>"]]
    assert table.base[added["naïve <tool>"]] == len("naïve <tool>".encode())
    assert bpe.bos_id not in bpe.encode(SPECIAL.encode())


def test_the_byte_alphabet_is_that_of_the_library():
    tokenizers = pytest.importorskip("tokenizers")
    table = _bytes_of_characters()
    assert set(table) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) and set(table.values()) == set(range(256))
    assert (table["a"], table["Ġ"], table["Ċ"]) == (ord("a"), ord(" "), ord("\n"))


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "the model is WordPiece, must be BPE"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "the model is Unigram, must be BPE"),
        ({"model": None}, "it has no model"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase changes text"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "StripAccents"}]}},
            "StripAccents changes",
        ),
        ({"pre_tokenizer": None}, "0 pre-tokenizers are ByteLevel, must be 1"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer Whitespace may remove or change text"),
        ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "ByteLevel adds a space before the text"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
                        BYTE_LEVEL,
                    ],
                }
            },
            "pre-tokenizer Split removes what it cuts at",
        ),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, BYTE_LEVEL]}}, "2 pre-tokenizers are ByteLevel"),
        ({"pre_tokenizer": {"type": "Sequence"}}, "pre_tokenizer Sequence must have a list pretokenizers"),
        ({"normalizer": 3}, "normalizer must be an object with a type"),
        ({"added_tokens": 3}, "added_tokens must be a list"),
        ({"added_tokens": [{"id": 390, "content": "x", "special": False, "lstrip": True}]}, "removes the spaces beside it"),
    ],
)
def test_what_cannot_be_counted_exactly_is_refused_by_name(content, changes, message):
    with pytest.raises(DataError, match=f"tokenizer tiny: .*{message}"):
        tokenizer_of(content, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.1}, "dropout makes its tokens random"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix '</w>' is in tokens"),
        ({"continuing_subword_prefix": "##"}, "continuing_subword_prefix '##' is in tokens"),
    ],
)
def test_models_whose_tokens_are_not_the_text_are_refused(content, changes, message):
    with pytest.raises(DataError, match=message):
        tokenizer_of(content, model=content["model"] | changes)


def test_an_enormous_id_is_refused(content):
    changed = copy.deepcopy(content)
    changed["model"]["vocab"]["extra"] = 2**31
    with pytest.raises(DataError, match="largest id is 2,147,483,648"):
        tokenizer_of(changed)


def test_bytes_without_a_token_are_named_where_a_text_has_them(content):
    """SmolLM2's vocabulary lacks control characters; the library would leave them out of a text."""
    changed = copy.deepcopy(content)
    for character, byte in _bytes_of_characters().items():
        if byte in (0x21, 0x5D, 0x00, 0xE9, 0x81):
            del changed["model"]["vocab"][character]
    changed["model"]["merges"] = []
    tokenizer = tokenizer_of(changed)
    check_bytes(tokenizer, "a naïve [text: \xff".encode() + b"\xff")
    for data, byte in ((b"a!", "21"), (b"\0", "00"), (b"]x", "5d"), (b"\xe9", "e9")):
        with pytest.raises(DataError, match=f"tokenizer tiny: it has no token for the byte 0x{byte}"):
            tokenizer.encode(data)
    with pytest.raises(DataError, match="tokens of a document stand for other bytes"):
        tokenizer.encode_document("Á".encode())  # 0xc3 0x81


@pytest.mark.parametrize(
    "data", [b"{", b'{"a": 1}', b'{"model": {}}', b"{" * 100_000, b'{"\xff": 1}', b'{"tokenizer_type": "pure_byte"}']
)
def test_damaged_json_is_named(data):
    with pytest.raises(DataError, match="tokenizer tiny"):
        Tokenizer(data, name="tiny")


def test_a_damaged_file_of_a_known_kind_is_named(content):
    with pytest.raises(DataError, match=r"tokenizer tiny is not a tokenizer\.json that tokenizers can load"):
        tokenizer_of(content, model=content["model"] | {"vocab": 3})


def test_ids_that_stand_for_other_bytes_are_found_on_the_document(content):
    """A file can claim that a token of the text is special: its bytes would not be counted."""
    changed = copy.deepcopy(content)
    changed["added_tokens"].append(dict(content["added_tokens"][0], id=content["model"]["vocab"]["a"], content="a"))
    tokenizer = tokenizer_of(changed)
    with pytest.raises(DataError, match="tokens of a document stand for other bytes than its 1"):
        tokenizer.encode_documents([b"a"])


def test_a_normalizer_of_nfc_is_named_and_what_it_changes_is_counted(content, caplog):
    tokenizer = tokenizer_of(content, normalizer={"type": "NFC"})
    assert tokenizer.normalization == "NFC"
    tokenizer.encode_documents(["é".encode(), b"plain"])
    assert not caplog.records
    tokenizer.encode_documents(["e\u0301".encode(), b"plain"])
    assert "normalizes (NFC): 1 of 2 documents changed" in caplog.text


def write(folder: Path, content: dict[str, Any], config: Any = None) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_bos_and_eos_come_from_the_config_beside_or_from_the_file(content, tmp_path):
    changed = copy.deepcopy(content)
    special = content["added_tokens"][0]
    changed["added_tokens"] += [dict(special, id=391, content="<x>"), dict(special, id=392, content="<y>")]
    found = Tokenizer.load(write(tmp_path, changed))
    assert (found.bos_id, found.eos_id, found.name) == (found.encode_document(b"a")[0], None, str(tmp_path / "tokenizer.json"))
    assert found.bos_id == special["id"]
    config = {"bos_token": {"content": "<x>"}, "eos_token": "<y>"}
    named = Tokenizer.load(write(tmp_path, changed, config) / "tokenizer.json")
    assert (named.bos_id, named.eos_id) == (391, 392)
    assert Tokenizer.load(write(tmp_path, changed, {"bos_token": None, "eos_token": "<y>"})).bos_id == 392
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<y>", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    template["single"].append({"Sequence": {"id": "A", "type_id": 0}})
    template["pair"] = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    template["special_tokens"] = {"<y>": {"id": "<y>", "ids": [392], "tokens": ["<y>"]}}
    assert tokenizer_of(changed, post_processor=template).bos_id == 392
    with pytest.raises(DataError, match="no token begins a document"):
        Tokenizer.load(write(tmp_path, changed, {"bos_token": "<absent>"}))
    with pytest.raises(DataError, match="'a' also stands for text"):
        Tokenizer.load(write(tmp_path, changed, {"bos_token": "a"}))
    with pytest.raises(DataError, match="must be a JSON object, got list"):
        Tokenizer.load(write(tmp_path, changed, []))


def test_a_folder_without_a_tokenizer_is_refused_and_a_model_file_is_preferred(content, tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"has no tokenizer: neither tokenizer\.model nor tokenizer\.json"):
        Tokenizer.load(tmp_path)
    assert Tokenizer.load(write(tmp_path, content)).kind == "huggingface"
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    assert Tokenizer.load(tmp_path).kind == "sentencepiece"


def test_a_larger_embedding_has_ids_without_text(bpe, byte260):
    fitted = bpe.fitted(512)
    table = fitted.token_bytes()
    assert (fitted.vocab_size, len(table.base), len(table.has_space)) == (512, 512, 512) and bpe.vocab_size < 512
    assert table.base[bpe.vocab_size :].sum() == 0 and table.is_boundary[bpe.vocab_size :].all()
    assert fitted.decode([511, *fitted.encode(b"a cat")]) == b"a cat" and fitted.sha256 == bpe.sha256
    for tokenizer, size in ((bpe, bpe.vocab_size - 1), (byte260, 512)):
        with pytest.raises(DataError, match=f"pieces, the model has {size}"):
            tokenizer.fitted(size)


def test_the_challenges_byte_file_is_read_and_another_one_is_not(byte260, tmp_path):
    path = tmp_path / "fineweb_pure_byte_260.json"
    path.write_bytes(byte260_file())
    assert Tokenizer.load(path).sha256 == byte260.sha256
    assert (byte260.vocab_size, byte260.bos_id, byte260.eos_id, byte260.kind) == (260, 1, 2, "byte260")
    assert byte260.token_bytes().base.tolist() == [0] * 4 + [1] * 256
    other = {"tokenizer_type": "pure_byte", "config": CONFIG | {"bos_id": 2}, "vocab_size": 260}
    with pytest.raises(DataError, match="other ids, only those of byte260"):
        Tokenizer(json.dumps(other).encode())


def test_ids_of_a_large_vocabulary_are_uint32(content):
    large = copy.deepcopy(content)
    vocab = large["model"]["vocab"]
    vocab.update({f"filler{number}": number for number in range(len(vocab), 70_000)})
    large["added_tokens"] = [content["added_tokens"][0], dict(content["added_tokens"][1], id=70_000)]
    tokenizer = tokenizer_of(large)
    stream = tokenizer.encode_documents(["a naïve <tool> b".encode()])
    assert stream.dtype == np.uint32 and stream.max() == 70_000 == tokenizer.vocab_size - 1
    assert tokenizer.decode(stream) == "a naïve <tool> b".encode()


def test_a_file_that_alone_has_another_bos_is_not_copied(content, tmp_path):
    changed = copy.deepcopy(content)
    changed["added_tokens"].append(dict(content["added_tokens"][0], id=391, content="<x>"))
    write(tmp_path, changed, {"bos_token": SPECIAL})
    assert Tokenizer.load(tmp_path).standalone_file() == (tmp_path / "tokenizer.json").read_bytes()
    with pytest.raises(DataError, match="BOS is id 391, but without the config beside it 0 would be read"):
        Tokenizer.load(write(tmp_path, changed, {"bos_token": "<x>"})).standalone_file()


CUTS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT = {"type": "Split", "pattern": {"Regex": CUTS}, "behavior": "Isolated", "invert": False}


@pytest.fixture(scope="module")
def like_llama_3(content) -> Tokenizer:
    """A regular expression that cuts, then bytes; whole words before merges; parts in sequences."""
    cutters = {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL | {"use_regex": False}]}
    processors = {"type": "Sequence", "processors": [BYTE_LEVEL | {"trim_offsets": False}]}
    model = content["model"] | {"ignore_merges": True}
    return tokenizer_of(content, pre_tokenizer=cutters, post_processor=processors, model=model)


@settings(deadline=None)
@given(data=ANY_BYTES)
@example("I'll say 12345  naïve <tool>\r\n\n  <|endoftext|> \u0301e".encode() + b"\xff\xc0")
def test_a_file_like_that_of_llama_3_gives_every_byte_back(like_llama_3, data):
    check_bytes(like_llama_3, data)


def test_workers_have_the_bos_of_the_config(content, tmp_path):
    changed = copy.deepcopy(content)
    changed["added_tokens"].append(dict(content["added_tokens"][0], id=391, content="<x>"))
    tokenizer = Tokenizer.load(write(tmp_path, changed, {"bos_token": "<x>"}))
    work = [Batch(0, [b"a cat", b"b"]), Batch(2, [b"\xff"])]
    alone, shared = ([t.tolist() for _, t, _ in encode_batches(work, tokenizer, workers=workers)] for workers in (1, 2))
    assert alone == shared and alone[1][0] == 391
