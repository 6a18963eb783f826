"""Dense weights from packed codes: the kernel equals its reference implementation, which is compared with float64."""

import pytest
import torch
from exact_interpreter import exact_interpreter  # noqa: F401 - a fixture of all tests here
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_samples import DTYPES, SHAPES, sample

import quantlab.kernels.unpack_weights as module
from quantlab.errors import ShapeError
from quantlab.kernels.packed import PACKED_WIDTHS
from quantlab.kernels.unpack_weights import unpack, unpack_ref, unpack_triton

UNIT = {torch.float32: 2**-22, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Relative error: two products of float32, then one rounding; of float16 also half of its smallest number."""
KERNEL_SHAPES = [(33, 63), (1, 1), (3, 17), (5, 513)]


def some_rows(count, wanted=7, seed=0):
    return torch.randint(0, count, (wanted,), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(
    shape=st.sampled_from(SHAPES),
    bits=st.sampled_from(PACKED_WIDTHS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_reference_is_float64_rounded(shape, bits, dtype, seed):
    s = sample(shape, bits=min(bits, 8) if dtype == torch.float16 else bits, has_classes=seed % 2 == 0, seed=seed)
    weights = unpack_ref(s.packed, dtype=dtype)
    assert weights.dtype == dtype
    assert ((weights.double() - s.w_OI).abs() <= UNIT[dtype] * s.w_OI.abs() + 2**-25 * (dtype == torch.float16)).all()


@settings(deadline=None, max_examples=20)
@given(shape=st.sampled_from(SHAPES), outliers=st.integers(0, 9), count=st.integers(0, 9), seed=st.integers(0, 2**31))
def test_reference_gathers_rows_with_their_outliers(shape, outliers, count, seed):
    packed = sample(shape, bits=3, outliers=outliers, seed=seed).packed
    rows = some_rows(shape[0], count, seed)
    assert torch.equal(unpack_ref(packed, rows), unpack_ref(packed)[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", PACKED_WIDTHS)
def test_kernel_is_the_reference_in_every_bit(bits, dtype):
    for n in range((DTYPES.index(dtype) + bits) % 3, len(KERNEL_SHAPES), 3):
        outliers = (0, 5, 3, 0)[(n + bits) % 4]
        packed = sample(KERNEL_SHAPES[n], bits=bits, has_classes=(n + bits) % 3 > 0, outliers=outliers, seed=n).packed
        assert torch.equal(unpack_triton(packed, dtype=dtype), unpack_ref(packed, dtype=dtype))


@pytest.mark.parametrize("bits", [4, 5])
def test_kernel_without_ragged_columns_is_the_reference(bits):
    packed = sample((3, 512), bits=bits, outliers=40).packed
    assert torch.equal(unpack_triton(packed), unpack_ref(packed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_gathers_rows(dtype):
    packed = sample((63, 100), bits=6, outliers=60).packed
    rows = some_rows(63, 80)
    assert torch.equal(unpack_triton(packed, rows, dtype), unpack_ref(packed, rows, dtype))
    assert unpack_triton(packed, rows[:0], dtype).shape == (0, 100)


def test_kernel_makes_rows_nan_that_do_not_exist():
    packed = sample((3, 17), bits=3, outliers=5).packed
    weights = unpack_triton(packed, torch.tensor([2, 3, -1, 0]))
    assert weights[1:3].isnan().all() and torch.equal(weights[[0, 3]], unpack_ref(packed)[[2, 0]])


def test_packed_tensors_stay_as_they_are_and_the_kernel_runs_where_it_can(monkeypatch):
    packed = sample((3, 17), bits=5, outliers=4).packed
    words, weights = packed.words.clone(), unpack(packed)
    monkeypatch.setattr(module, "on_kernel", lambda *tensors: True)
    monkeypatch.setattr(module, "unpack_ref", None)
    assert torch.equal(unpack(packed), weights) and torch.equal(packed.words, words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.float64}, "dtype of weights must be float32, bfloat16 or float16, got torch.float64"),
        ({"rows": torch.tensor([0]).int()}, r"rows must be int64 \[N\] on cpu, got torch.int32 \[1\] on cpu"),
        ({"rows": torch.tensor([[0]])}, r"rows must be int64 \[N\] on cpu, got torch.int64 \[1, 1\] on cpu"),
        ({"rows": torch.tensor([0, 3])}, "rows must lie in 0 to 2, got 0 to 3"),
        ({"rows": torch.tensor([-1, 1])}, "rows must lie in 0 to 2, got -1 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ShapeError, match=message):
        unpack(sample((3, 17)).packed, **arguments)
