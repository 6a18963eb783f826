"""Weights on a grid of row times column scales: the kernel equals its reference implementation, gradients by hand."""

import numpy as np
import pytest
import torch
from exact_interpreter import exact_interpreter  # noqa: F401 - a fixture of all tests here
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quantlab.kernels.fake_quant as module
from quantlab.errors import ConfigError, ShapeError
from quantlab.kernels.fake_quant import (
    FakeQuant,
    fake_quant,
    fake_quant_grad_ref,
    fake_quant_grad_triton,
    fake_quant_ref,
    fake_quant_triton,
)

pytest.importorskip("triton")

SHAPES = [(1, 1), (1, 500), (63, 63), (33, 257), (100, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIMITS = [None, 1, 7]
SUM_TOLERANCE = 1e-4
"""Error of float32 sums of up to 500 terms below 7 · 4: half a unit in the last place of each partial sum, 2**-24 · 500 · 3."""


def sample(shape, dtype=torch.float32, seed=0):
    """A gradient, weights of which some are ties of exact steps, and scales of which one row has none."""
    generator = torch.Generator().manual_seed(seed)
    O, I = shape
    row, column = 0.1 * torch.rand(O, generator=generator) + 0.05, torch.rand(I, generator=generator) + 0.5
    w = torch.randn(shape, generator=generator)
    row[O // 2], column[I // 2] = 0.25, 1.0
    w[O // 2] = torch.randint(-9, 10, (I,), generator=generator) / 8
    if O > 2:
        row[1] = 0.0
    return torch.randn(shape, generator=generator).to(dtype), w.to(dtype), row, column


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_and_reference_give_the_same_bits(shape, dtype, limit):
    _, w, row, column = sample(shape, dtype)
    out = fake_quant_triton(w, row, column, limit)
    assert out.dtype == dtype
    assert torch.equal(out, fake_quant_ref(w, row, column, limit))
    assert torch.equal(out, fake_quant(w, row, column, limit))


@given(w=arrays(np.float32, (3, 40), elements=st.floats(width=32)))
@settings(deadline=None, max_examples=25)
def test_steps_of_one_round_half_to_even_whatever_the_number(w):
    w = torch.from_numpy(w)
    w[0, :8] = torch.tensor([0.5, -1.5, 2.5, 2.0**22 + 0.5, 2.0**23 - 0.5, -(2.0**23) - 1, 0.49999997, -0.0])
    for function in (fake_quant_ref, fake_quant_triton):
        out = function(w, torch.ones(3), torch.ones(40))
        torch.testing.assert_close(out, w.round(), rtol=0, atol=0, equal_nan=True)


@given(w=arrays(np.float32, (4, 24), elements=st.floats(-1e3, 1e3, width=32)), seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_error_is_at_most_half_a_step_and_rounding_twice_changes_nothing(w, seed):
    w, (_, _, row, column) = torch.from_numpy(w), sample((4, 24), seed=seed)
    out, step = fake_quant(w, row, column), row[:, None] * column
    # float32 division and product round by half a unit in the last place of w each
    assert ((out - w).abs() <= 0.5 * step + 2e-7 * w.abs())[step > 0].all()
    assert not out[step == 0].any()
    assert torch.equal(fake_quant(out, row, column), out)


@pytest.mark.parametrize("w", [torch.zeros(3, 5), torch.full((3, 5), 0.7), torch.eye(5)[:3] * 1e6])
def test_zeros_constants_and_an_outlier_within_a_limit(w):
    before = w.clone()
    for function in (fake_quant_ref, fake_quant_triton):
        out = function(w, torch.full((3,), 0.5), torch.ones(5), 3)
        assert torch.equal(out, (2 * w).round().clamp(-3, 3) / 2)
    assert torch.equal(w, before)


def test_arguments_that_are_not_contiguous():
    _, w, row, column = sample((40, 300))
    out = fake_quant_triton(w[:, ::2], row, column[::2])
    assert torch.equal(out, fake_quant_ref(w, row, column)[:, ::2])
    assert torch.equal(fake_quant_triton(w.T, column, row), fake_quant_ref(w, row, column).T)


def test_no_weights():
    assert fake_quant_triton(torch.empty(0, 5), torch.empty(0), torch.ones(5)).shape == (0, 5)
    assert fake_quant_ref(torch.empty(0, 5), torch.empty(0), torch.ones(5)).shape == (0, 5)


@pytest.mark.parametrize("limit", LIMITS)
def test_gradients_are_those_of_a_rounding_error_held_constant(limit):
    """LSQ in float64: clamp(w / step) plus a constant, times step, differentiated by torch."""
    grad, w, row, column = (t.double() for t in sample((20, 30)))
    # none exactly at the limit, where LSQ stops the gradient and torch.clamp does not
    w, row, column = (t.requires_grad_() for t in (w + 0.001, row.clamp_min(0.1), column))
    step = row[:, None] * column
    v = w / step if limit is None else (w / step).clamp(-limit, limit)
    ((v + (v.round() - v).detach()) * step).backward(grad)
    got = fake_quant_grad_ref(grad, w.detach(), row.detach(), column.detach(), limit)
    for mine, t in zip(got, (w, row, column), strict=True):
        torch.testing.assert_close(mine, t.grad, rtol=1e-12, atol=1e-12)


def test_gradients_by_hand():
    """Steps of 0.5 and limit 3: inside, at the limit, outside, and a row without steps."""
    w = torch.tensor([[0.3, 1.5, -9.0], [0.3, 1.5, -9.0]])
    grad, row, column = torch.tensor([[1.0, 10.0, 100.0], [1.0, 10.0, 100.0]]), torch.tensor([0.5, 0.0]), torch.ones(3)
    for function in (fake_quant_grad_ref, fake_quant_grad_triton):
        grad_w, grad_row, grad_column = function(grad, w, row, column, 3)
        assert grad_w.tolist() == [[1.0, 0.0, 0.0], [1.0, 10.0, 100.0]]
        torch.testing.assert_close(grad_row, torch.tensor([(1 - 0.6) * 1 + 3 * 10 - 3 * 100, 0.0]))
        torch.testing.assert_close(grad_column, torch.tensor([(1 - 0.6) * 0.5, 3 * 10 * 0.5, -3 * 100 * 0.5]))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_backward_kernel_against_float64(shape, dtype, limit):
    grad, w, row, column = sample(shape, dtype)
    got = fake_quant_grad_triton(grad, w, row, column, limit)
    wanted = fake_quant_grad_ref(grad.double(), w.double(), row.double(), column.double(), limit)
    assert got[0].dtype == dtype and got[1].dtype == got[2].dtype == torch.float32
    assert torch.equal(got[0].double(), wanted[0])
    for mine, sums in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(mine.double(), sums, rtol=0, atol=SUM_TOLERANCE)


@pytest.mark.parametrize("is_kernel", [False, True])
@pytest.mark.parametrize("limit", [None, 3])
def test_what_needs_no_gradient_gets_none(limit, is_kernel):
    grad, w, row, column = sample((5, 40))
    wanted = fake_quant_grad_ref(grad, w, row, column, limit)
    for needed in ((0, 1, 2), (0,), (2,), (0, 1)):
        leaves = [t.clone().requires_grad_(n in needed) for n, t in enumerate((w, row, column))]
        FakeQuant.apply(*leaves, limit, is_kernel).backward(grad)
        for n, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (n in needed)
            if n in needed:
                torch.testing.assert_close(leaf.grad, wanted[n], rtol=0, atol=SUM_TOLERANCE)


def test_a_gradient_that_goes_straight_through_costs_nothing(monkeypatch):
    monkeypatch.setattr(module, "fake_quant_grad_triton", None)
    grad, w, row, column = sample((5, 40))
    FakeQuant.apply(w.requires_grad_(), row, column, None, True).backward(grad)
    assert torch.equal(w.grad, grad)


def test_gradients_of_scales_have_the_same_bits_each_time():
    grad, w, row, column = sample((70, 300))
    first, second = (fake_quant_grad_triton(grad, w, row, column, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"w": torch.ones(4)}, ShapeError, r"weights must be float32, bfloat16 or float16 \[O, I\], got torch.float32 \[4\]"),
        ({"w": torch.ones(4, 6).double()}, ShapeError, r"weights must be .*, got torch.float64 \[4, 6\]"),
        ({"row": torch.ones(6)}, ShapeError, r"row scales must be float32 \[4\], got torch.float32 \[6\]"),
        ({"row": torch.ones(4).half()}, ShapeError, r"row scales must be float32 \[4\], got torch.float16 \[4\]"),
        ({"column": torch.ones(6, 1)}, ShapeError, r"column scales must be float32 \[6\], got torch.float32 \[6, 1\]"),
        ({"column": torch.ones(6, device="meta")}, ConfigError, "column scales must be on cpu like the weights, got meta"),
        ({"limit": 0}, ConfigError, "limit must be 1 or more, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, error, message):
    right = {"w": torch.ones(4, 6), "row": torch.ones(4), "column": torch.ones(6), "limit": None}
    with pytest.raises(error, match=message):
        fake_quant(*(right | change).values())
