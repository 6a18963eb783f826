"""Tuning of unquantized tensors by KL after rounding."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from quantlab.errors import QuantlabError
from quantlab.methods.rounded_model import RoundedModel
from quantlab.methods.trellis.tuning import HELD_OUT, tune


class Toy(nn.Module):
    """Embedding, gain, matrix, scale: logits [B, T, 12]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.mid, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.gain = nn.Parameter(torch.ones(8))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, ids):
        return self.scale * self.head(self.gain * torch.tanh(self.mid(self.emb(ids))))


IDS = torch.randint(0, 12, (32, 16), generator=torch.Generator().manual_seed(1))


def half(name, value):
    """As the file stores it."""
    return value.half().float()


def start_of(model):
    return {"gain": model.gain.detach().clone(), "scale": model.scale.detach().clone()}


def rounded_of(model, error):
    generator = torch.Generator().manual_seed(2)
    return {
        name: getattr(model, name.split(".")[0]).weight.detach() + error * torch.randn(shape, generator=generator)
        for name, shape in (("mid.weight", (8, 8)), ("head.weight", (12, 8)))
    }


def kl(reference, values):
    """Mean over all predictions of all sequences that learning held out, in float64, by the definition."""
    model = copy.deepcopy(reference)
    model.load_state_dict({**model.state_dict(), **values})
    held = IDS[HELD_OUT - 1 :: HELD_OUT]
    with torch.no_grad():
        p, q = (m(held).double().log_softmax(-1) for m in (reference, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_tuning_undoes_perturbed_gains_on_sequences_that_it_never_saw():
    reference = Toy().eval()
    start = {"gain": torch.linspace(0.7, 1.3, 8), "scale": torch.tensor(1.6)}
    tuned = tune(reference, {}, start, IDS, 300, half)
    assert tuned.is_better and tuned.kl_after < 0.25 * tuned.kl_before
    assert tuned.kl_before == pytest.approx(kl(reference, start), rel=1e-4)  # float32 sums
    assert tuned.kl_after == pytest.approx(kl(reference, tuned.tensors), abs=1e-6)  # float32 logarithms


def test_tuning_makes_up_for_rounded_matrices():
    reference = Toy().eval()
    rounded = rounded_of(reference, 0.15)
    tuned = tune(reference, rounded, start_of(reference), IDS, 100, half)
    assert tuned.is_better
    assert tuned.kl_after == pytest.approx(kl(reference, rounded | tuned.tensors), rel=1e-4)
    assert tuned.kl_after < kl(reference, rounded | start_of(reference))


def test_the_start_stays_where_learning_does_not_help():
    """Without rounding errors the start is perfect."""
    reference = Toy().eval()
    start = start_of(reference)
    tuned = tune(reference, {}, start, IDS, 5, half)
    assert not tuned.is_better and tuned.kl_before == pytest.approx(0, abs=1e-7)
    assert tuned.tensors.keys() == start.keys() and all(torch.equal(tuned.tensors[n], start[n]) for n in start)


def test_tensors_come_back_as_the_file_stores_them_and_arguments_stay():
    reference = Toy().eval()
    before = {n: t.clone() for n, t in reference.state_dict().items()}
    rounded, start = rounded_of(reference, 0.15), start_of(reference)
    copies = {n: t.clone() for n, t in (rounded | start).items()}
    tuned = tune(reference, rounded, start, IDS, 20, half)
    assert tuned.is_better and not torch.equal(tuned.tensors["gain"], start["gain"])
    for name, value in tuned.tensors.items():
        assert torch.equal(value, half(name, value)) and not value.requires_grad
    assert all(torch.equal(t, copies[n]) for n, t in (rounded | start).items())
    assert all(torch.equal(t, before[n]) for n, t in reference.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in reference.parameters())


def test_tuning_twice_gives_the_same_bits_and_reports_its_steps():
    reference = Toy().eval()
    calls = []
    a, b = (
        tune(reference, rounded_of(reference, 0.1), start_of(reference), IDS, 7, half, lambda *at: calls.append(at))
        for _ in "ab"
    )
    assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)
    assert (a.kl_before, a.kl_after) == (b.kl_before, b.kl_after)
    assert calls == [(n, 7) for n in range(1, 8)] * 2


class Closed(Toy):
    """A model whose forward is a closure over another module, as `model.forward = lambda` leaves behind."""

    def __init__(self):
        super().__init__()
        inner = Toy()
        self.__dict__["inner"] = inner

    def forward(self, ids):
        return self.__dict__["inner"](ids)


def test_a_model_that_is_compared_with_itself_is_an_error():
    model = Closed().eval()
    with pytest.raises(QuantlabError, match="KL is exactly 0 with rounded weights in place of the model's own") as caught:
        tune(model, rounded_of(model, 0.1), start_of(model), IDS, 2, half)
    assert caught.value.hint and "parameters of the module" in caught.value.hint
    with pytest.raises(QuantlabError, match="compared with itself"):
        RoundedModel(model, rounded_of(model, 0.1)).mean_kl({}, IDS)


def test_weights_that_rounding_leaves_as_they_are_have_no_kl():
    model = Toy().eval()
    assert RoundedModel(model, rounded_of(model, 0)).mean_kl({}, IDS) == 0


def test_mean_kl_is_that_of_the_definition():
    model, calls = Toy().eval(), []
    rounded = rounded_of(model, 0.05)
    found = RoundedModel(model, rounded).mean_kl({}, IDS[HELD_OUT - 1 :: HELD_OUT], lambda *done: calls.append(done))
    assert found == pytest.approx(kl(model, rounded), rel=1e-4) and calls[-1] == (4, 4)


class Thread:
    """One of several processes, as a thread: sums go through a list that all share."""

    def __init__(self, rank, size, barrier, given):
        self.rank, self.size, self._barrier, self._given = rank, size, barrier, given

    def sum_(self, tensor):
        self._given[self.rank] = tensor.clone()
        self._barrier.wait(timeout=60)
        total = sum(self._given[1:], self._given[0])
        self._barrier.wait(timeout=60)
        return lambda: total


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_learn_what_one_does(size):
    reference = Toy().eval()
    rounded, start = rounded_of(reference, 0.15), start_of(reference)
    one = tune(reference, rounded, start, IDS, 20, half)
    barrier, given = Barrier(size), [None] * size
    with ThreadPoolExecutor(size) as pool:
        crew = [Thread(rank, size, barrier, given) for rank in range(size)]
        all_found = list(pool.map(lambda p: tune(copy.deepcopy(reference), rounded, start, IDS, 20, half, processes=p), crew))
    assert one.kl_after < one.kl_before
    for found in all_found:
        assert found.kl_before == pytest.approx(one.kl_before, rel=1e-5)  # float32 sums in another order
        assert found.kl_after == pytest.approx(one.kl_after, rel=1e-3)  # after 20 steps, stored as float16
        for name, value in one.tensors.items():
            assert torch.allclose(found.tensors[name], value, atol=2e-3)
