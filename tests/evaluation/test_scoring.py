"""Bits per byte by hand, against one-token-at-a-time implementations of every mode, and shared by two processes."""

import json
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from quantlab.errors import ConfigError, DataError, QuantlabError, ShapeError
from quantlab.evaluation.scoring import Score, score_tokens
from quantlab.evaluation.windows import MODES, Windows, windows_of
from quantlab.text.known_splits import KnownSplit
from quantlab.text.tokenizer import TokenBytes, Tokenizer, train_tokenizer
from quantlab.trainer.world import World


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
    score = score_tokens(table, tokens, BY_HAND, seq_len=4, bos_id=0)
    # bits:  1 (▁the after BOS) + 3 (▁the) + 3 (s) + 3 (0xFF) + 3 (é) + 1 (BOS) + 1 (▁the after BOS) + 3 (s) = 18
    # bytes: 3                  + 4        + 1     + 1        + 2     + 0       + 3                  + 1     = 15
    assert score.tokens == 8
    assert score.bytes == 15
    assert score.val_bpb == pytest.approx(1.2, rel=1e-6)
    assert score.nats == pytest.approx(12.476649250079015, rel=1e-6)
    assert score.val_loss == pytest.approx(1.5595811562598769, rel=1e-6)
    assert (score.mode, score.stride, score.documents, score.split, score.bytes_match) == ("chunked", 4, 2, "", None)


def test_bits_per_byte_of_documents_by_hand(table):
    """BOS ▁the ▁the s 0xFF é | BOS ▁the s: no BOS is a target, none is crossed, nothing is left over."""
    tokens = np.array([0, 1, 1, 2, 3, 4, 0, 1, 2], dtype=np.uint16)
    score = score_tokens(table, tokens, BY_HAND, seq_len=2, stride=1, mode="document", bos_id=0)
    # bits:  1 (▁the after BOS) + 3 (▁the) + 3 (s) + 3 (0xFF) + 3 (é) + 1 (▁the after BOS) + 3 (s) = 17
    assert (score.tokens, score.bytes, score.documents) == (7, 15, 2)
    assert score.val_bpb == pytest.approx(17 / 15, rel=1e-6)
    assert (score.mode, score.stride, score.seq_len) == ("document", 1, 2)


def test_sliding_scores_the_last_token_and_the_bos_between(table):
    tokens = np.array([0, 1, 1, 2, 3, 4, 0, 1, 2], dtype=np.uint16)
    score = score_tokens(table, tokens, BY_HAND, seq_len=5, stride=2, mode="sliding", bos_id=0)
    assert (score.tokens, score.bytes, score.documents) == (8, 15, 2)
    assert score.val_bpb == pytest.approx(18 / 15, rel=1e-6)  # as by hand above


def test_what_does_not_fill_a_sequence_is_not_scored(table):
    tokens = np.array([0, 1, 1, 2, 3, 4, 0, 1, 2])
    score = score_tokens(table, tokens, BY_HAND, seq_len=5)  # only ▁the ▁the s 0xFF é: 13 bits, 11 bytes
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
    pieces = [tokenizer.vocabulary.processor.id_to_piece(i) for i in range(330)]
    score = score_tokens(Table(table_VV), tokens, tokenizer.token_bytes(), seq_len=50, batch_tokens=170)
    bpb, count, size = slow_score(table_VV.tolist(), pieces, tokens.tolist(), 50)
    assert (score.tokens, score.bytes) == (count, size)
    assert score.val_bpb == pytest.approx(bpb, rel=1e-6)
    assert len(tokens) - 1 - count < 50
    # Two documents start with a space that BOS takes; the first token of all is BOS: all other bytes are there.
    whole = score_tokens(Table(table_VV), tokens, tokenizer.token_bytes(), seq_len=len(tokens) - 1)
    assert whole.bytes == 2 * sum(len(document) for document in documents) - 4


class Decay(nn.Module):
    """Causal, and every token of the context matters: logits of a decaying sum of embeddings, float32 [B, T, V]."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.emb = nn.Parameter(torch.randn(vocab_size, 8, generator=generator))
        self.head = nn.Parameter(torch.randn(8, vocab_size, generator=generator))

    def forward(self, ids_BT: Tensor) -> Tensor:
        state, out = torch.zeros(len(ids_BT), 8), []
        for x_B8 in self.emb[ids_BT].unbind(1):
            state = 0.9 * state + x_B8
            out.append(torch.tanh(state) @ self.head)
        return torch.stack(out, 1)


def slow_contexts(tokens: list[int], mode: str, seq_len: int, stride: int, bos: int) -> dict[int, int]:
    """Scored position -> first position of its context, by the definition of each mode, one position at a time."""
    begin, found = 0, {}
    for position in range(1, len(tokens)):
        if mode == "chunked":
            start = (position - 1) // seq_len * seq_len
            if start + seq_len < len(tokens):
                found[position] = start
            continue
        if mode == "document" and tokens[position] == bos:
            begin = position
            continue
        start = begin
        while start + seq_len < position:  # this window does not reach so far
            start += stride
        found[position] = start
    return found


def slow_evaluate(model, tokens, counts, mode, seq_len, stride, bos):
    """(nats, tokens, bytes, documents) with one call of the model for each token."""
    nats, size, seen = 0.0, 0, set()
    contexts = slow_contexts(tokens, mode, seq_len, stride, bos)
    for position, start in contexts.items():
        row = model(torch.tensor([tokens[start:position]]))[0, -1].tolist()
        top, prev, target = max(row), tokens[position - 1], tokens[position]
        nats += top + math.log(sum(math.exp(value - top) for value in row)) - row[target]
        size += int(counts.base[target]) + int(counts.has_space[target] and not counts.is_boundary[prev])
        seen.add(tokens[1 : position + 1].count(bos))  # which document, of those that begin after the first token
    return nats, len(contexts), size, len(seen)


COUNTS = TokenBytes(
    base=np.array([0, 0, 3, 1, 2, 4, 1], dtype=np.int32),
    has_space=np.array([False, False, True, False, True, False, False]),
    is_boundary=np.array([True, True, False, False, False, False, False]),
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("count", "seq_len", "stride"), [(101, 7, 3), (98, 7, 7), (53, 13, 1), (40, 39, 5), (23, 1, 1)])
@pytest.mark.parametrize("batch_tokens", [1, 60])
@torch.no_grad()
def test_every_mode_agrees_with_one_token_at_a_time(mode, count, seq_len, stride, batch_tokens):
    rng = np.random.default_rng(count)
    tokens = rng.integers(0, 7, count)
    tokens[[0, count // 2, count // 2 + 1]] = 1  # also a document of BOS alone
    model, steps = Decay(7), {} if mode == "chunked" else {"stride": stride}
    score = score_tokens(model, tokens, COUNTS, seq_len=seq_len, mode=mode, batch_tokens=batch_tokens, **steps)
    nats, scored, size, documents = slow_evaluate(model, tokens.tolist(), COUNTS, mode, seq_len, stride, 1)
    assert (score.tokens, score.bytes, score.documents) == (scored, size, documents)
    assert score.nats == pytest.approx(nats, rel=1e-6)
    assert score.val_bpb == pytest.approx(nats / math.log(2) / size, rel=1e-6)


def test_more_context_helps_a_model_that_uses_it():
    """The token 8 before comes again: a window of 8 sees it for no chunked target but its last, sliding for all."""

    class Copy(nn.Module):
        def forward(self, ids_BT: Tensor) -> Tensor:
            logits = torch.zeros(*ids_BT.shape, 7)
            logits[:, 7:].scatter_(2, ids_BT[:, : max(0, ids_BT.shape[1] - 7), None], 20.0)
            return logits

    tokens = np.tile([2, 3, 4, 5, 6, 3, 2, 2], 30)[: 8 * 29 + 1]
    chunked = score_tokens(Copy(), tokens, COUNTS, seq_len=8)
    sliding = score_tokens(Copy(), tokens, COUNTS, seq_len=8, stride=1, mode="sliding")
    assert chunked.val_loss == pytest.approx(7 / 8 * math.log(7), rel=1e-4)
    assert sliding.nats == pytest.approx(7 * math.log(7), rel=1e-4)


def test_padding_of_short_windows_changes_nothing():
    """Documents of 1 to 9 tokens: alone in a batch none is padded, in one batch all but the longest are."""
    rng = np.random.default_rng(0)
    tokens = np.concatenate([[1, *rng.integers(2, 7, length)] for length in (3, 9, 1, 5, 2)])
    scores = [
        score_tokens(Decay(7), tokens, COUNTS, seq_len=9, stride=4, mode="document", batch_tokens=batch) for batch in (1, 10**6)
    ]
    assert scores[0].nats == pytest.approx(scores[1].nats, rel=1e-7)


def score_as(rank: int, folder: str) -> None:
    """One of two processes: scores of every mode, with batches of two windows and with one batch for both processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    tokens = np.load(f"{folder}/tokens.npy")
    scores = every_mode(tokens, World(rank, 2))
    Path(folder, f"{rank}.json").write_text(json.dumps([score.to_dict() for score in scores]))
    dist.destroy_process_group()


def every_mode(tokens, world=None):
    return [
        score_tokens(Decay(7), tokens, COUNTS, seq_len=9, mode=mode, stride=stride, batch_tokens=batch, world=world)
        for mode, stride in zip(MODES, (None, 4, 4), strict=True)
        for batch in (18, 10**6)
    ]


def test_two_processes_score_what_one_does(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 7, 301)
    tokens[0] = 1
    np.save(tmp_path / "tokens.npy", tokens)
    mp.spawn(score_as, args=(str(tmp_path),), nprocs=2)
    both = [[Score(**score) for score in json.loads((tmp_path / f"{rank}.json").read_text())] for rank in (0, 1)]
    assert both[0] == both[1]
    for shared, single in zip(both[0], every_mode(tokens), strict=True):
        assert shared.val_bpb == pytest.approx(single.val_bpb, rel=1e-12, abs=0)  # only the order of two sums differs
        assert (shared.tokens, shared.bytes, shared.documents) == (single.tokens, single.bytes, single.documents)


class Part(World):
    """One rank of several that keeps its own sums."""

    sums: ClassVar[list[list[float]]] = []

    def sum_(self, tensor):
        self.sums.append(tensor.tolist())
        return lambda: torch.ones(4, dtype=torch.float64)


@pytest.mark.parametrize("size", [2, 3, 50])
def test_shares_of_any_number_of_processes_add_up(size):
    """50 processes: more than batches."""
    tokens = np.tile([1, 2, 3, 4, 5, 6, 2], 30)
    whole = [[s.nats, s.tokens, s.bytes, s.documents] for s in every_mode(tokens)]
    Part.sums.clear()
    for rank in range(size):
        every_mode(tokens, Part(rank, size))
    total = np.array(Part.sums).reshape(size, len(whole), 4).sum(0)
    np.testing.assert_allclose(total, whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (slice(0, -1), "token 298 is not scored, and 2 more"),
        (slice(1, None), "token 1 must be scored before token 10"),
    ],
)
def test_windows_that_leave_tokens_out_are_refused(monkeypatch, wrong, message):
    monkeypatch.setattr("quantlab.evaluation.scoring.windows_of", lambda *a, **k: windows_of(*a, **k)[wrong])
    tokens = np.random.default_rng(0).integers(0, 7, 301)
    with pytest.raises(QuantlabError, match=message):
        score_tokens(Decay(7), tokens, COUNTS, seq_len=9, stride=4, mode="sliding")


def test_windows_that_score_the_end_again_are_refused(monkeypatch):
    """As records did before PR 1218: further windows, each with less than `stride` new tokens or none."""

    def with_tail(stream, mode, *, seq_len, stride, bos_id):
        right = windows_of(stream, mode, seq_len=seq_len, stride=stride, bos_id=bos_id)
        tail = (right.start[-1] + stride, 3, 0)
        return Windows(*(np.append(column, value) for column, value in zip(vars_of(right), tail, strict=True)))

    def vars_of(windows):
        return windows.start, windows.length, windows.first

    monkeypatch.setattr("quantlab.evaluation.scoring.windows_of", with_tail)
    with pytest.raises(QuantlabError, match="token 297 is scored a second time"):
        score_tokens(Decay(7), np.random.default_rng(0).integers(0, 7, 301), COUNTS, seq_len=9, stride=4, mode="sliding")


def test_a_public_split_is_known_by_its_tokens_and_checked_by_its_bytes(monkeypatch, table):
    tokens = np.array([0, 1, 1, 2, 3, 4, 0, 1, 2], dtype=np.uint16)
    monkeypatch.setattr("quantlab.evaluation.ledger.SPLIT_TOKENS", 1)
    for known, verdict in ((15, True), (16, False)):
        split = KnownSplit("tiny", 8, known, 5)
        monkeypatch.setattr("quantlab.evaluation.ledger.KNOWN_SPLITS", (split,))
        for mode in MODES:
            stride = None if mode == "chunked" else 2
            score = score_tokens(table, tokens, BY_HAND, seq_len=4, mode=mode, stride=stride, bos_id=0)
            assert (score.split, score.bytes_match) == ("tiny", verdict)


def test_batches_are_bounded_and_change_nothing_but_progress(table):
    tokens = np.random.default_rng(0).integers(0, 5, 100)
    done: list[tuple[int, int]] = []
    scores = []
    for batch_tokens in (1, 25, 1000):
        table.calls.clear()
        scores.append(
            score_tokens(table, tokens, BY_HAND, seq_len=10, batch_tokens=batch_tokens, progress=lambda *a: done.append(a))
        )
        assert all(rows * length <= max(10, batch_tokens) for rows, length in table.calls)
    assert [scores[0].val_bpb] * 2 == pytest.approx([score.val_bpb for score in scores[1:]], rel=1e-6)
    assert done == [(i, 9) for i in range(1, 10)] + [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)] + [(9, 9)]


def test_half_precision_logits_are_summed_in_float32(table):
    class Half(nn.Module):
        def forward(self, ids_BT: Tensor) -> Tensor:
            return torch.zeros(*ids_BT.shape, 5, dtype=torch.bfloat16)

    score = score_tokens(Half(), np.ones(1001, dtype=np.uint16), BY_HAND, seq_len=10)
    assert score.val_loss == pytest.approx(math.log(5), rel=1e-6)  # bfloat16 would give 1.6094 +- 0.004


@pytest.mark.parametrize("fails", [False, True])
def test_each_modules_mode_is_restored(table, fails):
    model = nn.Sequential(nn.Identity(), table).train()
    table.eval()
    model[0].train()
    if fails:
        table.table.data.fill_(math.nan)
        with pytest.raises(QuantlabError):
            score_tokens(model, np.ones(9, dtype=np.uint16), BY_HAND, seq_len=4)
    else:
        table.train()
        score_tokens(model, np.ones(9, dtype=np.uint16), BY_HAND, seq_len=4)
        assert table.was_training == [False]
        assert table.training
        table.eval()
    assert (model.training, model[0].training, table.training) == (True, True, False)


def test_a_loss_that_is_not_finite_is_named(table):
    table.table.data[3, 2] = -math.inf
    tokens = np.array([0, 1, 1, 1, 1, 1, 3, 2, 1])
    for batch_tokens in (1, 1000):
        with pytest.raises(QuantlabError, match="loss is inf at token 7 of the text: it must be finite"):
            score_tokens(table, tokens, BY_HAND, seq_len=4, batch_tokens=batch_tokens)


def test_text_that_cannot_be_scored_is_refused(table):
    with pytest.raises(DataError, match="4 tokens are too few: one sequence of 4 needs 5"):
        score_tokens(table, np.ones(4, dtype=np.uint16), BY_HAND, seq_len=4)
    with pytest.raises(DataError, match="token id 5 in the text, the vocabulary has 0 to 4"):
        score_tokens(table, np.array([1, 5, 1]), BY_HAND, seq_len=2)
    with pytest.raises(DataError, match="token id -1"):
        score_tokens(table, np.array([1, -1, 1]), BY_HAND, seq_len=2)
    with pytest.raises(DataError, match="1 tokens are too few: the first is never a target"):
        score_tokens(table, np.ones(1, dtype=np.uint16), BY_HAND, seq_len=2, stride=1, mode="sliding")
    with pytest.raises(DataError, match="mode document needs BOS"):
        score_tokens(table, np.ones(3, dtype=np.uint16), BY_HAND, seq_len=2, stride=1, mode="document", bos_id=0)
    assert table.calls == []
    with pytest.raises(DataError, match="2 scored tokens stand for 0 bytes"):
        score_tokens(table, np.zeros(3, dtype=np.uint16), BY_HAND, seq_len=2)


def test_arguments_and_models_that_do_not_fit_are_refused(table):
    tokens = np.ones(5, dtype=np.uint16)
    with pytest.raises(ConfigError, match="seq_len must be 1 or more, got 0"):
        score_tokens(table, tokens, BY_HAND, seq_len=0)
    with pytest.raises(ConfigError, match="batch_tokens must be 1 or more, got 0"):
        score_tokens(table, tokens, BY_HAND, seq_len=2, batch_tokens=0)
    with pytest.raises(ConfigError, match="stride 1 needs mode sliding or document"):
        score_tokens(table, tokens, BY_HAND, seq_len=2, stride=1)
    with pytest.raises(ShapeError, match="vector of integers"):
        score_tokens(table, tokens.reshape(1, 5), BY_HAND, seq_len=2)
    with pytest.raises(ShapeError, match=r"logits must be \[2, 2, 5\], the model gave \[2, 2, 6\]"):
        score_tokens(Table(torch.zeros(6, 6)), tokens, BY_HAND, seq_len=2)


def test_a_score_is_json(table):
    score = score_tokens(table, np.ones(5, dtype=np.uint16), BY_HAND, seq_len=2)
    assert Score(**json.loads(json.dumps(score.to_dict()))) == score
