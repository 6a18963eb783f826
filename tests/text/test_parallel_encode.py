import signal
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.text import prepare as parallel_encode
from quantlab.text.prepare import Batch, batches, encode_batches


@given(documents=st.lists(st.binary(max_size=30), max_size=40), split_at=st.integers(0, 45))
def test_batches_keep_the_documents_and_never_hold_both_splits(documents, split_at):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_encode, "BATCH_BYTES", 50)
        patch.setattr(parallel_encode, "BATCH_DOCUMENTS", 4)
        made = list(batches(documents, split_at))
    assert [document for batch in made for document in batch.documents] == documents
    first = 0
    for batch in made:
        assert batch.first == first and 1 <= len(batch.documents) <= 4
        assert sum(map(len, batch.documents[:-1])) < 50
        first += len(batch.documents)
        assert not batch.first < split_at < first


def test_processes_give_what_encode_documents_gives_in_order(tokenizer, python_sources):
    documents = [line for source in python_sources for line in source.split(b"\n\n")]
    work = [Batch(first, documents[first : first + 100]) for first in range(0, len(documents), 100)]
    for workers in (1, 2):
        with closing(encode_batches(iter(work), tokenizer, workers=workers)) as encoded:
            results = list(encoded)
        assert [batch.first for batch, _, _ in results] == [batch.first for batch in work]
        tokens = np.concatenate([tokens for _, tokens, _ in results])
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == tokenizer.encode_documents(documents).tolist()


def test_a_document_that_cannot_be_encoded_is_named(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer.vocabulary, "_byte_ids", None)
    with pytest.raises(DataError, match="document 8: tokenizer tiny: byte 0xff at offset 1"):
        list(encode_batches([Batch(7, [b"good", b"a\xff"])], tokenizer, workers=1))


def test_an_interrupt_waits_until_a_process_is_started():
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), parallel_encode._interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("started")
        assert done == ["started"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
