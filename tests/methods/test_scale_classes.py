"""The fit of scale classes: how large rows and columns are, in quarters of a power of two."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.format_rules import CLASSES_PER_POWER
from quantlab.methods.trellis.scale_classes import ZERO, fit_classes


def test_known_scales_of_rows_and_columns_are_recovered():
    """Gaussian weights of 400 x 300: a row's mean square is known to 1/sqrt(150), which is a quarter of a scale class."""
    rng = np.random.default_rng(0)
    row_powers, column_powers = rng.uniform(1, 5, 400), rng.uniform(-2, 2, 300)
    values = np.exp2(row_powers[:, None] + column_powers) * rng.standard_normal((400, 300))
    rows, columns = fit_classes(values.astype(np.float32))
    assert rows.dtype == columns.dtype == np.int16 and rows.shape == (400,) and columns.shape == (300,)
    error = (rows[:, None] + columns) - (ZERO + CLASSES_PER_POWER * (row_powers[:, None] + column_powers))
    assert np.abs(error).max() < 2 and np.square(error).mean() ** 0.5 < 0.55  # two roundings: sqrt(2/12) = 0.41


def test_columns_are_centred():
    values = np.exp2(np.linspace(-1, 4, 64))[None] * np.ones((8, 1))
    rows, columns = fit_classes(values.astype(np.float32))
    assert abs(columns.mean()) < 0.5 and len(set(rows.tolist())) == 1


@pytest.mark.parametrize(("value", "cls"), [(1.0, 8), (2.0, 12), (4.0, 16), (0.5, 5)])
def test_the_class_of_equal_weights_is_four_times_their_logarithm_and_eight(value, cls):
    """The floor of 0.05 squared steps counts below one step: 8 + 2 · log2(0.25 + 0.05) = 4.5."""
    rows, columns = fit_classes(np.full((5, 3), value, np.float32))
    assert (rows[:, None] + columns == cls).all()


def test_empty_rows_and_columns_have_a_class():
    values = np.ones((6, 5), np.float32)
    values[2], values[:, 1] = 0, 0
    rows, columns = fit_classes(values)
    classes = rows[:, None] + columns.astype(int)
    assert classes[2, 1] < classes[2, 0] < classes[0, 0] and classes[0, 1] < classes[0, 0]
    rows, columns = fit_classes(np.zeros((3, 4), np.float32))
    assert (rows[:, None] + columns == round(ZERO + 2 * np.log2(0.05))).all()


@given(
    O=st.integers(1, 9),
    I=st.integers(1, 9),
    scale=st.sampled_from([1e-6, 1.0, 3e4]),
    seed=st.integers(0, 999),
    k=st.integers(1, 9),
)
@settings(deadline=None, max_examples=60)
def test_any_matrix_has_classes_and_a_larger_one_has_larger(O, I, scale, seed, k):
    values = (scale * np.random.default_rng(seed).standard_normal((O, I))).astype(np.float32)
    before = values.copy()
    rows, columns = fit_classes(values)
    assert np.array_equal(values, before)
    larger_rows, larger_columns = fit_classes(values * np.float32(2**k))
    assert larger_rows.mean() + larger_columns.mean() >= rows.mean() + columns.mean() - 1  # roundings
    assert max(np.abs(rows).max(), np.abs(columns).max()) < 200
