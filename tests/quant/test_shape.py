"""Shaped grids: steps that follow sensitivity, and steps from integers alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.artifact.steps import shaped_steps
from quantlab.quant.distortion import Use
from quantlab.quant.gptq import feedback, gptq
from quantlab.quant.shape import Shape, row_sensitivity


def layer(rows=64, columns=48, seed=0):
    """Weights whose rows and columns matter by very different amounts."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(600, columns, generator=generator) * torch.logspace(-1, 1, columns)
    x = x + 0.5 * torch.randn(600, 1, generator=generator)
    use = Use(x.T @ x / 600, torch.logspace(-4, -1, rows)[torch.randperm(rows, generator=generator)])
    return torch.randn(rows, columns, generator=generator), (use,), feedback("w", use.H_II)


@given(level=st.integers(-2000, 2000), a=st.integers(-127, 127), b=st.integers(-127, 127))
@settings(deadline=None)
def test_steps_are_powers_of_two_to_one_rounding(level, a, b):
    (step,) = shaped_steps(level, np.array([a], np.int8), np.array([b], np.int8)).ravel()
    exact = 2.0 ** (level / 64 + (a + b) / 4)  # float64
    assert step.dtype == np.float32 and abs(float(step) - exact) <= 2.0**-24 * exact * (1 + 1e-6)


def test_steps_are_whole_octaves_exactly():
    steps = shaped_steps(-640, np.array([-4, 0, 8], np.int8), np.array([0, 4], np.int8))
    assert steps.tolist() == [[2.0**-11, 2.0**-10], [2.0**-10, 2.0**-9], [2.0**-8, 2.0**-7]]


def test_steps_follow_rows_and_columns():
    """step · sqrt(g_i) · d_j is c for every weight, to half a shape unit for rows, for columns, and half a level."""
    w, uses, fb = layer()
    d_I = torch.empty(48, dtype=torch.float64)
    d_I[fb.order] = 1 / fb.U_II.diagonal().double()
    shape = Shape(w, uses, fb)
    c = 8 * shape.unit  # so coarse that no row has to be bounded
    steps = shape.grid(c, 8).steps_OI.double()
    ratio = (steps * uses[0].g_O.double().sqrt()[:, None] * d_I / c).log2()
    assert ratio.abs().max() <= 2 * 0.125 + 1 / 128 + 1e-6  # float32 steps


def test_twice_c_is_twice_every_step():
    w, uses, fb = layer()
    shape = Shape(w, uses, fb)
    c = 8 * shape.unit  # so coarse that no row has to be bounded
    assert torch.equal(shape.grid(2 * c, 8).steps_OI, 2 * shape.grid(c, 8).steps_OI)


@pytest.mark.parametrize("bits", [5, 8])
def test_every_weight_fits_the_codes_without_being_cut(bits):
    w, uses, fb = layer()
    w[3, 5] = 60.0  # an outlier
    grid = Shape(w, uses, fb).grid(1e-4, bits)
    assert ((w.abs() / grid.steps_OI).amax() <= 2 ** (bits - 1) - 1).all()
    q = gptq(w, grid, fb)
    assert abs(float(q[3, 5] * grid.steps_OI[3, 5]) - 60) < 2  # the others' feedback moves it, nothing clips it


def test_rows_that_the_sample_never_saw_stay_bounded():
    uses = (Use(torch.eye(4), torch.tensor([1.0, 0.0, 1.0, 2.0])),)
    assert row_sensitivity(uses).tolist() == pytest.approx([1.0, 1e-3, 1.0, 2.0])


def test_a_table_and_a_head_add_up_by_row():
    head, table = Use(torch.eye(2) * 3, torch.tensor([1.0, 2.0])), Use(torch.tensor([5.0, 7.0]), torch.tensor([0.5, 0.0]))
    rho = row_sensitivity((head, table))
    # row costs are 6·g + 12·f; shared by the trace of the mixed column Hessian, (1.5·6 + 0.25·12) / 1.75
    assert rho.tolist() == pytest.approx([(6 + 6) * 1.75 / 12, 12 * 1.75 / 12])
