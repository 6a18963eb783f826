"""Shards must be of the tokenizer that decodes them, and text without capitals is said."""

import numpy as np
import pytest

from quantlab.evaluation.shard_text import shard_text_checks
from quantlab.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def documents(python_sources) -> list[bytes]:
    text = b"".join(python_sources)
    return [text[at : at + 1000] for at in range(0, 60_000, 1000)]


def test_documents_of_the_tokenizer_come_back(tokenizer, documents):
    (found,) = shard_text_checks(tokenizer.encode_documents(documents), tokenizer)
    assert found.passed and found.detail.startswith("0 of 59 documents")


def test_the_end_of_a_text_may_have_its_token(tokenizer, documents):
    ids = [[*tokenizer.encode_document(document), tokenizer.eos_id] for document in documents]
    (found,) = shard_text_checks(np.concatenate(ids).astype(np.uint16), tokenizer)
    assert found.passed


def test_another_tokenizer_of_the_same_size_is_found(tokenizer, documents, python_sources):
    other = Tokenizer(train_tokenizer(python_sources[1:], vocab_size=tokenizer.vocab_size))
    (found,) = shard_text_checks(tokenizer.encode_documents(documents), other)
    assert found.passed is False and "documents are cut into other tokens by this tokenizer; 10% may" in found.detail


def test_tokens_of_single_bytes_are_not_what_the_tokenizer_gives(tokenizer, documents):
    """More tokens for the same bytes: a model may score them better a token, and the count of bytes is right."""
    ids = [[tokenizer.bos_id, *(tokenizer.vocabulary.piece_bytes.index(bytes([b])) for b in d[:200])] for d in documents]
    found = shard_text_checks(np.concatenate(ids).astype(np.uint16), tokenizer)[0]
    assert found.passed is False


def test_a_stream_without_documents_is_not_checked(tokenizer):
    (found,) = shard_text_checks(np.full(100, 300, np.uint16), tokenizer)
    assert found.passed is None and found.name == "tokens"


def test_text_without_capitals_is_said(tokenizer, documents):
    lower = [document.lower() for document in documents]
    tokens, case = shard_text_checks(tokenizer.encode_documents(lower), tokenizer)
    assert tokens.passed and case.name == "letter case" and case.passed is None and "no capital among " in case.detail
    assert len(shard_text_checks(tokenizer.encode_documents(lower[:5]), tokenizer)) == 1  # too few letters to say
