"""Grids, round-to-nearest and GPTQ."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.calib.fisher import Use, column_hessian, predicted_kl
from quantlab.errors import StatisticsError
from quantlab.format_rules import code_limit
from quantlab.methods.classic.gptq import feedback, gptq, gptq_ref
from quantlab.methods.classic.row_grid import RowGrid, round_to_nearest, row_grid

MATRICES = arrays(np.float32, (4, 24), elements=st.floats(-1e3, 1e3, width=32))


def correlated(rows=48, columns=40, tokens=400, seed=0):
    """Weights, and a Hessian whose inputs share a few directions."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) + 3 * torch.randn(1, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator), x.T @ x / tokens, torch.rand(rows, generator=generator) + 0.1


@given(w=MATRICES, bits=st.integers(2, 8))
@settings(deadline=None)
def test_rtn_error_is_at_most_half_a_step_within_the_range(w, bits):
    w = torch.from_numpy(w)
    grid = row_grid(w, bits=bits, clip=6.0)
    q, steps = round_to_nearest(w, grid), grid.steps_OI
    inside = w.abs() <= steps * code_limit(bits)
    # float32 division and product: one unit in the last place each, relative to w
    assert ((q * steps - w).abs() <= 0.5 * steps + 1e-6 * w.abs())[inside].all()
    assert int(q.abs().max()) <= code_limit(bits)


@given(w=MATRICES)
@settings(deadline=None)
def test_rtn_is_idempotent_and_leaves_its_argument(w):
    w = torch.from_numpy(w)
    before = w.clone()
    grid = row_grid(w, bits=6, clip=8.0)
    q = round_to_nearest(w, grid)
    assert torch.equal(w, before)
    assert torch.equal(round_to_nearest(q * grid.steps_OI, grid), q)


@pytest.mark.parametrize("w", [torch.zeros(3, 8), torch.full((2, 8), 5.0), torch.eye(1, 8), torch.full((1, 4), 1e-30)])
def test_degenerate_rows_stay_finite_and_close(w):
    grid = row_grid(w, bits=8, clip=4.0)
    back = round_to_nearest(w, grid) * grid.steps_OI
    assert torch.isfinite(back).all()
    assert ((back - w).abs() <= 0.02 * w.abs().max()).all()  # a step is 4/127 of the row's root mean square


def test_steps_survive_storage_exactly():
    """The float16 scale and the exponent give the float32 steps that rounding used."""
    w = torch.randn(16, 32, generator=torch.Generator().manual_seed(1)) * 1e-4
    grid = row_grid(w, bits=5, clip=10.0)
    assert grid.scale_O.dtype == np.float16 and 0.5 < grid.scale_O.max() <= 2
    wanted = 10.0 * w.square().mean(1).sqrt() / 15
    assert torch.allclose(grid.steps_OI[:, 0], wanted, rtol=2**-10)  # half a float16 unit


def test_a_row_of_outliers_does_not_coarsen_the_others():
    w = torch.ones(4, 64)
    w[2] *= 1e4
    grid = row_grid(w, bits=8, clip=4.0)
    assert torch.allclose(grid.steps_OI[[0, 1, 3], 0], torch.tensor(4 / 127), rtol=2**-10)


@pytest.mark.parametrize("columns", [1, 7, 64, 130, 257])
def test_gptq_equals_the_textbook_loop(columns):
    """An independent float64 loop that updates all later columns at once and knows no blocks (arXiv 2210.17323, eq. 3)."""
    w, H, _ = correlated(columns=columns, tokens=600)
    grid, fb = row_grid(w, bits=6, clip=10.0), feedback("w", H)
    q = gptq(w, grid, fb)
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    expected, rest, steps = torch.zeros_like(w), w.double().clone(), grid.steps_OI[:, 0].double()
    remaining = torch.argsort(H.diagonal(), descending=True, stable=True).tolist()
    while remaining:
        inverse = torch.linalg.inv(damped[remaining][:, remaining])
        j = remaining[0]
        expected[:, j] = (rest[:, j] / steps).round().clamp(-31, 31).float()
        error = (rest[:, j] - expected[:, j].double() * steps) / inverse[0, 0]
        rest[:, remaining] -= error[:, None] * inverse[0]
        remaining = remaining[1:]
    # float32 against float64 may differ where a value falls on a rounding boundary; each then differs by one code
    assert (q.float() != expected).float().mean() < 0.01


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (63, 31), (257, 32), (500, 33), (3, 300)])
def test_compiled_gptq_gives_the_codes_of_the_reference_on_these_seeds(rows, columns):
    """Sums are in another order: a near-tie could differ, and none of these samples has one."""
    w, H, _ = correlated(rows=rows, columns=columns, tokens=2 * columns + 9)
    w[0, :], H[columns // 2], H[:, columns // 2] = 0, 0, 0  # a row without a step, a column without input
    H[0, 0] += 1
    grid, fb = row_grid(w, bits=5, clip=5.0), feedback("w", H)
    before = w.clone()
    assert torch.equal(gptq(w, grid, fb), gptq_ref(w, grid, fb))
    assert torch.equal(w, before)


def test_gptq_beats_rtn_on_correlated_inputs():
    w, H, g = correlated()
    grid = row_grid(w, bits=5, clip=8.0)
    steps = grid.steps_OI
    loss = {
        "gptq": Use(H, g).predicted_kl(w - gptq(w, grid, feedback("w", H)) * steps),
        "rtn": Use(H, g).predicted_kl(w - round_to_nearest(w, grid) * steps),
    }
    assert loss["gptq"] < 0.5 * loss["rtn"]


def test_gptq_without_correlation_is_rtn():
    w, _, _ = correlated()
    grid = row_grid(w, bits=5, clip=8.0)
    assert torch.equal(gptq(w, grid, feedback("w", torch.eye(40))), round_to_nearest(w, grid))


def test_gptq_zeroes_columns_that_never_saw_input_and_leaves_its_arguments():
    w, H, _ = correlated()
    H[5], H[:, 5] = 0, 0
    before = w.clone(), H.clone()
    q = gptq(w, row_grid(w, bits=6, clip=10.0), feedback("w", H))
    assert not q[:, 5].any() and q[:, 4].any()
    assert torch.equal(w, before[0]) and torch.equal(H, before[1])


@pytest.mark.parametrize("H", [torch.zeros(4, 4), torch.full((4, 4), float("nan")), -torch.eye(4)])
def test_a_hessian_that_is_none_is_named(H):
    with pytest.raises(StatisticsError, match=r"tensor blocks\.0\.w"):
        feedback("blocks.0.w", H)


def test_predicted_kl_is_half_the_weighted_quadratic_form():
    e, H, g = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 10.0])
    product, lookup = Use(H, g), Use(torch.tensor([2.0, 5.0]), g)
    assert product.predicted_kl(e) == 0.5 * (1 * (2 + 4 + 12) + 10 * 3)
    assert lookup.predicted_kl(e) == 0.5 * (1 * (2 + 20) + 10 * 5)
    assert predicted_kl(e, (product, lookup)) == product.predicted_kl(e) + lookup.predicted_kl(e)


def test_feedback_sees_each_use_by_its_weight():
    H, d = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([4.0, 8.0])
    uses = (Use(H, torch.tensor([1.0, 3.0])), Use(d, torch.tensor([6.0, 6.0])))
    assert torch.allclose(column_hessian(uses), (0.25 * H + 0.75 * torch.diag(d)).double())
    assert torch.equal(column_hessian(uses[:1]), H.double())


def test_grid_is_a_value():
    w = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    a, b = row_grid(w, bits=4, clip=3.0), row_grid(w, bits=4, clip=3.0)
    assert isinstance(a, RowGrid) and (a.scale_O == b.scale_O).all() and a.exponent == b.exponent
