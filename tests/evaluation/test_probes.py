"""Each probe fails for a model that breaks its rule, and for no valid model."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantlab.errors import ConfigError, ShapeError
from quantlab.evaluation.probes import run_probes
from quantlab.models.challenge import config_from_state_dict, gpt_from_state_dict

V = 13
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, V, (4, 33)))


class Toy(nn.Module):
    """A valid model: logits of the running mean of embeddings."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.emb = nn.Parameter(torch.randn(V, 8, generator=generator))

    def features(self, ids):
        x = self.emb[ids]
        return x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]

    def forward(self, ids):
        return self.features(ids) @ self.emb.T


class Table(nn.Module):
    """A valid model: a row of logits for each token, whatever comes before it."""

    def forward(self, ids):
        return torch.arange(V * V).view(V, V).sin()[ids]


class LooksAhead(Toy):
    """Adds a little of the next token's embedding."""

    def features(self, ids):
        x = super().features(ids)
        return x + 1e-6 * F.pad(self.emb[ids][:, 1:], (0, 0, 0, 1))


class LooksAheadOnce(Toy):
    """One position alone sees one later token."""

    def __init__(self, at, seen):
        super().__init__()
        self.at, self.seen = at, seen

    def features(self, ids):
        x = super().features(ids).clone()
        if ids.shape[1] > self.seen:
            x[:, self.at] += self.emb[ids[:, self.seen]]
        return x


class BatchStatistics(Toy):
    """Normalizes over all rows and tokens."""

    def features(self, ids):
        x = super().features(ids)
        return (x - x.mean((0, 1))) / x.std((0, 1))


class RowStatistics(Toy):
    """Causal in time; the mean of all rows at each position."""

    def features(self, ids):
        x = super().features(ids)
        return x - x.mean(0, keepdim=True)


class Random(Toy):
    def forward(self, ids):
        return super().forward(ids) + 1e-5 * torch.randn(*ids.shape, V)


class NotNumbers(Toy):
    """One position's logits hold a value that no softmax takes."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, ids):
        logits = super().forward(ids).clone()
        logits[-1, 3, 5] = self.value
        return logits


def failed(model, ids=IDS, **options):
    probes = run_probes(model, ids, **options)
    assert [p.name for p in probes] == ["determinism", "normalization", "flip", "rows", "packed"]
    assert all("\n" not in p.detail for p in probes) and probes[-1].passed is None
    return {p.name for p in probes if p.passed is False}


def detail(model, name, ids=IDS):
    return next(p.detail for p in run_probes(model, ids) if p.name == name)


def test_honest_models_pass(toy_state):
    assert failed(Toy()) == set()
    assert failed(Table()) == set()
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 400, (3, 50)))
    gpt = gpt_from_state_dict(toy_state, config_from_state_dict(toy_state))
    assert failed(gpt, ids) == set()
    assert detail(gpt, "determinism", ids) == "0 of 150 predictions differ between two calls, logits by 0"


def test_a_look_at_the_next_token_is_found():
    assert failed(LooksAhead()) == {"flip"}
    text = detail(LooksAhead(), "flip")
    assert "predictions change with later tokens, logits by " in text and "first: position " in text
    assert "first: position 20 sees tokens from 2" in detail(LooksAheadOnce(20, 30), "flip")


@pytest.mark.parametrize(("at", "seen"), [(0, 1), (20, 30), (0, 32), (31, 32)])
def test_one_look_ahead_anywhere_is_found(at, seen):
    assert failed(LooksAheadOnce(at, seen)) == {"flip"}


def test_statistics_of_the_batch_are_found():
    assert failed(BatchStatistics()) == {"flip", "rows"}
    assert "rows" in failed(RowStatistics())
    assert "33 of 33 predictions of a row change with the other rows" in detail(RowStatistics(), "rows")


def test_a_random_model_is_found():
    assert "determinism" in failed(Random())
    assert "132 of 132 predictions differ between two calls" in detail(Random(), "determinism")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_without_a_distribution_are_found(value):
    model = NotNumbers(value)
    probe = next(p for p in run_probes(model, IDS) if p.name == "normalization")
    assert probe.passed is False
    assert probe.detail == "1 of 132 sums over 13 tokens are not 1, largest error inf (allowed 1e-09)"
    assert failed(model) == {"normalization"}  # the same NaN twice is no difference


def test_a_token_without_any_chance_is_still_a_distribution():
    class Never(Toy):
        def forward(self, ids):
            logits = super().forward(ids).clone()
            logits[..., 0] = -math.inf
            return logits

    assert failed(Never()) == set()


def test_packed_documents_are_told_apart_but_not_judged():
    alone = detail(Table(), "packed")
    assert alone == "0 of 16 predictions differ after another document, logits by 0, KL 0 nats"
    assert detail(Toy(), "packed").startswith("16 of 16 predictions differ after another document, logits by ")


def test_the_model_is_left_in_its_mode_and_gets_whole_ids():
    class Watched(Toy):
        def forward(self, ids):
            assert not self.training and not torch.is_grad_enabled() and ids.dtype == torch.int64
            assert int(ids.min()) >= 0 and int(ids.max()) < V and ids.shape[1] <= 33
            return super().forward(ids)

    model = Watched().train()
    before = IDS.clone()
    assert failed(model) == set()
    assert model.training and torch.equal(IDS, before)


def test_same_seed_same_report():
    assert run_probes(LooksAhead(), IDS, seed=3) == run_probes(LooksAhead(), IDS, seed=3)
    assert failed(Toy(), IDS[:2, :2], seed=5) == set()  # the smallest batch
    long = torch.from_numpy(np.random.default_rng(0).integers(0, V, (2, 200)))
    assert failed(LooksAheadOnce(198, 199), long) == {"flip"}


def test_what_cannot_be_probed_is_refused():
    with pytest.raises(ShapeError, match=r"ids must be int64 with 2 rows and 2 tokens or more, got torch.int64 \[1, 33\]"):
        run_probes(Toy(), IDS[:1])
    with pytest.raises(ShapeError, match="torch.int32"):
        run_probes(Toy(), IDS.int())
    with pytest.raises(ConfigError, match="bos_id must be 0 to 12, got 13"):
        run_probes(Toy(), IDS, bos_id=13)

    class Short(Toy):
        def forward(self, ids):
            return super().forward(ids)[:, 1:]

    with pytest.raises(ShapeError, match=r"logits must be \[4, 33, 'V'\], the model gave \[4, 32, 13\]"):
        run_probes(Short(), IDS)
