"""Calibration tokens, and the statistics measured on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantlab.calib import sources
from quantlab.calib.collect import PRIOR_COUNT, collect
from quantlab.calib.labels import Prediction, expected_squares, is_logits, label_draws, predict
from quantlab.calib.sources import CalibrationConfig, calibration_tokens, sample_sequences
from quantlab.calib.statistics import read_statistics, write_statistics
from quantlab.errors import CheckpointError, ConfigError, DataError, ShapeError, StatisticsError
from quantlab.models.challenge import gpt_from_state_dict
from quantlab.text.shards import write_shard
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig


class TwoTables(nn.Module):
    """An embedding that is only looked up, a hidden layer used twice, and a head of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.mid, self.head = nn.Embedding(10, 6), nn.Linear(6, 6), nn.Linear(6, 10, bias=False)

    def forward(self, ids):
        x = self.emb(ids)
        return self.head(torch.tanh(self.mid(torch.tanh(self.mid(x)))))


SHAPES = {"emb.weight": (10, 6), "mid.weight": (6, 6), "head.weight": (10, 6)}
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (5, 7)))


def measure(model, shapes, ids=IDS, **options):
    return collect(model, ids, shapes, model_fingerprint="f", source={"kind": "test"}, **options)


def drawn_labels(logits, seed):
    """The first token of each row whose cumulated probability exceeds the sequence's own draws, one at a time."""
    p_TV = logits.detach().softmax(-1).flatten(0, -2).double().numpy()
    draws_T = label_draws(seed, range(logits.shape[0]), logits.shape[1]).flatten().numpy()
    return torch.tensor([int(np.flatnonzero(np.cumsum(p) > u * p.sum())[0]) for p, u in zip(p_TV, draws_T, strict=True)])


def test_statistics_equal_plain_autograd():
    """Every sum computed again by hand: one token at a time, labels drawn the same way."""
    model = TwoTables()
    stats = measure(model, SHAPES, seed=3)
    labels = drawn_labels(model(IDS), 3)
    H = {n: torch.zeros(6, 6, dtype=torch.float64) for n in SHAPES} | {"emb.weight": torch.zeros(6, dtype=torch.float64)}
    g = {n: torch.zeros(s[0], dtype=torch.float64) for n, s in SHAPES.items()}
    for token, label in zip(IDS.flatten(), labels, strict=True):
        x0 = model.emb.weight[token].detach().requires_grad_()
        z1 = model.mid(x0)
        x1 = torch.tanh(z1)
        z2 = model.mid(x1)
        x2 = torch.tanh(z2)
        z3 = model.head(x2)
        loss = F.cross_entropy(z3[None], label[None])
        d0, d1, d2 = (d.double() for d in torch.autograd.grad(loss, [x0, z1, z2]))
        H["mid.weight"] += torch.outer(x0.double(), x0.double()) + torch.outer(x1.double(), x1.double())
        g["mid.weight"] += d1**2 + d2**2
        H["head.weight"] += torch.outer(x2.double(), x2.double())
        p3 = z3.detach().double().softmax(-1)
        g["head.weight"] += p3 * (1 - p3)  # of (p - e_y)², over all labels
        H["emb.weight"] += d0**2
        g["emb.weight"][token] += 0.5  # a token counts half by what it is
        g["emb.weight"] += 0.5 * p3  # and half by what is expected after it
    for name in SHAPES:
        # float32 forward and backward against the same; only the order of sums differs
        (use,) = stats.uses(name)
        torch.testing.assert_close(use.H_II.double(), (H[name] / 35).detach(), rtol=1e-4, atol=1e-9)
        # an embedding's rows have a prior count
        wanted = (g[name] + PRIOR_COUNT) / (35 + PRIOR_COUNT * len(g[name])) if name == "emb.weight" else g[name] / 35
        torch.testing.assert_close(use.g_O.double(), wanted.detach(), rtol=1e-4, atol=1e-9)
    assert stats.tokens == 35


def test_fisher_factors_equal_plain_autograd():
    """Each token's H counts by its |g|² and its G by its |x|², of all uses; labels drawn the same way, but the head's g² are
    their expectation over labels, each row with a prior count."""
    model = TwoTables()
    stats = measure(model, SHAPES, seed=3)
    labels = drawn_labels(model(IDS), 3)
    uses = {"mid.weight": [], "head.weight": []}
    for token, label in zip(IDS.flatten(), labels, strict=True):
        x0 = model.emb.weight[token].detach().requires_grad_()
        z1 = model.mid(x0)
        z2 = model.mid(torch.tanh(z1))
        z3 = model.head(torch.tanh(z2))
        d1, d2, d3 = torch.autograd.grad(F.cross_entropy(z3[None], label[None]), [z1, z2, z3])
        uses["mid.weight"] += [(x0, d1), (torch.tanh(z1), d2)]
        uses["head.weight"] += [(torch.tanh(z2), d3)]
    for name, pairs in uses.items():
        x, g = (torch.stack(side).detach().double() for side in zip(*pairs, strict=True))
        squares = g.square()
        if name == "head.weight":
            p = model(IDS).detach().double().softmax(-1).flatten(0, 1)
            squares = p * (1 - p)
        lengths = x.square().sum(1) * squares.sum(1)
        H = (x * squares.sum(1, keepdim=True)).T @ x
        G = (g * x.square().sum(1, keepdim=True)).T @ g
        if name == "head.weight":
            seen = (squares * x.square().sum(1, keepdim=True)).sum(0)
            G = (seen + PRIOR_COUNT * seen.sum() / 35) / (1 + PRIOR_COUNT * 10 / 35)
        scale = (lengths.sum() * 35) ** -0.5
        (use,) = stats.fisher_uses(name)
        torch.testing.assert_close(use.H_II.double(), H * scale, rtol=1e-4, atol=1e-8)  # float32 products
        torch.testing.assert_close(use.g_O.double(), G * scale, rtol=1e-4, atol=1e-8)
        mean_square = lengths.sum() / 35  # of the matrix' gradient, a sum over its uses taken as independent
        assert float(use.H_II.trace() * use.diagonal_O.sum()) == pytest.approx(float(mean_square), rel=1e-4)
    assert set(stats.fishers) == set(uses)


@pytest.mark.parametrize("capped", [False, True])
def test_the_heads_squares_are_the_mean_over_many_labels(capped):
    """Against 4,000 drawn labels; a softcap before the loss changes each logit alone."""
    torch.manual_seed(0)
    z_TV = (2 * torch.randn(3, 8)).requires_grad_()
    total = torch.zeros(3, 8)
    for number in range(4000):
        logits_TV = 3 * torch.tanh(z_TV / 3) if capped else z_TV * 1
        prediction = predict(logits_TV.detach(), label_draws(1, [number], 3)[0])
        (g_TV,) = torch.autograd.grad(logits_TV, z_TV, prediction.g_TV)
        assert is_logits(g_TV, prediction)
        total += g_TV.square()
    squares_TV = expected_squares(g_TV, prediction, slice(0, 3))
    # the mean of 4,000 draws of something between 0 and 1: standard error at most 0.008
    torch.testing.assert_close(total / 4000, squares_TV, atol=0.03, rtol=0)
    if not capped:
        p_TV = z_TV.detach().softmax(-1)
        torch.testing.assert_close(squares_TV, p_TV * (1 - p_TV), rtol=1e-3, atol=1e-7)  # float32


def test_gradients_of_other_outputs_are_not_taken_for_logits():
    p_TV = torch.full((4, 6), 1 / 6)
    g_TV = p_TV - torch.eye(6)[:4]
    prediction = Prediction(g_TV.clone(), torch.tensor([0, 1, 2, 3]), p_TV[:, 0], p_TV.sum(0).double())
    torch.testing.assert_close(prediction.probabilities(slice(1, 3)), p_TV[1:3])
    assert is_logits(g_TV, prediction) and not is_logits(-g_TV, prediction)
    assert not is_logits(g_TV[:, :5], prediction) and not is_logits(g_TV, None)
    g_TV[2, 5] = -1e-3
    assert not is_logits(g_TV, prediction)


def test_certain_and_impossible_tokens_have_finite_squares():
    prediction = predict(torch.tensor([[200.0, 0.0, -200.0]]), torch.tensor([0.9], dtype=torch.float64))
    assert prediction.labels_T.tolist() == [0]
    squares_TV = expected_squares(prediction.g_TV, prediction, slice(0, 1))
    assert torch.isfinite(squares_TV).all() and float(squares_TV.max()) < 1e-6


def test_a_tied_embedding_and_very_tall_matrices_keep_only_the_diagonal_of_g(monkeypatch, toy_state):
    model = gpt_from_state_dict(toy_state)
    shapes = {"tok_emb.weight": (400, 64), "blocks.0.mlp.fc.weight": (128, 64), "blocks.0.mlp.proj.weight": (64, 128)}
    full = measure(model, shapes, IDS)
    monkeypatch.setattr("quantlab.calib.watch.FULL_ROWS", 100)
    stats = measure(model, shapes, IDS)
    head, table = stats.fisher_uses("tok_emb.weight")
    assert head.g_O.shape == (400,) and torch.equal(table.g_O, stats.lookups["tok_emb.weight"].g_O)
    tall, square = (stats.fisher_uses(n)[0].g_O for n in ("blocks.0.mlp.fc.weight", "blocks.0.mlp.proj.weight"))
    assert tall.shape == (128,) and square.shape == (64, 64)
    G_O = full.fishers["blocks.0.mlp.fc.weight"].g_O.diagonal()
    tokens = IDS.numel()
    assert torch.allclose(tall, (G_O + PRIOR_COUNT * G_O.sum() / tokens) / (1 + PRIOR_COUNT * 128 / tokens), rtol=1e-4)


def test_batches_do_not_change_the_sums(monkeypatch, toy_state):
    model = gpt_from_state_dict(toy_state)
    ids = torch.randint(0, 400, (6, 32), generator=torch.Generator().manual_seed(0))
    shapes = {"tok_emb.weight": (400, 64), "blocks.1.mlp.proj.weight": (64, 128)}
    whole = measure(model, shapes, ids)
    monkeypatch.setattr("quantlab.calib.collect.BATCH_TOKENS", 64)
    parts = measure(model, shapes, ids)
    for name in shapes:
        for a, b in zip(whole.uses(name) + whole.fisher_uses(name), parts.uses(name) + parts.fisher_uses(name), strict=True):
            torch.testing.assert_close(a.H_II, b.H_II, rtol=1e-4, atol=1e-6)  # float32 sums in another order


def test_a_tied_embedding_is_measured_in_both_roles(toy_state):
    """As head its H is that of the final norm's output: unit mean square per channel, so its trace is the width. As a table
    its rows count by how often their tokens are seen or expected."""
    model = gpt_from_state_dict(toy_state)
    stats = measure(model, {"tok_emb.weight": (400, 64)}, IDS)
    head, table = stats.uses("tok_emb.weight")
    assert head.H_II.trace() == pytest.approx(64, rel=1e-3)  # rms_norm's epsilon
    expected = model(IDS).detach().softmax(-1).flatten(0, 1).sum(0)
    wanted = ((torch.bincount(IDS.flatten(), minlength=400) + expected) / 2 + PRIOR_COUNT) / (IDS.numel() + PRIOR_COUNT * 400)
    assert torch.allclose(table.g_O, wanted, rtol=1e-4)
    assert table.H_II.shape == (64,) and (table.H_II > 0).all()


def test_halves_of_the_sample_are_compared_row_by_row(monkeypatch, toy_state):
    """Computed again from two runs of the same batches, one on each half."""
    monkeypatch.setattr("quantlab.calib.collect.BATCH_TOKENS", 32)
    model, name = gpt_from_state_dict(toy_state), "blocks.0.attn.c_q.weight"
    ids = torch.randint(0, 400, (8, 32), generator=torch.Generator().manual_seed(0))
    whole = measure(model, {name: (64, 64)}, ids)
    first = measure(model, {name: (64, 64)}, ids[:4])
    first_O, whole_O = (s.uses(name)[0].g_O.double() * s.tokens for s in (first, whole))
    expected = np.corrcoef(first_O.log(), (whole_O - first_O).log())[0, 1]
    assert whole.row_agreement[name] == pytest.approx(expected, abs=1e-3)  # float32 statistics
    assert 0.1 < expected < 0.999


def test_measuring_leaves_the_model_as_it_was(toy_state):
    model = gpt_from_state_dict(toy_state).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    measure(model, {"tok_emb.weight": (400, 64)}, IDS)
    assert model.training
    assert all(p.requires_grad and p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_matrix_that_is_never_used_is_named():
    model = TwoTables()
    model.extra = nn.Linear(6, 6)
    with pytest.raises(StatisticsError, match=r"tensor extra\.weight has no calibration statistics"):
        measure(model, {**SHAPES, "extra.weight": (6, 6)})


def test_zero_and_non_finite_statistics_are_named():
    model = TwoTables()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(StatisticsError, match=r"tensor (emb|mid)\.weight: its (output gradient|Hessian) is zero on all 35"):
        measure(model, SHAPES)
    stats = measure(TwoTables(), SHAPES)
    use = stats.products["mid.weight"]
    use.H_II[0, 0] = float("inf")
    stats = replace(stats, products={**stats.products, "mid.weight": use})
    with pytest.raises(StatisticsError, match=r"tensor mid\.weight: its Hessian is not finite"):
        stats.check(SHAPES)
    with pytest.raises(StatisticsError, match=r"is \[6, 7\] but its statistics are"):
        stats.check({"mid.weight": (6, 7)})


def test_statistics_file_round_trips_and_is_the_same_every_time(tmp_path):
    a, b = (measure(TwoTables(), SHAPES) for _ in range(2))
    write_statistics(tmp_path / "a", a)
    write_statistics(tmp_path / "b", b)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = read_statistics(tmp_path / "a")
    assert back.fingerprint == a.fingerprint and back.tokens == 35
    for name in SHAPES:
        for kind in ("uses", "fisher_uses"):
            (x,), (y,) = getattr(back, kind)(name), getattr(a, kind)(name)
            assert torch.equal(x.H_II, y.H_II) and torch.equal(x.g_O, y.g_O)
    assert torch.equal(back.ids_NT, IDS.int()) and back.ids_NT.dtype == torch.int32
    assert measure(TwoTables(), SHAPES, seed=1).fingerprint != a.fingerprint


def test_statistics_of_another_model_or_file_are_refused(tmp_path, toy_checkpoint):
    stats = measure(TwoTables(), SHAPES)
    with pytest.raises(StatisticsError, match="measured on model f, this one is g"):
        stats.check_model("g", tmp_path)
    with pytest.raises(StatisticsError, match="cannot read statistics"):
        read_statistics(tmp_path / "absent")
    with pytest.raises(StatisticsError, match="cannot read statistics"):
        read_statistics(toy_checkpoint)


class WithoutCache(nn.Module):
    """A model that can only read whole prefixes; it notes the shapes of its logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.shapes = inner, []

    def forward(self, ids):
        logits = self.inner(ids)
        self.shapes.append(tuple(logits.shape))
        return logits


def test_sampling_with_a_cache_equals_reading_the_prefix_again(toy_state):
    """The cache changes the speed, not the text."""
    model = gpt_from_state_dict(toy_state)
    cached = sample_sequences(model, 3, 24, seed=5)
    assert torch.equal(cached, sample_sequences(WithoutCache(model), 3, 24, seed=5))
    assert cached.shape == (3, 24) and (cached[:, 0] == 1).all()
    assert not torch.equal(cached, sample_sequences(model, 3, 24, seed=6))


def test_sampling_without_a_cache_holds_few_logits(toy_state, monkeypatch):
    """The bound splits a batch into smaller ones, down to one sequence, and the text stays the same."""
    whole, parts = (WithoutCache(gpt_from_state_dict(toy_state)) for _ in range(2))
    ids = sample_sequences(whole, 5, 12, seed=5)
    vocab_size = whole.shapes[0][-1]
    monkeypatch.setattr(sources, "MAX_LOGITS", 8 * vocab_size)
    assert torch.equal(sample_sequences(parts, 5, 12, seed=5), ids)
    assert max(np.prod(shape) for shape in whole.shapes) == 5 * 11 * vocab_size
    assert all(rows == 1 or rows * length <= 8 for rows, length, _ in parts.shapes)
    assert {(5, 1, vocab_size), (2, 4, vocab_size), (1, 11, vocab_size)} <= set(parts.shapes)


def test_last_logits_keep_no_other_position_in_memory(toy_state, monkeypatch):
    """A slice of the model's logits would hold all of them until the parts are joined."""
    joined, cat = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts, *rest, **named: joined.append(list(parts)) or cat(parts, *rest, **named))
    last_BV = sources._last_logits(WithoutCache(gpt_from_state_dict(toy_state)), torch.ones(4, 6, dtype=torch.int64), 2)
    assert len(joined[-1]) == 2 and len(last_BV) == 4
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in joined[-1])


def test_sampling_reports_its_end(toy_state):
    seen = []
    sample_sequences(gpt_from_state_dict(toy_state), 3, 9, progress=lambda *at: seen.append(at))
    assert seen[-1] == (27, 27) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_samples_do_not_depend_on_the_batch(toy_state, monkeypatch):
    model = gpt_from_state_dict(toy_state)
    ids = sample_sequences(model, 5, 12, seed=5)
    monkeypatch.setattr(sources, "BATCH", 2)
    assert torch.equal(sample_sequences(model, 5, 12, seed=5), ids)


def test_a_draw_inverts_the_cumulated_distribution():
    """The reference adds probabilities one by one; tokens without probability are never drawn, at either end of [0, 1)."""
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf, 2.0, -torch.inf])
    p = logits.double().softmax(-1)
    uniforms = torch.tensor([0.0, 0.05, 0.2, 0.5, 0.9, 1 - 2**-24])
    expected = [next(v for v in range(6) if p[: v + 1].sum() > u) for u in uniforms.double()]
    assert sources._draw(logits.expand(6, 6), uniforms).tolist() == expected == [1, 1, 2, 4, 4, 4]
    with pytest.raises(CheckpointError, match="the model predicts values that are not finite"):
        sources._draw(torch.tensor([[0.0, torch.nan]]), torch.tensor([0.5]))


def test_samples_follow_the_models_distribution():
    """A model that ignores its input and predicts 1/2, 1/4, 1/4: frequencies agree within five standard errors."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.5, 0.25, 0.25]).log())

        def forward(self, ids):
            return self.logits.expand(*ids.shape, 3)

    ids = sample_sequences(Fixed(), 64, 65, seed=0)[:, 1:]
    counts = torch.bincount(ids.flatten(), minlength=3) / ids.numel()
    assert torch.allclose(counts, torch.tensor([0.5, 0.25, 0.25]), atol=5 * (0.25 / 4096) ** 0.5)
    cold = sample_sequences(Fixed(), 64, 65, seed=0, temperature=0.05)[:, 1:]
    assert (cold == 0).float().mean() > 0.99


def test_sources_give_sequences_of_the_right_shape(tmp_path, tokenizer, toy_state):
    model = gpt_from_state_dict(toy_state)
    text = tmp_path / "text.txt"
    text.write_bytes(b"def f(x):\n    return x + 1\n" * 200)
    write_shard(tmp_path / "s_000.bin", tokenizer.encode_documents([text.read_bytes()]))
    for source in ("self", "random", f"text:{text}", f"tokens:{tmp_path}/s_*.bin"):
        config = CalibrationConfig(source=source, tokens=100, seq_len=16)
        ids, about = calibration_tokens(config, model, tokenizer, 400)
        assert ids.shape == (6, 16) and ids.dtype == torch.int64 and 0 <= int(ids.min()) <= int(ids.max()) < 400
        assert about["kind"] == source.partition(":")[0]
        again, _ = calibration_tokens(config, model, tokenizer, 400)
        assert torch.equal(ids, again)


def test_short_data_gives_what_it_has_and_too_short_is_refused(tmp_path, tokenizer, toy_state):
    model = gpt_from_state_dict(toy_state)
    write_shard(tmp_path / "s.bin", np.arange(40, dtype=np.uint16))
    ids, _ = calibration_tokens(CalibrationConfig(source=f"tokens:{tmp_path}/s.bin", tokens=1000, seq_len=16), model, None, 400)
    assert ids.shape == (2, 16)
    with pytest.raises(DataError, match="has 40 tokens, one sequence needs 64"):
        calibration_tokens(CalibrationConfig(source=f"tokens:{tmp_path}/s.bin", seq_len=64), model, None, 400)
    with pytest.raises(DataError, match="token id 39, the model's vocabulary is 30"):
        calibration_tokens(CalibrationConfig(source=f"tokens:{tmp_path}/s.bin", seq_len=16), model, None, 30)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        calibration_tokens(CalibrationConfig(source="text:x.txt"), model, None, 400)


@pytest.mark.parametrize("source", ["", "text", "text:", "self:x", "web", "tokens"])
def test_unknown_sources_are_refused(source):
    with pytest.raises(ConfigError, match="calibration source must be"):
        CalibrationConfig(source=source)


@pytest.mark.parametrize("options", [{"tokens": 10}, {"seq_len": 1}, {"temperature": 0.0}, {"seed": -1}, {"seed": 10**23}])
def test_impossible_amounts_are_refused(options):
    with pytest.raises(ConfigError):
        CalibrationConfig(**options)


class Variant(nn.Module):
    """A tied model whose head is written in one of the ways that people write it."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(1)
        self.emb, self.kind = nn.Embedding(10, 6), head
        self.pos = nn.Embedding(7, 6)
        if head == "module":
            self.head = nn.Linear(6, 10, bias=False)
            self.head.weight = self.emb.weight

    def forward(self, ids):
        x = self.emb(ids)
        x += self.pos(torch.arange(ids.shape[1]))  # in place, as many do
        x = torch.tanh(x)
        if self.kind == "module":
            return self.head(x)
        if self.kind == "cast":
            return F.linear(x, weight=self.emb.weight.to(torch.float64).float())
        return F.linear(x, self.emb.weight) if self.kind == "linear" else x @ self.emb.weight.T


def test_a_tied_head_is_measured_once_however_it_is_written():
    kinds = ("linear", "module", "cast", "matmul")
    results = [measure(Variant(kind), {"emb.weight": (10, 6)}).uses("emb.weight") for kind in kinds]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a.H_II, b.H_II) and torch.equal(a.g_O, b.g_O)


def test_a_table_of_positions_counts_once_for_every_token():
    (use,) = measure(Variant("linear"), {"pos.weight": (7, 6)}).uses("pos.weight")
    assert torch.allclose(use.g_O, torch.full((7,), 1 / 7))


def test_an_untied_head_of_the_baseline_is_measured():
    config = GPTConfig(
        vocab_size=40, num_layers=1, model_dim=8, num_heads=2, num_kv_heads=1, mlp_hidden=8, tie_embeddings=False
    )
    state = {n: torch.randn(t.shape, generator=torch.Generator().manual_seed(0)) for n, t in GPT(config).state_dict().items()}
    stats = measure(gpt_from_state_dict(state, config), {"lm_head.weight": (40, 8), "tok_emb.weight": (40, 8)})
    assert set(stats.products) == {"lm_head.weight"} and set(stats.lookups) == {"tok_emb.weight"}


def test_models_that_give_no_gradient_or_fail_are_one_clear_line():
    model = TwoTables()
    forward = model.forward
    model.forward = torch.no_grad()(forward)
    with pytest.raises(StatisticsError, match="carry no gradient"):
        measure(model, SHAPES)
    model.forward = lambda ids: forward(ids[:, :99] + 100)
    with pytest.raises(ShapeError, match=r"the model fails on ids \[2, 7\]: IndexError"):
        measure(model, SHAPES)


def test_a_table_that_the_model_builds_while_sampling_serves_backward_later():
    class Lazy(TwoTables):
        table = None

        def forward(self, ids):
            if self.table is None:
                self.table = torch.ones(6)
            return super().forward(ids) * self.table.sum()

    model = Lazy()
    sample_sequences(model, 2, 4)
    assert measure(model, SHAPES).tokens == 35
