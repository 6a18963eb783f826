"""Samples of documents: the same documents in every sample, small texts, and damage is one line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.text.document_sample import DocumentSample, sample_documents, sample_heads

rng = np.random.default_rng(0)
DOCUMENTS = [np.concatenate([[1], rng.integers(4, 1000, 100)]) for _ in range(400)]
"""400 documents of 101 tokens, BOS first."""


def stream(documents) -> np.ndarray:
    return np.concatenate(documents).astype(np.uint16)


def sample(documents, most=64) -> DocumentSample:
    return sample_documents(stream(documents), 1, most)


def test_whole_sets_are_compared_exactly():
    all_of, few = sample(DOCUMENTS, 400), sample(DOCUMENTS[:10], 400)
    assert (all_of.documents, few.documents, len(few.hashes)) == (400, 10, 10)
    assert few.meet(all_of) == (10, 400) and all_of.meet(few) == (10, 10) and few.meet(sample(DOCUMENTS[10:], 400)) == (0, 390)


@given(st.integers(1, 400), st.integers(1, 200))
def test_a_small_sample_tells_the_share_that_is_common(common, most):
    """The documents of a sample are those with the smallest hashes, whatever set they are in."""
    read, scored = sample(DOCUMENTS[:common], most), sample(DOCUMENTS, 400)
    met, among = read.meet(scored)
    assert met == len(read.hashes) and (among >= met)
    if common == 400:
        assert met == among == most


def test_the_first_64_tokens_name_a_document():
    longer = [np.concatenate([d[:65], [7, 7, 7]]) for d in DOCUMENTS[:3]]
    assert sample(longer).meet(sample(DOCUMENTS[:3])) == (3, 3)
    other = [np.concatenate([d[:64], [5], d[65:]]) for d in DOCUMENTS[:3]]
    assert sample(other).meet(sample(DOCUMENTS[:3])) == (0, 3)


def test_short_documents_and_the_tail_of_one_are_passed_over():
    assert sample([d[:10] for d in DOCUMENTS]).documents == 0
    assert sample_documents(stream([DOCUMENTS[0][50:], DOCUMENTS[1]]), 1, 9).documents == 1
    assert DocumentSample(0, ()).meet(sample(DOCUMENTS)) == (0, 0)


def test_a_sample_is_read_as_it_was_written():
    for most in (0, 1, 16):
        kept = sample(DOCUMENTS, most)
        assert DocumentSample.from_text(kept.to_text(), "x") == kept
    assert len(sample(DOCUMENTS, 16).to_text()) < 120 and sample(DOCUMENTS, 64).smallest(16) == sample(DOCUMENTS, 16)


@pytest.mark.parametrize("text", ["", "x:", "3", "1:AAAA", "1:!!!!!", "0:AAAAAAA=", "2:AAAAAAEAAAAAAQ==", "9" * 30 + ":", "²:"])
def test_damage_is_one_line(text):
    if text in ("3",):
        assert DocumentSample.from_text(text, "here") == DocumentSample(3, ())
        return
    with pytest.raises(DataError, match="^here: a sample of documents is damaged"):
        DocumentSample.from_text(text, "here")


def test_heads_that_differ_only_in_type_are_equal():
    assert sample_heads([DOCUMENTS[0][1:65].astype("<u4").tobytes()], 4) == sample([DOCUMENTS[0].astype(np.uint32)], 4)
