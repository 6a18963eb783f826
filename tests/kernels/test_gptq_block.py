"""The inner loop of GPTQ: kernel and reference implementation against float64, and what its errors are for."""

import pytest
import torch
from exact_interpreter import exact_interpreter  # noqa: F401 - a fixture of all tests here
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.errors import ConfigError, ShapeError
from quantlab.kernels.gptq_block import gptq_block, gptq_block_ref, gptq_block_triton

pytest.importorskip("triton")

SHAPES = [(1, 1, 1), (2, 9, 33), (1, 63, 5), (1, 128, 7), (1, 2, 500)]
ERROR_TOLERANCE = 1e-5
"""Allowed where errors are near 1: float32 sums of up to 128 products, with and without fused multiply-add."""
TIE = 1e-4
"""Steps from the middle between two codes within which float32 may choose either: the same sums, divided by steps of 0.1."""


def sample(shape, seed=0):
    """Weights, steps of which one is 0, and factors as of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    N, B, O = shape
    x_NBT = torch.randn(N, B, 3 * B + 1, generator=generator) + 0.5
    U = torch.linalg.cholesky(x_NBT @ x_NBT.mT / x_NBT.shape[2]).mT
    steps = 0.2 * torch.rand(shape, generator=generator) + 0.1
    if O > 1:
        steps[0, 0, 1] = 0.0
    return torch.randn(shape, generator=generator), steps, U


def in_float64(w, steps, limit, U):
    """Codes and errors [N, B, O], and how far w / step was from the middle between two codes, clipped ones apart."""
    w, steps, U = w.double().clone(), steps.double(), U.double()
    codes, errors, margins = torch.zeros_like(w), torch.zeros_like(w), torch.ones_like(w)
    for j in range(w.shape[1]):
        v = torch.where(steps[:, j] > 0, w[:, j] / steps[:, j], 0.0)
        codes[:, j] = v.round().clamp(-limit, limit)
        margins[:, j] = torch.where(v.abs() < limit + 1, 0.5 - (v - v.round()).abs(), 1.0)
        errors[:, j] = (w[:, j] - codes[:, j] * steps[:, j]) / U[:, j, j, None]
        w -= U[:, j, :, None] * errors[:, None, j]
    return codes.to(torch.int8), errors, margins


def by_reference(w, steps, limit, U):
    codes, errors = zip(*(gptq_block_ref(*m[:2], limit, m[2]) for m in zip(w, steps, U, strict=True)), strict=True)
    return torch.stack(codes), torch.stack(errors)


@pytest.mark.parametrize("function", [by_reference, gptq_block_triton])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_those_of_float64_where_no_tie_is_near(shape, function):
    """A row is compared up to its first near-tie: after one, codes may differ, and all later weights with them."""
    w, steps, U = sample(shape)
    codes, errors = function(w, steps, 15, U)
    wanted, wanted_errors, margins = in_float64(w, steps, 15, U)
    is_safe = (margins > TIE).cummin(1).values
    assert float(is_safe.float().mean()) > 0.8
    assert codes.dtype == torch.int8 and errors.dtype == torch.float32
    assert torch.equal(codes[is_safe], wanted[is_safe])
    torch.testing.assert_close(errors[is_safe].double(), wanted_errors[is_safe], rtol=0, atol=ERROR_TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_kernel_and_reference_agree_on_these_seeds(shape):
    w, steps, U = sample(shape, seed=1)
    codes, errors = gptq_block_triton(w, steps, 7, U)
    wanted, wanted_errors = by_reference(w, steps, 7, U)
    assert torch.equal(codes, wanted)
    torch.testing.assert_close(errors, wanted_errors, rtol=0, atol=ERROR_TOLERANCE)


@given(seed=st.integers(0, 1000), limit=st.sampled_from([1, 7, 127]))
@settings(deadline=None, max_examples=6)
def test_errors_are_what_later_columns_need(seed, limit):
    """Whichever codes are chosen: w - codes · step = errors · U_jj, of weights that have all earlier errors in them."""
    w, steps, U = sample((1, 9, 16), seed=seed)
    for function in (by_reference, gptq_block_triton):
        codes, errors = function(w, steps, limit, U)
        rest = w.double()
        for j in range(9):
            wanted = (rest[:, j] - codes[:, j] * steps[:, j]) / U[:, j, j]
            torch.testing.assert_close(errors[:, j].double(), wanted, rtol=0, atol=ERROR_TOLERANCE * max(1, 4 // limit))
            v = torch.where(steps[:, j] > 0, rest[:, j] / steps[:, j], 0.0)
            assert ((codes[:, j] - v.clamp(-limit, limit)).abs() <= 0.5 + TIE).all()
            rest = rest - U[:, j, :, None] * errors[:, None, j]


def test_a_matrix_has_the_same_bits_alone_and_in_a_batch():
    w, steps, U = sample((3, 9, 5))
    before = w.clone(), steps.clone(), U.clone()
    batch = gptq_block(w, steps, 15, U)
    for n in range(3):
        alone = gptq_block(w[n], steps[n], 15, U[n])
        assert all(torch.equal(a, b[n]) for a, b in zip(alone, batch, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(alone, gptq_block_ref(w[n], steps[n], 15, U[n]), strict=True))
    gptq_block_triton(w, steps, 15, U)
    assert all(torch.equal(a, b) for a, b in zip(before, (w, steps, U), strict=True))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_block_is_read_above_its_diagonal_alone():
    """The block is a view into a larger factor, whose other half may hold anything."""
    w, steps, U = sample((2, 16, 5))
    larger = torch.full((2, 40, 40), torch.nan)
    larger[:, 8:24, 8:24] = torch.where(torch.ones(16, 16).triu().bool(), U, torch.inf)
    for function in (by_reference, gptq_block_triton):
        wanted, got = (function(w, steps, 15, factor) for factor in (U, larger[:, 8:24, 8:24]))
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


def test_no_rows():
    for function in (gptq_block, gptq_block_triton):
        codes, errors = function(torch.ones(2, 4, 0), torch.ones(2, 4, 0), 7, torch.eye(4).expand(2, 4, 4))
        assert codes.shape == errors.shape == (2, 4, 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"w": torch.ones(4)}, ShapeError, r"weights must be float32 \[B, O\] or \[N, B, O\], B 1 to 128, got .* \[4\]"),
        ({"w": torch.ones(129, 6)}, ShapeError, r"weights must be .*, B 1 to 128, got torch.float32 \[129, 6\]"),
        ({"w": torch.ones(4, 6).half()}, ShapeError, r"weights must be .*, got torch.float16 \[4, 6\]"),
        ({"steps": torch.ones(4, 1)}, ShapeError, r"steps must be float32 \[4, 6\], got torch.float32 \[4, 1\]"),
        ({"U": torch.eye(5)}, ShapeError, r"U must be float32 \[4, 4\], got torch.float32 \[5, 5\]"),
        ({"U": torch.eye(4).double()}, ShapeError, r"U must be float32 \[4, 4\], got torch.float64 \[4, 4\]"),
        ({"U": torch.eye(4, device="meta")}, ConfigError, "U must be on cpu like the weights, got meta"),
        ({"limit": 128}, ConfigError, "limit must be 1 to 127, got 128"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, error, message):
    right = {"w": torch.ones(4, 6), "steps": torch.ones(4, 6), "limit": 7, "U": torch.eye(4)}
    with pytest.raises(error, match=message):
        gptq_block(*(right | change).values())
