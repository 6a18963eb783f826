"""The layout of packed matrices: nothing is lost, the bits lie where the formula says, the width is the cheapest."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_samples import SHAPES, sample
from torch import Tensor

from quantlab.errors import ConfigError, ShapeError
from quantlab.kernels.packed import LANES, PACKED_WIDTHS, pack
from quantlab.kernels.unpack_weights import unpack_ref

widths, seeds, outlier_counts = st.sampled_from(PACKED_WIDTHS), st.integers(0, 2**31), st.integers(0, 20)


def decoded(packed, row, column):
    """One code from the formula of the layout, by a number as long as the lane."""
    lane = packed.words[row, :, column % LANES].contiguous().numpy().tobytes()
    digit = int.from_bytes(lane, "little") >> (column // LANES * packed.bits) & (2**packed.bits - 1)
    return digit - 2 ** (packed.bits - 1)


@settings(deadline=None, max_examples=40)
@given(shape=st.sampled_from(SHAPES), bits=widths, has_classes=st.booleans(), outliers=outlier_counts, seed=seeds)
def test_every_weight_comes_back_in_float32(shape, bits, has_classes, outliers, seed):
    s = sample(shape, bits=bits, has_classes=has_classes, outliers=outliers, seed=seed)
    codes, half = s.codes_OI.numpy().astype(np.float32), s.half_OI.numpy().astype(np.float32)
    weights = (codes - half) * s.row_scale_O.numpy()[:, None] * s.column_scale_I.numpy()
    assert np.array_equal(unpack_ref(s.packed).numpy(), weights)


@pytest.mark.parametrize("bits", PACKED_WIDTHS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (5, 513)])
def test_bits_lie_where_the_formula_says(bits, shape):
    s = sample(shape, bits=bits, outliers=3)
    clamped = s.codes_OI.clamp(-s.packed.limit, s.packed.limit)
    assert [[decoded(s.packed, i, j) for j in range(shape[1])] for i in range(shape[0])] == clamped.tolist()
    lower = s.packed.half_row_O.tolist()
    assert [[decoded(s.packed, i, j) for j in range(shape[1])] for i in lower] == (2 * s.half_OI).tolist()


@pytest.mark.parametrize("bits", PACKED_WIDTHS)
def test_padding_is_code_0_and_less_than_a_word(bits):
    packed = sample((3, 17), bits=bits).packed
    assert all(decoded(packed, row, column) == 0 for row in range(len(packed.words)) for column in range(17, 32))
    assert packed.words.shape[1] == -(2 * bits // -32)


@settings(deadline=None, max_examples=25)
@given(shape=st.sampled_from(SHAPES), spread=st.sampled_from([0.3, 2, 20, 300, 9000]), has_classes=st.booleans(), seed=seeds)
def test_no_width_needs_fewer_bytes_than_the_chosen_one(shape, spread, has_classes, seed):
    generator = np.random.default_rng(seed)
    codes = torch.from_numpy((generator.standard_t(3, shape) * spread).clip(-32768, 32767).astype(np.int16))
    rows, columns = torch.ones(shape[0]), torch.ones(shape[1])
    classes = {"row_class_O": torch.zeros(shape[0], dtype=torch.int16), "column_class_I": torch.full((shape[1],), 6).short()}
    given_classes = classes if has_classes else {}
    chosen = pack(codes, rows, columns, **given_classes)
    assert chosen.nbytes == min(pack(codes, rows, columns, bits=bits, **given_classes).nbytes for bits in PACKED_WIDTHS)


def test_bytes_are_those_of_all_tensors():
    packed = sample((63, 500), bits=5, outliers=7).packed
    R = 63 + int(packed.half_row_O.max()) - 62
    by_hand = 4 * (R * 5 * LANES + 63 + 500 + 63 + 64) + 8 * len(packed.outlier_value)
    assert packed.nbytes == by_hand and packed.words.shape == (R, 5, LANES)


def test_rows_of_one_class_share_a_half_row():
    rows, columns = torch.tensor([6, 0, 6, 20, 30, -1]).short(), torch.tensor([0, 6, 3]).short()
    ones = torch.ones(6), torch.ones(3)
    packed = pack(torch.zeros(6, 3, dtype=torch.int8), *ones, row_class_O=rows, column_class_I=columns)
    assert packed.half_row_O.tolist() == [6, 7, 6, 6, 6, 8]
    half = [[0.5, 0.5, 0.5], [0, 0.5, 0], [0, 0, 0]]
    assert (-unpack_ref(packed)).tolist() == [half[i - 6] for i in packed.half_row_O]


@pytest.mark.parametrize("peak", [1e-30, 1.0, 1.5, 3e30])
def test_column_scales_are_brought_to_at_most_1_without_changing_weights(peak):
    columns, rows = torch.tensor([peak, peak / 3, 0.0]), torch.tensor([0.7 / peak])
    packed = pack(torch.tensor([[5, -3, 1]]).short(), rows, columns)
    assert 0.5 <= packed.column_scale_I.max() < 1
    assert torch.equal(unpack_ref(packed), torch.tensor([[5.0, -3.0, 1.0]]) * rows * columns)


def test_arguments_stay_as_they_are_and_tensors_move_together():
    s = sample((3, 17), bits=4, outliers=2)
    codes, rows, columns = s.codes_OI.clone(), s.row_scale_O.clone(), s.column_scale_I.clone()
    packed = pack(codes, rows, columns, bits=2)
    assert all(map(torch.equal, (codes, rows, columns), (s.codes_OI, s.row_scale_O, s.column_scale_I)))
    moved = packed.to("meta")
    assert {getattr(moved, f.name).device.type for f in fields(moved) if isinstance(getattr(moved, f.name), Tensor)} == {"meta"}
    assert moved.nbytes == packed.nbytes and moved.bits == 2


ONES = {"codes_OI": torch.ones(2, 3, dtype=torch.int8), "row_scale_O": torch.ones(2), "column_scale_I": torch.ones(3)}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"bits": 9}, ConfigError, "bits must be one of 2, 3, 4, 5, 6, 7, 8, 16, got 9"),
        (
            {"codes_OI": torch.ones(2, 3)},
            ShapeError,
            r"codes must be int8 or int16 \[O, I\], O and I above 0, got float32 \[2, 3\]",
        ),
        ({"codes_OI": torch.ones(2, 0, dtype=torch.int8)}, ShapeError, r"O and I above 0, got int8 \[2, 0\]"),
        ({"row_scale_O": torch.ones(3)}, ShapeError, r"row scales must be float32 \[2\] on cpu, got float32 \[3\] on cpu"),
        ({"column_scale_I": torch.ones(3).double()}, ShapeError, r"column scales must be float32 \[3\] on cpu, got float64"),
        ({"column_scale_I": torch.ones(3, device="meta")}, ShapeError, r"on cpu, got float32 \[3\] on meta"),
        ({"row_class_O": torch.ones(2).short()}, ShapeError, "row classes are given without column classes"),
        (
            {"row_class_O": torch.ones(2).short(), "column_class_I": torch.ones(3).int()},
            ShapeError,
            r"column classes must be int16 \[3\] on cpu, got int32 \[3\] on cpu",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changed, error, message):
    with pytest.raises(error, match=message):
        pack(**(ONES | changed))
