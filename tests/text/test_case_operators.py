"""CaseOps: every text comes back, tokens stand for the text's own bytes, and sidecars are checked."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from quantlab.cli.main import app
from quantlab.errors import ConfigError, DataError
from quantlab.evaluation.scoring import score_tokens
from quantlab.text.case_operators import decode_case, encode_case, original_bytes
from quantlab.text.counted_stream import read_stream
from quantlab.text.prepare import PrepareConfig, prepare
from quantlab.text.shards import read_shards, read_sidecars, sidecar_of, write_shard
from quantlab.text.tokenizer import Tokenizer, train_tokenizer

T, A, C, E = "\ue001", "\ue002", "\ue003", "\ue004"
TEXT = b"""The NASA Launch: iPod, McDonald and I. THE END
    def Foo(Bar=None): return ABCdef, X9Y, Zuerich, Z\xc3\xbcRICH
    \xee\x80\x81 and \xee\x80\x84\xee\x80\x84A bad \xff\xfe byte \xe2\x96\x81
"""


@pytest.fixture(scope="module")
def case_tokenizer(python_sources):
    return Tokenizer(train_tokenizer(python_sources, vocab_size=420, has_operators=True), name="case.model")


@pytest.fixture(scope="module")
def documents(python_sources):
    return [TEXT, *(source[at : at + 2000] for source in python_sources for at in (0, 5000)), b"Plain", b" A  B "]


def test_operators_by_hand():
    assert encode_case("The NASA Launch") == f"{T}the {A}nasa {T}launch"
    assert encode_case("iPod McDonald I aB") == f"i{C}pod {T}mc{C}donald {T}i a{C}b"
    assert encode_case(f"A{T}B{E}") == f"{T}a{E}{T}{T}b{E}{E}"
    assert encode_case("Äb Éa 9Z") == f"Äb É{''}a 9{T}z"  # only ASCII letters make words
    assert decode_case(f"{A} x {T}9 {C}") == " x 9 "  # what a model may write


@given(st.text(alphabet=st.sampled_from([*"aBcDZ z9.-_ÄéÉ日\n", T, A, C, E, "\ue000", "\ue005", "\udcff"]), max_size=60))
def test_every_text_comes_back_and_its_bytes_are_counted(text):
    encoded = encode_case(text)
    assert decode_case(encoded) == text
    assert not any("A" <= c <= "Z" for c in encoded)
    assert original_bytes(encoded).sum() == len(text.encode("utf-8", "surrogateescape"))


def test_tokens_stand_for_the_bytes_of_the_text(case_tokenizer, documents):
    assert case_tokenizer.kind == "caseops" and case_tokenizer.normalization == ""
    for document in documents:
        ids, counts = case_tokenizer.encode_counted(document)
        assert ids == case_tokenizer.encode_document(document) and len(ids) == len(counts)
        assert sum(counts) == len(document) and counts[0] == 0
        assert case_tokenizer.decode(ids) == document
    table = case_tokenizer.token_bytes()
    assert [int(table.base[i]) for i in case_tokenizer.vocabulary.operator_ids] == [0, 0, 0, 0]
    ids, counts = case_tokenizer.encode_counted(documents[1])  # without an operator in the text the table is exact too
    stream = np.array(ids)
    assert counts[2:] == table.count(stream[:-1], stream[1:]).tolist()[1:]


def test_a_word_has_the_same_tokens_however_it_is_written(case_tokenizer):
    operators = set(case_tokenizer.vocabulary.operator_ids)
    kept = [[i for i in case_tokenizer.encode(word) if i not in operators] for word in (b"return", b"Return", b"RETURN")]
    assert kept[0] == kept[1] == kept[2]


def test_a_tokenizer_without_operators_is_what_it_was(tokenizer):
    assert tokenizer.kind == "sentencepiece" and not tokenizer.has_operators
    ids, counts = tokenizer.encode_counted(b"Some text")
    assert ids == tokenizer.encode_document(b"Some text") and sum(counts) == len(b"Some text")


@pytest.fixture
def shards(case_tokenizer, documents, tmp_path):
    source = tmp_path / "docs.jsonl"
    source.write_text("\n".join(json.dumps({"text": d.decode("utf-8", "ignore")}) for d in documents))
    out = tmp_path / "shards"
    config = PrepareConfig(val_docs=6, shard_tokens=1000)
    prepare([source], case_tokenizer, out, config)
    texts = [json.loads(line)["text"].encode() for line in source.read_text().splitlines()]
    return out, texts[:6]


def test_prepare_writes_the_bytes_of_the_validation_split(shards):
    out, texts = shards
    pattern = str(out / "fineweb_val_*.bin")
    counts = read_sidecars(pattern)
    assert len(counts) == len(read_shards(pattern)) > 1000 and int(counts.sum()) == sum(map(len, texts))
    assert read_sidecars(str(out / "fineweb_train_*.bin")) is None
    assert (out / "fineweb_val_bytes_000001.bin").exists() and not list(out.glob("*train_bytes*"))


def test_two_processes_write_the_same_files(shards, case_tokenizer, tmp_path):
    out, _ = shards
    prepare(
        [tmp_path / "docs.jsonl"], case_tokenizer, tmp_path / "two", PrepareConfig(val_docs=6, shard_tokens=1000, workers=2)
    )
    names = sorted(path.name for path in out.glob("*.bin"))
    assert names == sorted(path.name for path in (tmp_path / "two").glob("*.bin"))
    assert all((out / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_a_score_is_of_the_original_bytes_from_shards_and_from_text(shards, case_tokenizer, tmp_path):
    out, texts = shards
    ids, counts = read_stream(None, str(out / "fineweb_val_*.bin"), case_tokenizer)
    source = tmp_path / "val.jsonl"
    source.write_text("\n".join(json.dumps({"text": text.decode()}) for text in texts))
    same_ids, same_counts = read_stream(source, None, case_tokenizer)
    assert ids.tolist() == same_ids.tolist() and counts.tolist() == same_counts.tolist()

    class Uniform(torch.nn.Module):
        def forward(self, x):
            return torch.zeros(*x.shape, 420)

    score = score_tokens(
        Uniform(), ids, case_tokenizer.token_bytes(), byte_counts=counts, mode="document", seq_len=64, bos_id=1
    )
    assert score.bytes == sum(map(len, texts))
    assert score.val_bpb == pytest.approx(score.tokens * np.log2(420) / score.bytes, rel=1e-6)


def test_sidecars_that_do_not_fit_are_refused(shards, case_tokenizer):
    out, _ = shards
    pattern = str(out / "fineweb_val_*.bin")
    first = sidecar_of(out / "fineweb_val_000000.bin")
    counts = read_sidecars(pattern)[:1000]
    write_shard(first, counts[:-1])
    with pytest.raises(DataError, match="999 of uint16 for 1,000 tokens, must be one uint16 a token"):
        read_sidecars(pattern)
    write_shard(first, (counts * 3).astype(np.uint16))
    with pytest.raises(DataError, match="the tokenizer's pieces to .* more than 2% apart"):
        read_stream(None, pattern, case_tokenizer)
    first.unlink()
    with pytest.raises(DataError, match="fineweb_val_bytes_000000.bin are missing, other shards"):
        read_sidecars(pattern)


def test_training_a_tokenizer_from_the_command_line(documents, tmp_path):
    source = tmp_path / "docs.jsonl"
    source.write_text("\n".join(json.dumps({"text": d.decode("utf-8", "ignore")}) for d in documents))
    for flag, kind in (([], "sentencepiece"), (["--case-operators"], "caseops")):
        out = tmp_path / f"{kind}.model"
        command = ["data", "train-tokenizer", str(source), "--vocab-size", "400", "-o", str(out), *flag]
        result = CliRunner().invoke(app, [*command, "--json"])
        assert result.exit_code == 0, result.output
        made = Tokenizer.load(out)
        assert (made.kind, made.vocab_size) == (kind, 400)
        about = json.loads(result.stdout)
        assert about["sha256"] == made.sha256 and about["vocab_size"] == 400
        again = CliRunner().invoke(app, command)
        assert isinstance(again.exception, ConfigError) and "exists" in str(again.exception)
        assert made.decode(made.encode(TEXT)) == TEXT
