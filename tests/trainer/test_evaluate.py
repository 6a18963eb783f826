import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantlab.errors import ConfigError, DataError, QuantlabError, ShapeError
from quantlab.text.tokenizer import TokenBytes, Tokenizer
from quantlab.text.train_tokenizer import train_tokenizer
from quantlab.trainer.evaluate import Score, evaluate


class Table(nn.Module):
    """Logits of the next token depend on the current one alone: row i of a [V, V] table."""

    def __init__(self, table_VV: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table_VV)
        self.calls: list[tuple[int, ...]] = []
        self.was_training: list[bool] = []

    def forward(self, ids_BT: Tensor) -> Tensor:
        assert ids_BT.dtype == torch.int64
        self.calls.append(tuple(ids_BT.shape))
        self.was_training.append(self.training)
        return self.table[ids_BT]


# Five pieces by hand: BOS, "▁the", "s", "<0xFF>" and the two-byte letter "é".
BY_HAND = TokenBytes(
    base=np.array([0, 3, 1, 1, 2], dtype=np.int32),
    has_space=np.array([False, True, False, False, False]),
    is_boundary=np.array([True, False, False, False, False]),
)


@pytest.fixture
def table() -> Table:
    """From BOS: 1/2 to "▁the", 1/8 to each other; from any other token: 1/2 to BOS, 1/8 to each other."""
    probabilities = torch.full((5, 5), 0.125)
    probabilities[0, 1] = 0.5
    probabilities[1:, 0] = 0.5
    return Table(probabilities.log() + 7.0)  # a constant added to logits changes nothing


def test_bits_per_byte_by_hand(table):
    """BOS ▁the ▁the s 0xFF é BOS ▁the | s: the last token is left over (8 targets, 4 a sequence -> 2 sequences)."""
    tokens = np.array([0, 1, 1, 2, 3, 4, 0, 1, 2], dtype=np.uint16)
    score = evaluate(table, tokens, BY_HAND, seq_len=4)
    # bits:  1 (▁the after BOS) + 3 (▁the) + 3 (s) + 3 (0xFF) + 3 (é) + 1 (BOS) + 1 (▁the after BOS) + 3 (s) = 18
    # bytes: 3                  + 4        + 1     + 1        + 2     + 0       + 3                  + 1     = 15
    assert score.tokens == 8
    assert score.bytes == 15
    assert score.val_bpb == pytest.approx(1.2, rel=1e-6)
    assert score.nats == pytest.approx(12.476649250079015, rel=1e-6)
    assert score.val_loss == pytest.approx(1.5595811562598769, rel=1e-6)


def test_what_does_not_fill_a_sequence_is_not_scored(table):
    tokens = np.array([0, 1, 1, 2, 3, 4, 0, 1, 2])
    score = evaluate(table, tokens, BY_HAND, seq_len=5)  # only ▁the ▁the s 0xFF é: 13 bits, 11 bytes
    assert (score.tokens, score.bytes, score.seq_len) == (5, 11, 5)
    assert score.val_bpb == pytest.approx(13 / 11, rel=1e-6)
    assert table.calls == [(1, 5)]


def slow_score(table: list[list[float]], pieces: list[str], tokens: list[int], seq_len: int) -> tuple[float, int, int]:
    """(bits per byte, tokens, bytes), one token at a time, bytes straight from the pieces' text."""
    nats, count, size, position = 0.0, 0, 0, 0
    while position + seq_len < len(tokens):
        for prev, target in zip(tokens[position : position + seq_len], tokens[position + 1 :], strict=False):
            row = table[prev]
            top = max(row)
            nats += top + math.log(sum(math.exp(value - top) for value in row)) - row[target]
            count += 1
            piece, after_special = pieces[target], pieces[prev] in ("<pad>", "<s>", "</s>", "<unk>")
            if piece in ("<pad>", "<s>", "</s>", "<unk>"):
                continue
            if len(piece) == 6 and piece.startswith("<0x"):
                size += 1
            else:
                size += sum(1 if char == "▁" else len(char.encode()) for char in piece)
                size -= piece[0] == "▁" and after_special
        position += seq_len
    return nats / math.log(2) / size, count, size


def test_agrees_with_a_slow_implementation_on_mixed_text():
    prose = b"The byte counts of a text come from its pieces, whatever the text may be. " * 8
    documents = [
        prose,
        " Ελληνικά, 日本語 and русский: naïve ▁ café\n\n\tend".encode() * 4,
        b" bad \xff\xfe \xe2\x96 bytes " * 9,
    ]
    tokenizer = Tokenizer(train_tokenizer(documents, vocab_size=330))
    tokens = tokenizer.encode_documents(documents * 2)
    table_VV = 3 * torch.randn(330, 330, generator=torch.Generator().manual_seed(0))
    pieces = [tokenizer._processor.id_to_piece(i) for i in range(330)]
    score = evaluate(Table(table_VV), tokens, tokenizer.token_bytes(), seq_len=50, batch_tokens=170)
    bpb, count, size = slow_score(table_VV.tolist(), pieces, tokens.tolist(), 50)
    assert (score.tokens, score.bytes) == (count, size)
    assert score.val_bpb == pytest.approx(bpb, rel=1e-6)
    assert len(tokens) - 1 - count < 50
    # Two documents start with a space that BOS takes; the first token of all is BOS: all other bytes are there.
    whole = evaluate(Table(table_VV), tokens, tokenizer.token_bytes(), seq_len=len(tokens) - 1)
    assert whole.bytes == 2 * sum(len(document) for document in documents) - 4


def test_batches_are_bounded_and_change_nothing_but_progress(table):
    tokens = np.random.default_rng(0).integers(0, 5, 100)
    done: list[tuple[int, int]] = []
    scores = []
    for batch_tokens in (1, 25, 1000):
        table.calls.clear()
        scores.append(
            evaluate(table, tokens, BY_HAND, seq_len=10, batch_tokens=batch_tokens, progress=lambda *a: done.append(a))
        )
        assert all(rows * length <= max(10, batch_tokens) for rows, length in table.calls)
    assert [scores[0].val_bpb] * 2 == pytest.approx([score.val_bpb for score in scores[1:]], rel=1e-6)
    assert done == [(i, 9) for i in range(1, 10)] + [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)] + [(9, 9)]


def test_half_precision_logits_are_summed_in_float32(table):
    class Half(nn.Module):
        def forward(self, ids_BT: Tensor) -> Tensor:
            return torch.zeros(*ids_BT.shape, 5, dtype=torch.bfloat16)

    score = evaluate(Half(), np.ones(1001, dtype=np.uint16), BY_HAND, seq_len=10)
    assert score.val_loss == pytest.approx(math.log(5), rel=1e-6)  # bfloat16 would give 1.6094 +- 0.004


@pytest.mark.parametrize("fails", [False, True])
def test_each_modules_mode_is_restored(table, fails):
    model = nn.Sequential(nn.Identity(), table).train()
    table.eval()
    model[0].train()
    if fails:
        table.table.data.fill_(math.nan)
        with pytest.raises(QuantlabError):
            evaluate(model, np.ones(9, dtype=np.uint16), BY_HAND, seq_len=4)
    else:
        table.train()
        evaluate(model, np.ones(9, dtype=np.uint16), BY_HAND, seq_len=4)
        assert table.was_training == [False]
        assert table.training
        table.eval()
    assert (model.training, model[0].training, table.training) == (True, True, False)


def test_a_loss_that_is_not_finite_is_named(table):
    table.table.data[3, 2] = -math.inf
    tokens = np.array([0, 1, 1, 1, 1, 1, 3, 2, 1])
    for batch_tokens in (1, 1000):
        with pytest.raises(QuantlabError, match="loss is inf in sequence 1, token 2"):
            evaluate(table, tokens, BY_HAND, seq_len=4, batch_tokens=batch_tokens)


def test_text_that_cannot_be_scored_is_refused(table):
    with pytest.raises(DataError, match="4 tokens are too few: one sequence of 4 needs 5"):
        evaluate(table, np.ones(4, dtype=np.uint16), BY_HAND, seq_len=4)
    with pytest.raises(DataError, match="token id 5 in the text, the vocabulary has 0 to 4"):
        evaluate(table, np.array([1, 5, 1]), BY_HAND, seq_len=2)
    with pytest.raises(DataError, match="token id -1"):
        evaluate(table, np.array([1, -1, 1]), BY_HAND, seq_len=2)
    with pytest.raises(DataError, match="2 scored tokens stand for 0 bytes"):
        evaluate(table, np.zeros(3, dtype=np.uint16), BY_HAND, seq_len=2)
    assert table.calls == []


def test_arguments_and_models_that_do_not_fit_are_refused(table):
    tokens = np.ones(5, dtype=np.uint16)
    with pytest.raises(ConfigError, match="seq_len must be 1 or more, got 0"):
        evaluate(table, tokens, BY_HAND, seq_len=0)
    with pytest.raises(ConfigError, match="batch_tokens must be 1 or more, got 0"):
        evaluate(table, tokens, BY_HAND, seq_len=2, batch_tokens=0)
    with pytest.raises(ShapeError, match="vector of integers"):
        evaluate(table, tokens.reshape(1, 5), BY_HAND, seq_len=2)
    with pytest.raises(ShapeError, match=r"logits must be \[2, 2, 5\], the model gave \[2, 2, 6\]"):
        evaluate(Table(torch.zeros(6, 6)), tokens, BY_HAND, seq_len=2)


def test_a_score_is_json(table):
    score = evaluate(table, np.ones(5, dtype=np.uint16), BY_HAND, seq_len=2)
    assert Score(**json.loads(json.dumps(score.to_dict()))) == score
