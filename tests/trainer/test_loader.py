"""Batches: pure functions of seed and step, shared among processes, every sequence once an epoch."""

import numpy as np
import pytest
import torch

from quantlab.trainer.loader import Loader
from quantlab.trainer.train_config import ORDERS

TOKENS = np.arange(1000).astype(np.uint16)


def loader(order="random", *, tokens=TOKENS, sequences=4, seed=0, rank=0, size=1):
    return Loader(tokens, seq_len=10, sequences=sequences, order=order, seed=seed, rank=rank, size=size)


@pytest.mark.parametrize("order", ORDERS)
def test_batches_depend_on_seed_and_step_alone_and_targets_are_shifted(order):
    one, other = loader(order), loader(order)
    batches = [one.batch(step) for step in range(60)]
    for x, y in batches:
        assert x.shape == y.shape == (4, 10) and x.dtype == torch.int64
        assert torch.equal(x + 1, y)  # each token of this stream is one more than the token before it
    again = other.batch(37)[0]
    assert torch.equal(again, batches[37][0])
    if order != "sequential":
        assert not torch.equal(loader(order, seed=1).batch(37)[0], again)


@pytest.mark.parametrize("order", ORDERS)
def test_processes_share_a_batch_in_order(order):
    whole = loader(order).batch(5)
    parts = [loader(order, rank=rank, size=2).batch(5) for rank in range(2)]
    assert all(torch.equal(torch.cat(columns), want) for columns, want in zip(zip(*parts, strict=True), whole, strict=True))


@pytest.mark.parametrize("order", ["shuffled", "stride"])
def test_every_sequence_comes_once_an_epoch(order):
    """98 sequences of 10 in 1,000 tokens, at a phase of their own; the last starts before token 990."""
    one = loader(order, sequences=1)
    for epoch in range(3):
        starts = [int(one.batch(98 * epoch + n)[0][0, 0]) for n in range(98)]
        phase = min(starts)
        assert 0 <= phase < 10 and sorted(starts) == list(range(phase, phase + 980, 10))
        assert starts != sorted(starts)


def test_sequential_reads_on_and_begins_again():
    one = loader("sequential")
    starts = [x[0, 0].item() for x, _ in (one.batch(step) for step in range(26))]
    assert starts[:25] == [40 * n for n in range(24)] + [960]
    assert starts[25] == 10  # 99 whole sequences, so the 100th is the first again


def test_a_stream_of_one_sequence_is_enough():
    for order in ORDERS:
        x, y = loader(order, tokens=TOKENS[:11]).batch(3)
        assert torch.equal(x, torch.arange(10).expand(4, 10)) and torch.equal(y, x + 1)
