"""Test-time training: every token is scored before anything adapts to it, and without a step it is the plain evaluation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_scoring import COUNTS
from torch import nn

from quantlab.errors import ConfigError, QuantlabError
from quantlab.evaluation import adaptive_scoring
from quantlab.evaluation.adaptation_config import (
    LoraAdaptation,
    PhasedAdaptation,
    SgdAdaptation,
    describe,
    read_adaptation,
)
from quantlab.evaluation.adaptation_gain import gain_of
from quantlab.evaluation.adaptation_probes import adapted_flip, probe_adaptation
from quantlab.evaluation.adaptive_scoring import DocumentGroup, score_adapted
from quantlab.evaluation.ledger import Ledger
from quantlab.evaluation.scoring import score_tokens
from quantlab.evaluation.token_losses import TokenLosses
from quantlab.kernels.packed import pack
from quantlab.text.tokenizer import TokenBytes
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig
from quantlab.trainer.packed_layers import PackedLinear, pack_modules_

pytestmark = pytest.mark.usefixtures("one_thread")

V = 40
BYTES = TokenBytes(base=np.ones(V, dtype=np.int32), has_space=np.zeros(V, dtype=bool), is_boundary=np.arange(V) < 2)
LENGTHS = (70, 1, 33, 0, 16, 50, 7)
"""Tokens after BOS of each document; the chunk is 8, the sequence 32."""


def documents(seed=0):
    """Documents that repeat a phrase of their own, so that there is something to adapt to."""
    rng, parts = np.random.default_rng(seed), []
    for length in LENGTHS:
        parts += [[1], np.resize(rng.integers(2, V, 6), length)]
    return np.concatenate(parts).astype(np.uint16)


TOKENS = documents()
LORA = LoraAdaptation(rank=4, chunk=8, documents=3, lr=0.02)
SGD = SgdAdaptation(lr=0.05, chunk=40, batch_tokens=64, epochs=2)
PHASED = PhasedAdaptation(phases=2, prefix=4, lora=LORA, sgd=replace(SGD, chunk=32768, epochs=1))
ALL = {"lora": LORA, "sgd": SGD, "phased": PHASED}
WAY = {"seq_len": 32, "bos_id": 1}
SAME = 2e-5  # nats of one token: float32 sums over other batches


@pytest.fixture
def model():
    config = GPTConfig(vocab_size=V, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1, mlp_hidden=32)
    made = GPT(config)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=g))
    return made.eval()


def way_of(adaptation):
    return {"mode": "sliding", "stride": 16} if isinstance(adaptation, SgdAdaptation) else {"mode": "document", "stride": None}


def run(model, adaptation, tokens=TOKENS, **more):
    return score_adapted(model, tokens, BYTES, adaptation, **way_of(adaptation), **WAY, **more)


def plain(model, adaptation, tokens=TOKENS):
    losses = TokenLosses(len(tokens))
    way = way_of(adaptation)
    stride = way["stride"] or 8
    return score_tokens(model, tokens, BYTES, mode=way["mode"], stride=stride, losses=losses, **WAY), losses.nats_N


def still(adaptation):
    if isinstance(adaptation, PhasedAdaptation):
        return replace(adaptation, lora=replace(adaptation.lora, lr=0.0), sgd=replace(adaptation.sgd, lr=0.0))
    return replace(adaptation, lr=0.0)


@pytest.mark.parametrize("kind", ALL)
def test_without_a_step_every_token_has_its_plain_loss(model, kind):
    score, nats = run(model, still(ALL[kind]))
    wanted, losses = plain(model, ALL[kind])
    np.testing.assert_allclose(nats, losses, atol=SAME)
    assert (score.tokens, score.bytes, score.documents) == (wanted.tokens, wanted.bytes, wanted.documents)
    assert score.nats == pytest.approx(wanted.nats, rel=1e-6)
    assert (score.mode, score.stride) == (wanted.mode, wanted.stride)


@pytest.mark.parametrize("kind", ALL)
def test_adaptation_helps_on_text_that_repeats_itself_and_leaves_the_model_as_it_was(model, kind):
    before = {name: p.clone() for name, p in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    score, nats = run(model, ALL[kind])
    again, same = run(model, ALL[kind])
    assert score == again and np.array_equal(nats, same, equal_nan=True)  # deterministic
    assert score.val_loss < plain(model, ALL[kind])[0].val_loss - 0.02
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()] and model.head_adapter is None
    assert all(not m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ALL)
def test_the_whole_procedure_passes_its_probes(model, kind):
    way = {**WAY, **way_of(ALL[kind])}
    probes = probe_adaptation(model, TOKENS, BYTES, ALL[kind], **way)
    assert [(p.name, p.passed) for p in probes] == [("adaptation flip", True), ("adaptation step 0", True)]
    assert probes[0].detail.startswith("0 of ") and not probes[0].detail.startswith("0 of 0 ")


class Leaky(DocumentGroup):
    """Adapts to a chunk before it scores it."""

    def turn(self, begin):
        self.adapt(begin, self.predict(begin))
        self.score(self.predict(begin))


class Generous(Ledger):
    """Hands out any token."""

    def adaptable(self, start, stop):
        return self.stream[start:stop]


def test_the_ledger_refuses_a_procedure_that_adapts_before_the_score(model, monkeypatch):
    monkeypatch.setattr(adaptive_scoring, "DocumentGroup", Leaky)
    with pytest.raises(QuantlabError, match="token 1 is not scored yet: nothing may adapt to tokens before 9"):
        run(model, LORA)


def test_the_flip_test_finds_the_leak_that_a_broken_ledger_lets_through(model, monkeypatch):
    monkeypatch.setattr(adaptive_scoring, "DocumentGroup", Leaky)
    monkeypatch.setattr(adaptive_scoring, "Ledger", Generous)
    leaked, honest = run(model, LORA)[0], plain(model, LORA)[0]
    assert leaked.val_loss < honest.val_loss  # the leak pays
    flip, _ = probe_adaptation(model, TOKENS, BYTES, LORA, **WAY, **way_of(LORA))
    assert flip.passed is False and "predictions change with later tokens" in flip.detail and "first: token " in flip.detail


def test_the_flip_test_finds_a_descent_on_text_that_is_still_to_come(model, monkeypatch):
    """Phases that train on whole documents after them."""
    monkeypatch.setattr(adaptive_scoring, "Ledger", Generous)
    honest = Generous.adaptable
    monkeypatch.setattr(Generous, "adaptable", lambda self, a, b: honest(self, a, len(self.stream) if a == 0 else b))
    flip, _ = probe_adaptation(model, TOKENS, BYTES, PHASED, **WAY, **way_of(PHASED))
    assert flip.passed is False


def test_the_descent_asks_the_ledger(model, monkeypatch):
    asked = []
    real = Ledger.adaptable
    monkeypatch.setattr(Ledger, "adaptable", lambda self, a, b: asked.append((a, b, self.next)) or real(self, a, b))
    run(model, SGD)
    assert asked and all(stop <= done for _, stop, done in asked)
    assert [a for a, _, _ in asked] == [0, *(b for _, b, _ in asked[:-1])]  # each chunk once, none left out
    assert asked[-1][1] < len(TOKENS)  # nothing adapts to the last one


def lora_by_hand(model, tokens, config, seq_len):
    """One document, one chunk at a time; adapters as changed weights, AdamW written out."""
    weights = {
        n + ".weight": m.weight.detach()
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and min(m.weight.shape) >= 16
    }
    losses = np.full(len(tokens), np.nan)
    starts = np.flatnonzero(tokens == 1).tolist()
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        g = torch.Generator().manual_seed(config.seed)
        a = {n: (torch.rand(config.rank, w.shape[1], generator=g) * 2 - 1) / math.sqrt(w.shape[1]) for n, w in weights.items()}
        values = [t.clone().requires_grad_() for n, w in weights.items() for t in (a[n], torch.zeros(len(w), config.rank))]
        seconds = [torch.zeros_like(t) for t in values]
        ids = torch.from_numpy(tokens[start:stop].astype(np.int64))
        for time, begin in enumerate(range(0, len(ids) - 1, config.chunk), 1):
            end = min(begin + config.chunk, len(ids) - 1)
            first = max(0, begin + config.chunk - seq_len)
            changed = {
                n: w + config.alpha / config.rank * values[2 * i + 1] @ values[2 * i]
                for i, (n, w) in enumerate(weights.items())
            }
            logits = torch.func.functional_call(model, changed, (ids[None, first:end],))[0, begin - first :]
            each = -logits.log_softmax(-1)[torch.arange(end - begin), ids[begin + 1 : end + 1]]
            losses[start + begin + 1 : start + end + 1] = each.detach().numpy()
            grads = torch.autograd.grad(each.mean(), values)
            with torch.no_grad():
                for v, s, grad in zip(values, seconds, grads, strict=True):
                    s.mul_(config.beta2).add_((1 - config.beta2) * grad**2)
                    v -= config.lr * grad / ((s / (1 - config.beta2**time)).sqrt() + 1e-10)
    return losses


def test_lora_equals_a_document_at_a_time_by_hand():
    model = GPT(
        GPTConfig(vocab_size=V, num_layers=1, model_dim=32, num_heads=2, num_kv_heads=1, mlp_hidden=32, tie_embeddings=False)
    )
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    config = replace(LORA, beta2=0.9, lr=0.003)
    _, nats = run(model.eval(), config)
    # Adam divides by the root of the squared gradient, so gradients near 0 carry rounding into the weights
    np.testing.assert_allclose(nats, lora_by_hand(model, TOKENS, config, 32), atol=2e-3)
    assert np.nanmax(np.abs(nats - plain(model, config)[1])) > 0.05


def test_packed_weights_stay_packed_under_adapters(model):
    g = torch.Generator().manual_seed(1)
    packed, dense = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            codes = torch.randint(-7, 8, module.weight.shape, generator=g).to(torch.int8)
            scale = 0.03 * torch.ones(len(codes))
            packed[f"{name}.weight"] = pack(codes, scale, torch.ones(codes.shape[1]))
            dense[f"{name}.weight"] = codes.float() * 0.03
    model.load_state_dict(dense, strict=False)
    wanted, _ = run(model, LORA)
    pack_modules_(model, packed)
    words = {n: m.words.clone() for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    score, _ = run(model, LORA)
    assert score.nats == pytest.approx(wanted.nats, rel=1e-4) and words
    assert score.val_loss < plain(model, LORA)[0].val_loss
    assert all(torch.equal(words[n], model.get_submodule(n).words) for n in words)
    with pytest.raises(ConfigError, match="packed weights cannot change"):
        run(model, SGD)


def test_options_that_do_not_fit_are_refused(model):
    for options, message in [
        ({"mode": "chunked", "stride": None}, "in mode document, got mode chunked"),
        ({"mode": "document", "stride": 8}, "stride 8 has no effect with ttt"),
        ({"mode": "document", "stride": None, "seq_len": 30}, "the chunk must divide the sequence length 30, got 8"),
    ]:
        with pytest.raises(ConfigError, match=message):
            score_adapted(model, TOKENS, BYTES, LORA, **{**WAY, **options})
    with pytest.raises(ConfigError, match="the last phase ends after 7 documents, but the text has 7"):
        run(model, replace(PHASED, prefix=7))
    with pytest.raises(ConfigError, match="ttt must be one of lora, sgd, phased, got 'slot'"):
        read_adaptation("slot", {})
    with pytest.raises(ConfigError, match="unknown key rnak"):
        read_adaptation("lora", {"rnak": 3})
    with pytest.raises(ConfigError, match="sgd.chunk 9 has no effect"):
        read_adaptation("phased", {"sgd": {"chunk": 9}})
    with pytest.raises(ConfigError, match="no linear map that could have an adapter"):
        run(Flat(), LORA)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(V, V))

    def forward(self, ids):
        return self.table[ids]


def test_options_are_told_apart_in_the_record():
    assert describe(read_adaptation("lora", {"rank": 4})).startswith("lora rank=4 alpha=16 lr=0.003 ")
    phased = read_adaptation("phased", {"prefix": 9, "sgd": {"lr": 0.5}})
    assert phased.sgd.epochs == 1 and "sgd.lr=0.5" in describe(phased) and "lora.rank=8" in describe(phased)


def test_parts_of_a_ledger_join_in_order_and_whole():
    due = np.ones(9, dtype=bool)
    due[[0, 4]] = False
    whole = Ledger(np.ones(9, dtype=np.int64), due, COUNTS, bos_id=1)
    first, second = whole.part(0, 4), whole.part(4, 9)
    first.write(np.arange(1, 4), np.ones(3, dtype=np.float32))
    with pytest.raises(QuantlabError, match="token 5 is not scored, and 3 more"):
        whole.join(second)
    second.write(np.arange(5, 9), np.ones(4, dtype=np.float32))
    with pytest.raises(QuantlabError, match="token 1 must be scored before token 4"):
        whole.join(second)
    whole.join(first)
    with pytest.raises(QuantlabError, match="token 0 is scored a second time"):
        whole.join(first)
    with pytest.raises(QuantlabError, match="token 0 belongs to another ledger"):
        second.adaptable(0, 9)
    whole.join(second)
    whole.close()
    assert (whole.nats, whole.tokens) == (7.0, 7)


def test_the_interval_of_the_gain_is_over_documents():
    stream = np.array([1, 5, 5, 1, 5, 1, 5, 5, 5])
    plain_nats = np.array([np.nan, 2, 2, np.nan, 1, np.nan, 3, 3, 3], dtype=np.float32)
    adapted = plain_nats - np.array([0, 0.5, 0.5, 0, 0, 0, 1, 1, 1], dtype=np.float32)
    score = score_tokens(Flat(), stream, BYTES, seq_len=8, mode="document", stride=1)
    gain = gain_of(adapted, plain_nats, stream, 1, score)
    sums, counts = np.array([-1.0, 0.0, -3.0]), np.array([2, 1, 3])
    mean = sums.sum() / 6
    error = math.sqrt(((sums - mean * counts) ** 2).sum() * 3 / 2) / 6
    assert gain.loss_difference == pytest.approx(mean)
    assert gain.loss_difference_low == pytest.approx(mean - 4.302653 * error, rel=1e-6)  # t of 2 degrees of freedom
    assert gain.loss_difference_high == pytest.approx(mean + 4.302653 * error, rel=1e-6)
    assert (gain.documents, gain.plain_loss) == (3, score.val_loss)
    alone = gain_of(adapted[:3], plain_nats[:3], stream[:3], 1, score)
    assert (alone.loss_difference_low, alone.loss_difference_high, alone.documents) == (None, None, 1)


def test_documents_side_by_side_are_as_alone(model):
    config = replace(LORA, lr=0.003, beta2=0.9)
    together, alone = (run(model, replace(config, documents=n))[1] for n in (7, 1))
    np.testing.assert_allclose(together, alone, atol=2e-3)


def test_flip_of_a_model_that_looks_ahead_itself_fails(model):
    class Ahead(GPT):
        def forward(self, ids, cache=None, *, by_document=False):
            return super().forward(ids) + torch.roll(self.tok_emb(ids), -1, 1) @ self.tok_emb.weight.T

    looking = Ahead(model.config)
    looking.load_state_dict(model.state_dict())
    probe = adapted_flip(looking.eval(), TOKENS, BYTES, LORA, seed=0, **WAY, **way_of(LORA))
    assert probe.passed is False
