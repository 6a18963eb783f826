"""Grids with row and column scales: steps that follow sensitivity, and steps from integers alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.artifact.shaped_grid import grid_steps
from quantlab.calib.fisher import Use
from quantlab.format_rules import code_limit
from quantlab.methods.trellis.factors import factors
from quantlab.methods.trellis.shape import HEADROOM, StepScales

COARSE = 64 * 2  # log-step index, so coarse that no row has to be bounded


def layer(rows=64, columns=48, seed=0):
    """Weights whose rows and columns matter by very different amounts, and the factors of both sides."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(600, columns, generator=generator) * torch.logspace(-1, 1, columns)
    x = x + 0.5 * torch.randn(600, 1, generator=generator)
    g = torch.randn(600, rows, generator=generator) * torch.logspace(-2, -0.5, rows)[torch.randperm(rows, generator=generator)]
    use = Use(x.T @ x / 600, g.T @ g / 600)
    return torch.randn(rows, columns, generator=generator), factors("w", (use,))


@given(level=st.integers(-2000, 2000), a=st.integers(-127, 127), b=st.integers(-127, 127))
@settings(deadline=None)
def test_steps_are_powers_of_two_to_one_rounding(level, a, b):
    (step,) = grid_steps(level, np.array([a], np.int8), np.array([b], np.int8)).ravel()
    exact = 2.0 ** (level / 64 + (a + b) / 4)  # float64
    assert step.dtype == np.float32 and abs(float(step) - exact) <= 2.0**-24 * exact * (1 + 1e-6)


def test_steps_are_whole_powers_of_two_exactly():
    steps = grid_steps(-640, np.array([-4, 0, 8], np.int8), np.array([0, 4], np.int8))
    assert steps.tolist() == [[2.0**-11, 2.0**-10], [2.0**-10, 2.0**-9], [2.0**-8, 2.0**-7]]


def test_steps_follow_rows_and_columns():
    """step · d_i · d_j is c for every weight, to half a unit of a row scale, of a column scale, and half a log-step."""
    w, parts = layer()
    shape = StepScales(w, parts)
    c = 2 ** (COARSE / 64 - shape.base)
    steps = torch.from_numpy(shape.grid(round(shape.level(c)), 16).steps_OI).double()
    ratio = (steps * parts.d_O[:, None] * parts.d_I / c).log2()
    assert ratio.abs().max() <= 2 * 0.125 + 1 / 128 + 1e-6  # float32 steps
    assert ratio.abs().max() > 0.05


@pytest.mark.parametrize(("rows", "columns"), [(False, True), (True, False), (False, False)])
def test_a_side_without_scales_has_one_step(rows, columns):
    """Its d is replaced by the root mean square, which keeps Σ (step · d)², the noise, at the same c."""
    w, parts = layer()
    shape = StepScales(w, parts, rows=rows, columns=columns)
    assert shape.a_O.any() == rows and shape.b_I.any() == columns
    steps = torch.from_numpy(shape.grid(round(shape.level(1.0)), 16).steps_OI).double()
    noise = (steps * parts.d_O[:, None] * parts.d_I).square().mean().sqrt()
    assert noise.log2().abs() < 0.05


def test_twice_c_is_twice_every_step():
    w, parts = layer()
    shape = StepScales(w, parts)
    level = round(shape.level(1.0))
    assert shape.level(2.0) == pytest.approx(shape.level(1.0) + 64)
    assert np.array_equal(shape.grid(level + 64, 16).steps_OI, 2 * shape.grid(level, 16).steps_OI)


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
@pytest.mark.parametrize("level", [-3000, -640, -64, 640])
def test_every_weight_fits_the_codes_without_being_cut(bits, level):
    w, parts = layer()
    w[3, 5] = 60.0  # an outlier
    shape = StepScales(w, parts)
    steps = shape.grid(level, bits).steps_OI
    codes = w.abs().numpy().astype(np.float64) / steps
    # a row scale goes no further than 127 quarters of a power of two; log-step index -3000 is 2**-47
    if level > -1000:
        assert codes.max() <= HEADROOM * code_limit(bits) * (1 + 1e-6)
    free = torch.from_numpy(shape.grid(level, bits).a_O) == shape.a_O
    assert free[codes.max(1) < 0.8 * HEADROOM * code_limit(bits)].all()  # rows that fit are not made coarser


def test_arguments_are_left_alone_and_scales_are_the_same_every_time():
    w, parts = layer()
    before = w.clone()
    a, b = StepScales(w, parts).grid(-300, 6), StepScales(w, parts).grid(-300, 6)
    assert torch.equal(w, before)
    assert np.array_equal(a.a_O, b.a_O) and np.array_equal(a.b_I, b.b_I) and a.level == b.level == -300


def test_a_matrix_of_zeros_has_a_grid():
    w, parts = layer()
    grid = StepScales(torch.zeros_like(w), parts).grid(0, 5)
    assert np.isfinite(grid.steps_OI).all() and (grid.steps_OI > 0).all()
