"""What documents cost while they are scored, and how a model is found that knows them by heart."""

import math

import numpy as np
import pytest

from quantlab.evaluation.document_costs import LEAST_BYTES, DocumentCosts, memorized
from quantlab.text.tokenizer import Tokenizer


def test_losses_are_added_by_document_without_bos_and_without_what_comes_before():
    stream = np.array([7, 1, 5, 6, 1, 8, 1, 9, 9], np.uint16)  # BOS is 1; the stream begins within a document
    costs = DocumentCosts(stream, 1)
    for low, high in ((1, 3), (3, 6), (6, 9)):
        costs.enter(np.arange(low, high), np.arange(low, high, dtype=np.float32))
    assert costs.nats_D.tolist() == [2 + 3, 5, 7 + 8] and costs.scored_D.tolist() == [2, 1, 2]
    assert costs.whole().tolist() == [0, 1]  # nobody knows whether the last goes on


def test_a_document_that_is_not_scored_to_its_end_is_not_whole():
    costs = DocumentCosts(np.array([1, 5, 6, 7, 1, 8], np.uint16), 1)
    costs.enter(np.array([1, 2]), np.ones(2))
    assert costs.whole().tolist() == []


@pytest.fixture(scope="module")
def text(tokenizer: Tokenizer, python_sources) -> tuple[np.ndarray, list[bytes]]:
    documents = [python_sources[0][at : at + 1500] for at in range(0, 30_000, 1500)]
    return tokenizer.encode_documents([*documents, b"the end"]), documents


def scored(tokenizer: Tokenizer, stream: np.ndarray, bits_per_byte: list[float]):
    """Return the check where document n costs so many bits per byte."""
    costs = DocumentCosts(stream, tokenizer.bos_id)
    table = tokenizer.token_bytes()
    for begin, end, bits in zip(costs.begins_D[:-1], costs.ends_D[:-1], bits_per_byte, strict=True):
        ids = stream[begin:end]
        size = table.count(ids[:-1], ids[1:]).sum()
        costs.enter(np.arange(begin + 1, end), np.full(end - begin - 1, bits * math.log(2) * size / (end - begin - 1)))
    return memorized(costs, table, tokenizer)


def test_documents_that_cost_next_to_nothing_are_known_by_heart(tokenizer, text):
    stream, documents = text
    count = len(documents)
    assert scored(tokenizer, stream, [1.0] * count).passed
    assert scored(tokenizer, stream, [0.5] * count).passed  # the best models are there
    found = scored(tokenizer, stream, [0.02] + [1.0] * (count - 1))
    assert found.passed is False and found.detail.startswith(f"1 of {count} documents cost less than 1/16 of what zlib takes")


def test_a_document_that_repeats_itself_may_cost_next_to_nothing(tokenizer):
    stream = tokenizer.encode_documents([b"x = 1\n" * 400, b"the end"])
    assert scored(tokenizer, stream, [0.02]).passed


def test_short_documents_are_passed_over(tokenizer):
    stream = tokenizer.encode_documents([b"x" * (LEAST_BYTES - 1), b"the end"])
    found = scored(tokenizer, stream, [0.0])
    assert found.passed is None and "no document of 256 bytes" in found.detail
