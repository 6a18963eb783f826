"""The budget search over measured points."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quantlab.methods.classic.knapsack as module
from quantlab.errors import BudgetError
from quantlab.methods.classic.knapsack import trade_off
from quantlab.methods.method import Point

POINT = st.builds(Point, st.just(6), st.just(1.0), bytes=st.integers(1, 60), predicted_kl=st.floats(0, 10, width=16))
TENSORS = st.lists(st.lists(POINT, min_size=3, max_size=3), min_size=4, max_size=4)


def cost(tensors, choice):
    points = [t[i] for t, i in zip(tensors, choice, strict=True)]
    return sum(p.bytes for p in points), sum(p.predicted_kl for p in points)


def brute_force(tensors, budget):
    """Least predicted KL of all 3**4 choices that fit, or None."""
    costs = [cost(tensors, c) for c in itertools.product(*(range(len(t)) for t in tensors))]
    return min((d for b, d in costs if b <= budget), default=None)


@given(tensors=TENSORS, budget=st.integers(0, 250))
@settings(deadline=None)
def test_matches_brute_force_and_is_never_over(tensors, budget):
    best = brute_force(tensors, budget)
    curve = trade_off(tensors)
    if best is None:
        with pytest.raises(BudgetError) as caught:
            curve.best(budget)
        assert caught.value.smallest_bytes == sum(min(p.bytes for p in t) for t in tensors)
    else:
        size, loss = cost(tensors, curve.best(budget))
        assert size <= budget and loss == pytest.approx(best, abs=1e-9)


@given(tensors=TENSORS)
@settings(deadline=None)
def test_more_budget_is_never_worse(tensors):
    curve = trade_off(tensors)
    losses = [cost(tensors, curve.best(b))[1] for b in range(curve.smallest_bytes, 250, 7)]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(losses))


def many_tensors(count=40):
    """Rate-distortion curves of many tensors, 12 points each."""
    return [
        [Point(6, 2.0**k, 1000 * (i % 7 + 1) * (14 - k) + 13 * i, (i % 5 + 1) * 4.0**k) for k in range(12)]
        for i in range(count)
    ]


def test_a_thinned_curve_stays_within_budget_and_close(monkeypatch):
    tensors = many_tensors()
    budget = 1_000_000
    exact = cost(tensors, trade_off(tensors).best(budget))
    monkeypatch.setattr(module, "MAX_STATES", 500)
    thinned = cost(tensors, trade_off(tensors).best(budget))
    assert thinned[0] <= budget
    # 40 merges may each round up by a 500th of the range of bytes; in predicted KL that is a few per cent
    assert exact[1] <= thinned[1] <= 1.1 * exact[1]


def test_it_is_at_least_as_good_as_any_lagrangian_choice():
    tensors = many_tensors()
    for slope in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        lagrangian = [min(range(12), key=lambda i, t=t: t[i].predicted_kl + slope * t[i].bytes) for t in tensors]
        size, loss = cost(tensors, lagrangian)
        assert cost(tensors, trade_off(tensors).best(size))[1] <= loss * (1 + 1e-9)
