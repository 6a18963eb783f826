"""Trellis rounding: the rate-distortion bound, the reference implementation, the coder's paths, the arithmetic of feedback.

Legend: O rows (outputs), I columns (inputs), S states.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.artifact.shaped_grid import values_of
from quantlab.calib.fisher import Use
from quantlab.coding.contexts import TensorContext, classes_of
from quantlab.coding.frequency_tables import fit_tables
from quantlab.coding.rans import code_bits
from quantlab.coding.rans_numba import histogram
from quantlab.coding.symbols import to_symbols
from quantlab.format_rules import OFFSET, SCALAR_CLASSES, TABLE_CLASSES, next_states
from quantlab.methods.trellis.factors import Factors, Panels, factors
from quantlab.methods.trellis.feedback import Rates, round_with_feedback
from quantlab.methods.trellis.reference import Trellis, round_reference
from quantlab.methods.trellis.rounder import SCALAR_SLOPE, SLOPE
from quantlab.methods.trellis.scale_classes import fit_classes
from quantlab.methods.trellis.shape import ScaledGrid

FREE = np.zeros((TABLE_CLASSES, 256), np.float32)
EQUAL_SLOPE = 0.36  # squared steps a bit where the error falls 6.02 dB a bit: 2 ln 2 · D at D = 0.26
WIDE_CLASS = 20  # on the path, below the classes that send raw bits
GAUSSIAN = np.random.default_rng(0).standard_normal((768, 768)).astype(np.float32)


def flat_grid(shape, *, bits=16, level=0):
    return ScaledGrid(bits, level, *(np.zeros(n, np.int8) for n in shape))


def no_feedback(shape):
    O, I = shape
    return Factors(Panels.of(np.zeros((I, I), np.float32)), None, torch.ones(I), torch.ones(O))


def flat_rates(shape, bits=FREE, cls=WIDE_CLASS):
    return Rates(np.full(shape[0], cls, np.int16), np.zeros(shape[1], np.int16), bits)


def context_for(shape, states, rates, paths="columns"):
    return TensorContext(shape=shape, states=states, paths=paths, rows_O=rates.rows_O, columns_I=rates.columns_I, tables=0)


def correlated(n, seed, *, shared=2.0):
    """A positive definite matrix whose variables share a few directions."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * n, n)) @ (rng.standard_normal((n, n)) / n**0.5 + shared * rng.standard_normal((1, n)))
    return torch.from_numpy(x.T @ x / len(x)).float()


def gap_bits(states, rate_bits, slope, *, rounds=3):
    """Rate above ½ log2(variance / D) of a Gaussian matrix, after `rounds` fits of scale classes and tables to the codes."""
    w = GAUSSIAN
    log2_step = 0.5 * math.log2(2 * math.pi * math.e) - rate_bits - (states > 1)  # a trellis uses half of twice the points
    grid, slopes = flat_grid(w.shape, level=round(64 * log2_step)), (0.0, *[slope] * rounds)
    rates = Rates(*fit_classes(w / grid.steps_OI), FREE)
    for now in slopes:
        context = context_for(w.shape, states, rates)
        q = round_with_feedback(w, grid, no_feedback(w.shape), rates, states=states, slope=now)
        tables, values = fit_tables(histogram(q, context)), values_of(q, context)
        rates = Rates(*fit_classes(values), tables.lengths.astype(np.float32))
    rate = code_bits(histogram(q, context), context, tables) / w.size
    assert abs(rate - rate_bits) < 0.1
    return rate + 0.5 * math.log2(np.square(w - values * grid.steps_OI).mean() / np.square(w).mean())


@pytest.mark.parametrize(("states", "slope", "most"), [(1, SCALAR_SLOPE, 0.265), (8, SLOPE, 0.085), (32, EQUAL_SLOPE, 0.06)])
@pytest.mark.parametrize("rate_bits", [2.5, 3.2, 4.0])
def test_gaussian_weights_come_close_to_the_rate_distortion_bound(states, slope, most, rate_bits):
    """At high rates plain rounding loses ½ log2(2πe / 12) = 0.255 bit. On endless paths 8 states gain 1.10 dB of that, 32 gain
    1.22 dB, which leaves 0.072 and 0.052 bit; tables, classes and the first weights of a path, in state 0, take the rest."""
    gap = gap_bits(states, rate_bits, slope)
    assert {1: 0.24, 8: 0.07, 32: 0.05}[states] < gap < most


def all_paths(trellis, xs, classes):
    """Least cost of all paths from state 0: every choice of the next states is tried.

    Codes of one state that lead to the same next state are alike for the rest of the path, so the cheapest stands for all.
    """
    moves, grid = next_states(trellis.states), range(trellis.low, trellis.high + 1)
    best = (math.inf, [])
    for parities in itertools.product(*[(None,) if trellis.bypassed_by(cls) else (0, 1) for cls in classes]):
        state, total, path = 0, 0.0, []
        for x, cls, parity in zip(xs, classes, parities, strict=True):
            if parity is None:
                fitting = [t for t in grid if trellis.states == 1 or t % 2 == 0]
            else:
                fitting = [t for t in grid if t % 2 == state % 2 and t // 2 % 2 == parity]
                state = int(moves[state, parity])
            t = min(fitting, key=lambda t: trellis.cost(x, t, cls))
            total += trellis.cost(x, t, cls)
            path.append(t)
        best = min(best, (total, path))
    return best[1]


@pytest.mark.parametrize("states", [1, 4, 8, 16, 32, 64, 256])
@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_viterbi_of_the_reference_finds_the_best_of_all_paths(states, slope):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, _, _, rates = problem(1, 1, seed)
        trellis = Trellis(states, -15 if states == 1 else -14, 15, rates.bits, slope)
        xs, classes = (4 * rng.standard_normal(7)).tolist(), rng.integers(4, 20, 7).tolist()
        assert trellis.best_path(xs, classes) == all_paths(trellis, xs, classes)


def problem(O, I, seed, *, rows=True):
    """A small matrix with everything in use: uneven steps, scale classes on and off the path and with raw bits, feedback."""
    rng = np.random.default_rng(seed)
    w = (3 * rng.standard_normal((O, I))).astype(np.float32)
    grid = ScaledGrid(5, 8, rng.integers(-2, 3, O).astype(np.int8), rng.integers(-2, 3, I).astype(np.int8))
    G = correlated(O, seed + 1, shared=1.0) if rows else torch.rand(O, generator=torch.Generator().manual_seed(seed)) + 0.1
    parts = factors("w", (Use(correlated(I, seed + 2, shared=1.0), G),))
    bits = (np.abs(np.arange(256) - OFFSET)[None] * 0.4 + rng.random((TABLE_CLASSES, 1)) + 1).astype(np.float32)
    rates = Rates(rng.choice([4, 6, 8, 10, 11, 30, 90], O).astype(np.int16), rng.integers(-2, 4, I).astype(np.int16), bits)
    return w, grid, parts, rates


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("states", [1, 4, 8, 32])
@pytest.mark.parametrize("slope", [0.0, 0.25])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (4, 3), (5, 8), (13, 11), (35, 34), (3, 70)])
def test_codes_are_those_of_the_reference_implementation(shape, states, slope, rows):
    """Float32 rounds differently from float64, but near no boundary here: seeds are fixed, codes must be equal.

    The fast loop tries two codes of a subset, the nearest and the next towards zero; the reference tries all. The one after
    them has at least 2 squared steps more error than the second (32 on a path), so with this slope it would have to be 8 bits
    shorter; here neighbouring symbols differ by 0.4 bits.
    """
    for seed in range(3):
        w, grid, parts, rates = problem(*shape, seed, rows=rows)
        expected = round_reference(w, grid, parts, rates, states=states, slope=slope)
        assert np.array_equal(round_with_feedback(w, grid, parts, rates, states=states, slope=slope), expected)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("states", [1, 8])
def test_the_cost_is_the_sum_of_weighted_squares_of_target_less_rounded(states, rows):
    """½ tr(G E H Eᵀ) with the damped G and H equals ½ Σ (d_O d_I (target - rounded))²: feedback loses nothing."""
    O, I = 5, 4
    w, grid, _, rates = problem(O, I, 7)
    H = correlated(I, 1)
    G = correlated(O, 2) if rows else torch.rand(O, generator=torch.Generator().manual_seed(0)) + 0.1
    parts = factors("w", (Use(H, G),))
    q = round_with_feedback(w, grid, parts, rates, states=states, slope=0.0)
    on_path = (classes_of(context_for(w.shape, states, rates)) >= SCALAR_CLASSES) & (states > 1)
    rounded = (q - 0.5 * on_path) * grid.steps_OI.astype(np.float64)
    error = w.astype(np.float64) - rounded
    V, U = parts.columns.triangle().astype(np.float64), parts.rows.triangle() if rows else np.zeros((O, O))
    target = rounded + (np.eye(O) + U) @ error @ (np.eye(I) + V).T
    d = parts.d_O.numpy()[:, None] * parts.d_I.numpy()
    H_damped = H.double().numpy() + 0.01 * H.double().diagonal().mean().item() * np.eye(I)
    if rows:
        G_damped = 0.95 * G.double().numpy() + 0.05 * G.double().diagonal().mean().item() * np.eye(O)
    else:
        G_damped = torch.diag(G.double()).numpy()
    cost = np.trace(G_damped @ error @ H_damped @ error.T)
    assert cost == pytest.approx(np.square(d * (target - rounded)).sum(), rel=1e-5)  # factors are stored in float32


@given(
    O=st.sampled_from([1, 2, 5, 9, 33, 64, 70]),
    I=st.sampled_from([1, 3, 7, 31, 40, 65]),
    states=st.sampled_from([1, 4, 8, 16, 32, 64, 256]),
    bits=st.sampled_from([4, 5, 8, 16]),
    slope=st.sampled_from([0.0, 0.25, 3.0]),
    scale=st.sampled_from([0.0, 0.3, 3.0, 1e3, 1e8]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=150)
def test_codes_lie_on_a_path_that_the_coder_accepts_and_within_their_width(O, I, states, bits, slope, scale, seed):
    check_path(O, I, states, bits, slope, scale, seed)


@pytest.mark.parametrize(("states", "bits"), [(1, 2), (1, 3), (4, 4), (8, 4)])
@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_codes_of_the_narrowest_widths_stay_within_them(states, slope, bits):
    """A trellis needs 4 bits (TrellisOptions refuses less): a code in each subset, and a next one towards zero."""
    for seed in range(20):
        check_path(4, 5, states, bits, slope, 3.0, seed)


def check_path(O, I, states, bits, slope, scale, seed):
    w, grid, parts, rates = problem(O, I, seed)
    grid = ScaledGrid(bits, grid.level, grid.a_O, grid.b_I)
    w = (w * scale).astype(np.float32)
    before = w.copy()
    q = round_with_feedback(w, grid, parts, rates, states=states, slope=slope)
    high = 2 ** (bits - 1) - 1
    assert (-high if states == 1 else 1 - high) <= q.min() <= q.max() <= high
    to_symbols(q, classes_of(context_for((O, I), states, rates)), states, "blocks")  # ValueError where a code leaves its path
    assert np.array_equal(w, before)


@pytest.mark.parametrize("states", [1, 8])
def test_feedback_on_both_sides_beats_feedback_on_one(states):
    O, I = 48, 40
    rng = np.random.default_rng(0)
    w = rng.standard_normal((O, I)).astype(np.float32)
    use = Use(correlated(I, 1), correlated(O, 2))
    grid, rates = flat_grid(w.shape, level=-128), flat_rates(w.shape)
    loss = []
    for parts in (no_feedback(w.shape), factors("w", (use,), row_feedback=False), factors("w", (use,))):
        q = round_with_feedback(w, grid, parts, rates, states=states, slope=0.0)
        values = values_of(q, context_for(w.shape, states, rates))
        loss.append(use.predicted_kl(torch.from_numpy(w - values * grid.steps_OI)))
    assert loss[2] < 0.8 * loss[1] < 0.8 * 0.8 * loss[0]


@pytest.mark.parametrize("states", [4, 8, 16, 32, 64, 256])
def test_a_trellis_has_less_error_than_plain_rounding_at_equal_spacing(states):
    """Without a price on bits: the spacing of a trellis' coder is two steps, so plain rounding gets twice the step."""
    w = GAUSSIAN[:256, :256]
    fine, coarse = flat_grid(w.shape, level=-192), flat_grid(w.shape, level=-128)
    rates = flat_rates(w.shape)
    plain = round_with_feedback(w, coarse, no_feedback(w.shape), rates, states=1, slope=0.0) * coarse.steps_OI
    q = round_with_feedback(w, fine, no_feedback(w.shape), rates, states=states, slope=0.0)
    paths = values_of(q, context_for(w.shape, states, rates)) * fine.steps_OI
    gain_db = 10 * math.log10(np.square(w - plain).mean() / np.square(w - paths).mean())
    # on endless paths 0.99, 1.09, 1.16, 1.22, 1.27, 1.33 dB (Marcellin and Fischer 1990)
    assert gain_db > {4: 0.9, 8: 1.0, 16: 1.05, 32: 1.1, 64: 1.15, 256: 1.2}[states]


def test_a_price_on_bits_shortens_codes():
    w = GAUSSIAN[:128, :128]
    grid = flat_grid(w.shape, level=-64)
    bits = np.tile(0.5 * np.abs(np.arange(256, dtype=np.float32) - OFFSET) + 1, (TABLE_CLASSES, 1))
    rates = flat_rates(w.shape, bits)
    context = context_for(w.shape, 8, rates)
    spent = []
    for slope in (0.0, 0.1, 0.5, 2.0):
        q = round_with_feedback(w, grid, no_feedback(w.shape), rates, states=8, slope=slope)
        spent.append((histogram(q, context) * bits).sum())
    assert all(b < a for a, b in itertools.pairwise(spent))


def test_rounding_twice_gives_the_same_codes():
    w, grid, parts, rates = problem(40, 30, 0)
    runs = [round_with_feedback(w, grid, parts, rates, states=8, slope=0.25) for _ in range(2)]
    assert np.array_equal(*runs)


def test_steps_of_zero_give_zeros():
    """Row and column scales may make a step underflow; its weights are 0 whatever their code."""
    w = np.full((3, 4), 2.0, np.float32)
    grid = flat_grid(w.shape, level=-7680 - 64 * 30)
    assert not grid.steps_OI.any()
    q = round_with_feedback(w, grid, no_feedback(w.shape), flat_rates(w.shape), states=8, slope=0.0)
    assert np.abs(q).max() <= 1
