"""Checks of shards: each failure by its name, and counts equal to those of a plain loop over documents."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.errors import ConfigError
from quantlab.text import check_data as module
from quantlab.text import known_splits
from quantlab.text.check_data import check_data
from quantlab.text.known_splits import KnownSplit, find_known_split
from quantlab.text.shards import write_shard


def pair(folder, train, val, cut=10**9):
    """Write both splits, shards of `cut` tokens; returns their globs."""
    for name, tokens in (("train", train), ("val", val)):
        for number, start in enumerate(range(0, len(tokens), cut)):
            write_shard(folder / f"t_{name}_{number:06d}.bin", np.asarray(tokens[start : start + cut]))
    return f"{folder}/t_train_*.bin", f"{folder}/t_val_*.bin"


def failures(result):
    return {finding.check: finding.text for finding in result.findings if not finding.is_ok}


@pytest.fixture(scope="module")
def splits(tokenizer, python_sources):
    """(training documents, validation documents) as bytes, all different."""
    parts = sorted({part.strip() for source in python_sources for part in source.split(b"\n\n")} - {b""})
    return parts[20:], parts[:20]


def test_a_sound_pair_passes_with_counts_that_are_exact(splits, tokenizer, tokenizer_file, tmp_path):
    train, val = (tokenizer.encode_documents(documents) for documents in splits)
    result = check_data(*pair(tmp_path, train, val, cut=1000), tokenizer_file)
    assert result.is_ok and result.overlap == 0 and failures(result) == {}
    count = result.splits["val"]
    assert (count.documents, count.tokens, count.max_id) == (20, len(val), val.max())
    assert count.bytes == sum(map(len, splits[1]))  # none begins with a space
    assert result.splits["train"].shards == -(-len(train) // 1000)
    assert [finding.check for finding in result.findings] == [
        "tokenizer",
        *(f"{name} {check}" for name in ("val", "train") for check in ("shards", "documents", "ids", "bytes")),
        "overlap",
    ]
    assert result.to_dict()["ok"] and result.to_dict()["splits"]["val"]["documents"] == 20


def test_a_leaking_split_fails_with_number_and_share(splits, tokenizer, tmp_path):
    train, val = splits
    train_tokens = tokenizer.encode_documents([*train, *val[:5]])
    result = check_data(*pair(tmp_path, train_tokens, tokenizer.encode_documents(val)))
    assert result.overlap == 5 and set(failures(result)) == {"overlap"}
    text = "5 of 20 validation documents with text (25.00%) begin with the same 64 tokens as a training document; 1.00% may"
    assert failures(result)["overlap"] == text
    globs = f"{tmp_path}/t_train_*.bin", f"{tmp_path}/t_val_*.bin"
    assert check_data(*globs, max_overlap=0.25).is_ok
    assert not check_data(*globs, max_overlap=0.24).is_ok
    with pytest.raises(ConfigError, match="max overlap must be 0 to 1, got 25"):
        check_data(*globs, max_overlap=25)


def test_only_the_first_64_tokens_count_and_short_documents_must_be_equal(tmp_path):
    head = list(range(2, 66))
    val = [1, *head, 70, 1, *head[:63], 71, 1, 5, 6, 1, 8]
    train = [1, *head, 99, 99, 1, *head[:63], 72, 1, 5, 6, 7, 1, 8, 1]
    assert check_data(*pair(tmp_path, train, val)).overlap == 2  # the first and the last


def reference(train, val):
    """Overlap and documents by a plain loop."""

    def heads(tokens):
        documents = []
        for token in tokens:
            if token == 1:
                documents.append([])
            elif documents:
                documents[-1].append(token)
        return [tuple(document[:64]) for document in documents]

    seen = {head for head in heads(train) if head}
    found = sum(head in seen for head in heads(val)) if any(heads(val)) and heads(train) else None
    return found, len(heads(val)), len(heads(train))


TOKENS = st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60)  # it waits for the disk
@given(train=TOKENS, val=TOKENS, chunk=st.integers(1, 9), cut=st.integers(1, 20))
def test_chunks_and_shards_do_not_change_the_counts(tmp_path_factory, tokenizer_file, tokenizer, train, val, chunk, cut):
    globs = pair(tmp_path_factory.mktemp("c"), train, val, cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_TOKENS", chunk)
        result = check_data(*globs, tokenizer_file)
    overlap, val_documents, train_documents = reference(train, val)
    assert result.splits["val"].documents == val_documents and result.splits["train"].documents == train_documents
    assert result.overlap == overlap
    ids = np.array(val)
    assert result.splits["val"].bytes == tokenizer.token_bytes().count(ids[:-1], ids[1:]).sum()


def test_every_failure_is_a_finding_of_its_own(splits, tokenizer, tokenizer_file, tmp_path):
    val = tokenizer.encode_documents(splits[1])
    globs = pair(tmp_path, np.array([1, 7, 400, 8]), val[val != 1])
    found = failures(check_data(*globs, tokenizer_file))
    assert found["val documents"] == f"no BOS (1) in {(val != 1).sum():,} tokens: the beginnings of documents cannot be found"
    assert found["train ids"] == "the largest is 400, the tokenizer has 0 to 399"
    assert set(found) == {"val documents", "train ids"}
    result = check_data(f"{tmp_path}/none_*.bin", globs[1], tmp_path / "absent.model")
    assert set(failures(result)) == {"tokenizer", "train shards", "val documents"} and set(result.splits) == {"val"}
    (tmp_path / "t_train_000001.bin").write_bytes(bytes(2000))
    result = check_data(*globs)
    assert "t_train_000001.bin: magic 0" in failures(result)["train shards"] and result.overlap is None


def test_shards_of_a_smaller_vocabulary_are_another_tokenizers(tokenizer_file, tmp_path):
    tokens = np.tile(np.array([1, 199, 8]), 14_000)
    result = check_data(*pair(tmp_path, tokens, tokens[:300]), tokenizer_file, max_overlap=1)
    text = "the largest is 199, the tokenizer has 0 to 399: the shards were made by another tokenizer"
    assert failures(result) == {"train ids": text}  # 300 tokens are too few to tell


def test_a_tokenizer_without_a_piece_for_a_space_fails(splits, tokenizer, tmp_path):
    broken = bytearray(tokenizer.model_bytes)
    broken[tokenizer.model_bytes.find(b"\n\x03\xe2\x96\x81\x15") + 4] = 0x82  # the piece U+2581 becomes U+2582
    (tmp_path / "broken.model").write_bytes(broken)
    globs = pair(tmp_path, *(tokenizer.encode_documents(documents) for documents in splits))
    result = check_data(*globs, tmp_path / "broken.model")
    assert "no piece for a single space (U+2581)" in failures(result)["tokenizer"]
    assert result.splits["val"].bytes is None and result.splits["val"].documents == 20


def test_public_exports_are_recognised_by_their_number_of_tokens():
    assert find_known_split(62_021_633).name == find_known_split(62_021_632 + 1024).name == "sp1024"
    assert find_known_split(62_021_632) is None
    assert find_known_split(151_130_112 + 2048).name == "byte260"


@pytest.mark.parametrize(("documents", "shift", "is_ok"), [(20, 0, True), (21, 0, False), (20, 100, False), (None, 0, True)])
def test_documents_and_bytes_of_a_public_export_must_be_its_own(
    splits, tokenizer, tokenizer_file, tmp_path, monkeypatch, documents, shift, is_ok
):
    train, val = (tokenizer.encode_documents(documents) for documents in splits)
    known = KnownSplit("tiny", (len(val) - 1) // 16 * 16, sum(map(len, splits[1])) + shift, 400, documents)
    monkeypatch.setattr(known_splits, "KNOWN_SPLITS", (known,))
    monkeypatch.setattr(known_splits, "SEQ_LENS", (16,))
    result = check_data(*pair(tmp_path, train, val), tokenizer_file)
    (finding,) = [finding for finding in result.findings if finding.check == "val export"]
    assert "public export tiny" in finding.text and finding.is_ok == result.is_ok == is_ok


def test_heads_of_documents_are_equal_in_both_versions():
    tokens = [1, 5, 6, 1, 1, 7]
    narrow, wide = (module.document_heads(np.array(tokens, dtype), bos_id=1, limit=6) for dtype in (np.uint16, np.uint32))
    assert narrow == wide == [struct.pack("<2I", 5, 6), struct.pack("<I", 7)]
