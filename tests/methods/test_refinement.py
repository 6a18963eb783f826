"""Progressive rounding: matrices that are still float make up for the errors of those that are rounded."""

import copy

import pytest
import torch
from torch import nn

from quantlab.calib.fisher import Use
from quantlab.methods.method import NoMemo
from quantlab.methods.trellis import refinement
from quantlab.methods.trellis.refinement import Inverse, Refinement, groups_of
from quantlab.methods.trellis.tuning import HELD_OUT
from quantlab.progress import silent


class Toy(nn.Module):
    """Embedding and three matrices: logits [B, T, 12]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(12, 16)
        self.first, self.second, self.head = (nn.Linear(16, n, bias=False) for n in (16, 16, 12))

    def forward(self, ids):
        x = self.emb(ids)
        x = x + torch.tanh(self.first(x))
        return 2 * self.head(x + torch.tanh(self.second(x)))


NAMES = ("first.weight", "second.weight", "head.weight")
IDS = torch.randint(0, 12, (64, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    return Toy().eval()


def coarse(targets, left):
    """Round to a grid of quarters."""
    return {name: (4 * w).round() / 4 for name, w in targets.items()}


def weights_of(model):
    return {name: model.get_parameter(name).detach().clone() for name in NAMES}


def inverses():
    identity = Use(torch.eye(16), torch.eye(16)), Use(torch.eye(16), torch.eye(12))
    return {name: Inverse.of((identity[name == "head.weight"],)) for name in NAMES}


def refine(model, steps, round_group=coarse, memo=None):
    """Return the stages and the rounded matrices."""
    got = {}

    def keep(targets, left):
        rounded = round_group(targets, left)
        got.update(rounded)
        return rounded

    stages = Refinement(model, inverses().__getitem__, {}, IDS, steps).run(weights_of(model), keep, silent, memo or NoMemo())
    return stages, got


def kl(model, values):
    """Mean over the sequences that learning held out, in float64, by the definition."""
    other = copy.deepcopy(model)
    other.load_state_dict({**other.state_dict(), **values})
    held = IDS[HELD_OUT - 1 :: HELD_OUT]
    with torch.no_grad():
        p, q = (m(held).double().log_softmax(-1) for m in (model, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_what_is_still_float_makes_up_for_errors_that_were_made(model, monkeypatch):
    monkeypatch.setattr(refinement, "RATE", 0.5)
    start = {name: p.clone() for name, p in model.state_dict().items()}
    stages, refined = refine(model, 30)
    at_once = coarse(weights_of(model), ())
    assert [stage.rounded for stage in stages] == [1, 2] and all(stage.is_better for stage in stages)
    assert kl(model, refined) < 0.7 * kl(model, at_once)
    assert all(torch.equal(p, start[name]) for name, p in model.state_dict().items()), "the float model must stay as it is"
    assert all(p.grad is None for p in model.parameters())


def test_the_reported_kl_is_that_of_the_model_with_what_is_rounded_so_far(model, monkeypatch):
    monkeypatch.setattr(refinement, "RATE", 0.5)
    stages, refined = refine(model, 5)
    before = kl(model, {"first.weight": refined["first.weight"]})
    assert stages[0].kl_before == pytest.approx(before, rel=1e-4)  # float32 logits against float64


def test_a_stage_that_does_not_help_is_undone_and_the_next_is_more_careful(model, monkeypatch):
    monkeypatch.setattr(refinement, "RATE", -0.5)  # uphill
    rates = []
    learn = Refinement._learn
    monkeypatch.setattr(
        Refinement, "_learn", lambda self, v, n, rate, *more: rates.append(rate) or learn(self, v, n, rate, *more)
    )
    stages, refined = refine(model, 5)
    assert not any(stage.is_better for stage in stages)
    assert rates == [-0.5, -0.5 / refinement.SMALLER]
    assert all(torch.equal(refined[name], w) for name, w in coarse(weights_of(model), ()).items())


def test_a_stage_ends_where_the_kl_explodes(model, monkeypatch):
    monkeypatch.setattr(refinement, "RATE", 1e6)
    done = []
    stages = Refinement(model, inverses().__getitem__, {}, IDS, 50).run(
        weights_of(model), coarse, lambda stage, at, of: done.append(at), NoMemo()
    )
    assert not any(stage.is_better for stage in stages) and max(done) < 5


def test_a_memo_spares_the_learning_and_gives_the_same(model, monkeypatch):
    monkeypatch.setattr(refinement, "RATE", 0.5)

    class Keeper(NoMemo):
        def __init__(self):
            self.known = {}

        def tensors(self, name, compute):
            if name not in self.known:
                self.known[name] = compute()
            return self.known[name]

    memo = Keeper()
    first = refine(model, 5, memo=memo)
    monkeypatch.setattr(Refinement, "_learn", None)  # would fail
    again = refine(model, 5, memo=memo)
    assert first[0] == again[0] and all(torch.equal(first[1][name], again[1][name]) for name in NAMES)


def test_the_inverse_is_that_of_the_damped_factors():
    generator = torch.Generator().manual_seed(3)
    x, g = torch.randn(64, 6, generator=generator), torch.randn(64, 4, generator=generator)
    H, G = x.T @ x / 64, g.T @ g / 64
    gradient = torch.randn(4, 6, generator=generator)
    found = Inverse.of((Use(H, G),)).of_gradient(gradient)
    damped_H, damped_G = H + 0.01 * H.diagonal().mean() * torch.eye(6), G + 0.05 * G.diagonal().mean() * torch.eye(4)
    torch.testing.assert_close(damped_G @ found @ damped_H, gradient, rtol=1e-4, atol=1e-4)  # float32 inverses
    diagonal = Inverse.of((Use(H, G.diagonal()),)).of_gradient(gradient)
    torch.testing.assert_close(G.diagonal()[:, None] * diagonal @ damped_H, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("most", [1, 3, 8, 40])
def test_groups_keep_the_order_and_are_about_equal(most):
    sizes = {f"t{n}": 10 + n % 7 for n in range(30)}
    groups = groups_of(sizes, most)
    assert [name for group in groups for name in group] == list(sizes) and len(groups) == min(most, 30)
    share = sum(sizes.values()) / len(groups)
    assert all(abs(sum(sizes[name] for name in group) - share) <= 16 for group in groups)


def test_a_matrix_that_no_token_reaches_keeps_its_weights(model, monkeypatch):
    """As an expert does that the router never chooses: it has no gradient."""
    monkeypatch.setattr(refinement, "RATE", 0.5)
    model.second.forward = lambda x: torch.zeros_like(x)
    stages, got = refine(model, 5)
    assert len(stages) == 2 and torch.equal(got["second.weight"], coarse(weights_of(model), ())["second.weight"])


def test_every_learning_sequence_is_read_before_any_is_read_again(model, monkeypatch):
    monkeypatch.setattr(refinement, "STEP_TOKENS", 64)  # four sequences
    seen, backward = [], Refinement._backward

    def watched(self, values, learned, ids_NT):
        seen.extend(map(tuple, ids_NT.tolist()))
        return backward(self, values, learned, ids_NT)

    monkeypatch.setattr(Refinement, "_backward", watched)
    refine(model, 9)  # two stages: 72 sequences of 56
    is_held = torch.arange(len(IDS)) % HELD_OUT == HELD_OUT - 1
    learning = [tuple(row) for row in IDS[~is_held].tolist()]
    assert seen == [*learning, *learning][: len(seen)] and len(seen) == 72
