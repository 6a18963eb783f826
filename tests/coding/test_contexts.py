"""Scale classes, codes and symbols: each rule of the format on its own."""

import numpy as np
import pytest
from coder_samples import context_of, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.coding.contexts import classes_of, raw_bits
from quantlab.coding.symbols import from_symbols, join_low_bits_, low_bits, to_symbols
from quantlab.errors import FormatError
from quantlab.format_rules import MAX_CLASS, STATES, TABLE_CLASSES, WIDE, code_range, next_states, shifts_of, tables_of


def test_classes_are_sums_of_shares_within_bounds():
    context = context_of(rows=(-3, 80), columns=(-1000, 3, 1000))
    assert classes_of(context).tolist() == [[0, 0, 83], [0, 83, 83]]


def test_a_raw_bit_more_for_each_power_of_two_from_28_on():
    class_I = np.arange(MAX_CLASS + 1, dtype=np.uint8)
    assert shifts_of(class_I).tolist() == [0] * 28 + [shift for shift in range(1, 15) for _ in range(4)]
    assert tables_of(class_I).tolist() == [*range(28), *([24, 25, 26, 27] * 14)]
    assert tables_of(class_I).max() == TABLE_CLASSES - 1


@given(seed=st.integers(0, 2**32), shape=st.tuples(st.integers(0, 5), st.integers(0, 5)))
@settings(max_examples=30, deadline=None)
def test_raw_bits_are_the_sum_of_the_shifts(seed, shape):
    _, context = random_codes(np.random.default_rng(seed), shape, 1, "beyond")
    assert raw_bits(context) == shifts_of(classes_of(context)).sum()


def test_weights_that_bypass_the_trellis_pass_the_state_on():
    """Path (0, 2), (1, 1), (2, 0): the state after an odd k passes the second weight, which bypasses, to the third."""
    class_OI = np.full((3, 3), 20, np.uint8)
    class_OI[1, 1] = 5
    state = next_states(8)[0, 1]
    second = next_states(8)[state, 0]
    code_OI = np.zeros((3, 3), np.int16)
    code_OI[0, 2], code_OI[1, 1] = 2, -6  # k: 1, -3
    code_OI[2, 0] = 2 * 7 + (state & 1)
    assert to_symbols(code_OI, class_OI, 8, "blocks").tolist() == [[0, 0, 1], [0, -3, 0], [-7 if state & 1 else 7, 0, 0]]
    assert state != second, "otherwise this could not tell a passed state from a moved one"


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("number", [0, 5, 6, 83])
def test_symbols_reach_exactly_as_far_as_codes(states, number):
    class_OI = np.full((1, 1), number, np.uint8)
    low, high = code_range(WIDE, states)
    for symbol in (low >> (states > 1), high >> (states > 1)):
        symbol_OI = np.array([[symbol]], np.int16)
        code_OI = from_symbols(symbol_OI, class_OI, states, "columns")
        assert to_symbols(code_OI, class_OI, states, "columns") == symbol_OI
        with pytest.raises(FormatError, match="symbols reach"):
            from_symbols(symbol_OI + np.sign(symbol_OI), class_OI, states, "columns")


def test_low_bits_are_in_order_and_most_significant_first():
    symbol_OI, shift_OI = np.array([[-1, 5, 6], [-8, 32767, 1]], np.int16), np.array([[2, 0, 3], [4, 14, 1]], np.uint8)
    assert "".join(map(str, low_bits(symbol_OI, shift_OI))) == "11" + "110" + "1000" + "1" * 14 + "1"
    packed = np.concatenate([np.packbits(low_bits(symbol_OI, shift_OI)), np.zeros(2, np.uint8)])
    restored = symbol_OI >> shift_OI
    assert join_low_bits_(restored, shift_OI, packed, 0) == 24
    assert (restored == symbol_OI).all()
