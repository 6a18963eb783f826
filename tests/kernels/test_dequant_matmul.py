"""Products with packed codes: kernel and reference implementation against float64, parts of columns, the gradient of x."""

import pytest
import torch
import torch.nn.functional as F
from exact_interpreter import exact_interpreter  # noqa: F401 - a fixture of all tests here
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_samples import DTYPES, SHAPES, sample, surrounded

import quantlab.kernels.dequant_matmul as module
from quantlab.errors import ShapeError
from quantlab.kernels.dequant_matmul import (
    FUSED_ROWS,
    dequant_matmul,
    dequant_matmul_ref,
    dequant_matmul_triton,
    input_gradient,
    input_gradient_ref,
    splits_of,
)
from quantlab.kernels.packed import PACKED_WIDTHS, pack
from quantlab.kernels.unpack_weights import unpack

TOLERANCE = {torch.float32: 2**-20, torch.bfloat16: 2.01 * 2**-8, torch.float16: 2.01 * 2**-11}
"""Share of Σ |x·w|: x · column_scale, or the weight, is rounded, and then the sum; in float32, 513 terms in any order."""
SMALLEST = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2**-21}
"""Share of Σ |w|, and of the sum: half of the smallest float16 per x · column_scale, whose column_scale is at least 0.08."""


def inputs(rows, columns, dtype, seed=0):
    """Return inputs of order 1, with NaN before and after them in memory."""
    return surrounded(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype))


def assert_product(y, x, w_OI):
    x, dtype = x.double(), y.dtype
    reach = TOLERANCE[dtype] * (x.abs() @ w_OI.abs().T) + SMALLEST[dtype] * (1 + w_OI.abs().sum(1))
    assert ((y.double() - x @ w_OI.T).abs() <= reach).all()


@settings(deadline=None, max_examples=30)
@given(shape=st.sampled_from(SHAPES), bits=st.integers(2, 8), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31))
def test_reference_is_the_product(shape, bits, dtype, seed):
    s = sample(shape, bits=bits, has_classes=seed % 2 == 0, seed=seed)
    x = inputs(3, shape[1], dtype, seed)
    assert_product(dequant_matmul_ref(x, s.packed), x, s.w_OI)


@pytest.mark.parametrize("bits", PACKED_WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_is_the_product_for_every_width_and_dtype(bits, dtype):
    for n, (rows, shape) in enumerate([(1, (1, 1)), (3, (5, 17)), (3, (5, 513))]):
        outliers = 0 if dtype == torch.float16 else 4 * (n % 2)
        s = sample(shape, bits=bits, has_classes=(n + bits) % 3 > 0, outliers=outliers, seed=n)
        x = inputs(rows, shape[1], dtype, n) / (64 if bits == 16 else 1)
        assert_product(dequant_matmul_triton(x, s.packed), x, s.w_OI)


@pytest.mark.parametrize("rows", [1, 3, 16, 33])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_is_the_product_for_every_number_of_rows_and_parts(rows, splits, dtype):
    s = sample((63, 500), bits=(4, 6)[rows % 2], seed=rows)
    x = inputs(rows, 500, dtype, rows)
    y = dequant_matmul_triton(x, s.packed, splits)
    assert_product(y, x, s.w_OI)
    if rows == 3:
        assert torch.equal(y, dequant_matmul_triton(x, s.packed, splits))


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_parts_cover_each_column_once(splits):
    """Whole numbers, so that float32 sums them exactly in any order."""
    s = sample((5, 600), bits=8, outliers=9)
    x = inputs(3, 600, torch.float32).round()
    codes = pack(s.codes_OI, torch.ones(5), torch.ones(600), bits=8)
    assert torch.equal(dequant_matmul_triton(x, codes, splits), x @ s.codes_OI.float().T)


def test_kernel_takes_more_rows_than_a_block_and_columns_without_rest():
    s = sample((5, 512), bits=8, outliers=20)
    x = inputs(70, 512, torch.bfloat16)
    assert_product(dequant_matmul_triton(x, s.packed), x, s.w_OI)


@pytest.mark.parametrize("bits", [2, 5])
def test_rows_of_nothing_but_outliers_are_in_the_product(bits):
    codes = torch.full((3, 40), 300).short()
    codes[1] = -301
    codes[2, 1:] = 0
    packed = pack(
        codes,
        torch.ones(3),
        torch.ones(40),
        bits=bits,
        row_class_O=torch.tensor([0, 6, 6]).short(),
        column_class_I=torch.zeros(40).short(),
    )
    x = inputs(2, 40, torch.float32)
    w = codes.double() - torch.tensor([0.0, 0.5, 0.5])[:, None]
    assert_product(dequant_matmul_triton(x, packed), x, w)


def test_large_column_scales_do_not_overflow_float16():
    columns, rows = 2.0**20 * (1 + torch.rand(100, generator=torch.Generator().manual_seed(0))), torch.full((5,), 2.0**-20)
    codes = sample((5, 100), bits=5).codes_OI
    x = inputs(3, 100, torch.float16)
    assert_product(dequant_matmul_triton(x, pack(codes, rows, columns)), x, codes.double() * rows[:, None] * columns)


@pytest.mark.parametrize("run", [dequant_matmul, dequant_matmul_triton])
def test_leading_axes_stay_and_may_be_empty(run):
    packed = sample((5, 17), bits=5, outliers=2).packed
    x = inputs(6, 17, torch.float32)
    assert torch.equal(run(x.view(2, 3, 17), packed), run(x, packed).view(2, 3, 5))
    assert run(x[0], packed).shape == (5,)
    assert run(x[:0].view(2, 0, 17), packed).shape == (2, 0, 5)


def test_kernel_runs_where_it_can_up_to_a_number_of_rows(monkeypatch):
    packed = sample((5, 17), bits=5, outliers=2).packed
    few, many = inputs(FUSED_ROWS, 17, torch.bfloat16), inputs(FUSED_ROWS + 1, 17, torch.bfloat16)
    assert torch.equal(dequant_matmul(few, packed), dequant_matmul_ref(few, packed))
    monkeypatch.setattr(module, "on_kernel", lambda *tensors: True)
    assert torch.equal(dequant_matmul(few, packed), dequant_matmul_triton(few, packed))
    assert torch.equal(dequant_matmul(many, packed), F.linear(many, unpack(packed, dtype=torch.bfloat16)))


@pytest.mark.parametrize("is_on_kernel", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_x_is_the_product_with_the_transpose(is_on_kernel, dtype, monkeypatch):
    monkeypatch.setattr(module, "on_kernel", lambda *tensors: is_on_kernel)
    s = sample((63, 17), bits=5, outliers=0 if dtype == torch.float16 else 5)
    x, grad = inputs(3, 17, dtype).requires_grad_(), inputs(3, 63, dtype, seed=1)
    dequant_matmul(x, s.packed).backward(grad)
    assert_product(x.grad, grad, s.w_OI.T)


@pytest.mark.parametrize("bits", PACKED_WIDTHS)
@pytest.mark.parametrize("has_classes", [False, True])
def test_input_gradient_of_the_kernel_and_of_the_reference_is_the_product(bits, has_classes, monkeypatch):
    monkeypatch.setattr("quantlab.kernels.unpack_weights.on_kernel", lambda *tensors: True)
    s = sample((70, 33), bits=bits, has_classes=has_classes, outliers=3)
    grad = inputs(4, 70, torch.float32, seed=bits).view(2, 2, 70)
    for gradient in (input_gradient, input_gradient_ref):
        found = gradient(grad, s.packed)
        assert found.shape == (2, 2, 33)
        assert_product(found, grad, s.w_OI.T)


@given(
    M=st.integers(1, 64),
    R=st.integers(1, 10**5),
    I=st.integers(1, 10**5),
    bits=st.sampled_from(PACKED_WIDTHS),
    periods=st.integers(1, 200),
)
def test_parts_are_few_enough(M, R, I, bits, periods):
    splits = splits_of(M, R, I, bits, periods)
    assert 1 <= splits <= periods
    assert splits == 1 or (8 * splits * M * R <= R * I * bits / 16 and splits * -(R // -64) <= 512)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.ones(2, 3), r"got torch.float32 \[2, 3\] on cpu"),
        (torch.tensor(1.0), r"got torch.float32 \[\] on cpu"),
        (torch.ones(17).double(), r"got torch.float64 \[17\] on cpu"),
        (torch.ones(17, device="meta"), r"got torch.float32 \[17\] on meta"),
    ],
)
def test_what_does_not_fit_is_refused(x, got):
    with pytest.raises(ShapeError, match=r"x must be float32, bfloat16 or float16 \[..., 17\] on cpu, " + got):
        dequant_matmul(x, sample((3, 17)).packed)
