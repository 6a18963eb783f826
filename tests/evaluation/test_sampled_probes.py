"""The probes inside an evaluation: models that look ahead, in every mode, and models that behave while they are probed."""

import numpy as np
import pytest
import torch
from test_scoring import COUNTS
from torch import Tensor, nn

from quantlab.evaluation.sampled_probes import probe_sample
from quantlab.evaluation.scoring import score_tokens
from quantlab.evaluation.window_sample import FORWARDS, WindowSample
from quantlab.evaluation.windows import MODES

V = len(COUNTS.base)
TOKENS = np.concatenate([[1], np.random.default_rng(0).integers(1, V, 4000)]).astype(np.uint16)
"""A stream of many documents: BOS is 1."""


class Reader(nn.Module):
    """Predicts from the running mean of the embeddings; `ahead` tokens of the future are among them."""

    def __init__(self, ahead: int = 0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(V, 8, generator=torch.Generator().manual_seed(0)))
        self.ahead, self.calls = ahead, list[tuple[int, ...]]()

    def forward(self, ids: Tensor) -> Tensor:
        self.calls.append(tuple(ids.shape))
        x = self.table[ids]
        mean = x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return (mean + 5 * torch.roll(x, -self.ahead, 1) * (self.ahead > 0)) @ self.table.T


class Neighbours(Reader):
    """Reads the last row of its batch, which in mode sliding holds the future of the others."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.table[ids[-1:, -1:]] @ self.table.T


class Unnormalized(Reader):
    """Gives a number that no distribution has where a token follows itself."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.where((ids >= 0)[..., None] & (torch.arange(V) == 0), torch.nan, super().forward(ids))


class Pretender(Reader):
    """Looks ahead in large batches and behaves in the small ones of a probe."""

    def forward(self, ids: Tensor) -> Tensor:
        self.ahead = int(len(ids) > 4)
        return super().forward(ids)


class Prepared(Reader):
    """Looks ahead, but not in windows that it knows the probes to take."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known = set(known[:, 0].tolist())  # the probes leave the first token as it is

    def forward(self, ids: Tensor) -> Tensor:
        rows = []
        for row in ids:
            self.ahead = int(int(row[0]) not in self.known)
            rows.append(super().forward(row[None]))
        return torch.cat(rows)


def failed(model: nn.Module, mode: str = "chunked", seq_len: int = 32, seed: int = 0) -> set[str]:
    sample = WindowSample(seed)
    stride = None if mode == "chunked" else 16
    score_tokens(model, TOKENS, COUNTS, seq_len=seq_len, mode=mode, stride=stride, sample=sample)
    return {probe.name for probe in probe_sample(model, sample) if not probe.passed}


@pytest.mark.parametrize("mode", MODES)
def test_an_honest_model_passes_and_one_that_reads_its_targets_fails(mode):
    assert failed(Reader(), mode) == set()
    assert "flip" in failed(Reader(ahead=1), mode)
    assert "flip" in failed(Reader(ahead=3), mode)


def test_reading_another_row_fails_where_windows_hold_each_others_future():
    assert failed(Neighbours(), "sliding") >= {"rows"}


def test_a_model_that_behaves_while_it_is_probed_has_another_score():
    assert failed(Pretender()) == {"score"}


def test_windows_that_are_probed_depend_on_a_seed():
    sample = WindowSample(seed=1)
    score_tokens(Reader(), TOKENS, COUNTS, seq_len=32, sample=sample)
    assert failed(Prepared(sample.ids_BT), seed=1) == set()  # it was told
    assert "flip" in failed(Prepared(sample.ids_BT), seed=2)


def test_logits_that_are_no_distribution_fail():
    sample = WindowSample()
    score_tokens(Reader(), TOKENS, COUNTS, seq_len=32, sample=sample)
    assert {p.name for p in probe_sample(Unnormalized(), sample) if not p.passed} >= {"normalization"}


def test_rounding_that_depends_on_the_batch_is_no_leak():
    class Rounds(Reader):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + 1e-6 * ids.sum() / ids.numel()

    assert failed(Rounds()) == set()


def test_the_probes_take_a_small_share_of_the_passes():
    model, sample = Reader(), WindowSample()
    score_tokens(model, np.tile(TOKENS, 10), COUNTS, seq_len=32, batch_tokens=32 * 64, sample=sample)
    scored = sum(rows * length for rows, length in model.calls)
    model.calls.clear()
    probe_sample(model, sample)
    assert len(model.calls) == FORWARDS and len(sample) == 6
    assert sum(rows * length for rows, length in model.calls) <= 0.03 * scored


@pytest.mark.parametrize("seq_len", [1, 2, 4000])
def test_the_shortest_and_the_only_window_are_probed(seq_len):
    assert failed(Reader(), seq_len=seq_len) == set()
    assert ("flip" in failed(Reader(ahead=1), seq_len=seq_len)) == (seq_len > 1)  # one token has nothing after it
