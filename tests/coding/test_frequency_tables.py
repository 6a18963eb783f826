"""Frequency tables: exact sums, a round trip through hostile bytes, and a loss that is known."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.coding.codecs import encode_smallest
from quantlab.coding.frequency_tables import (
    FREQUENCY_SHIFT,
    PLACE_MASK,
    SYMBOL_SHIFT,
    ClassTable,
    TableSet,
    fit_tables,
    sets_from_bytes,
    sets_to_bytes,
)
from quantlab.errors import FormatError
from quantlab.format_rules import OFFSET, TABLE_CLASSES, TOTAL


@st.composite
def class_tables(draw):
    low = draw(st.integers(-127, 127))
    n = draw(st.integers(0, 128 - low))
    logs = draw(st.binary(min_size=n + 1, max_size=n + 1))
    return ClassTable(low if n else 0, logs)


@st.composite
def table_sets(draw):
    """A few tables, in any order and repeated."""
    tables = draw(st.lists(class_tables(), min_size=1, max_size=4))
    return TableSet(tuple(draw(st.lists(st.sampled_from(tables), min_size=TABLE_CLASSES, max_size=TABLE_CLASSES))))


TABLE_SETS = st.lists(table_sets(), max_size=3)


def gaussian_counts(classes=TABLE_CLASSES, weights=3_000_000, seed=0):
    """Counts of rounded Gaussians whose deviations grow by a quarter of a power of two for each class."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((classes, 256), np.int64)
    for c in range(classes):
        symbols = np.rint(rng.standard_normal(weights // classes) * 2.7 * 2 ** ((c - classes / 2) / 4)).astype(int)
        counts[c] = np.bincount(symbols.clip(-127, 127) + OFFSET, minlength=256)
    return counts


def entropy_bits(counts):
    probability = counts / counts.sum(1, keepdims=True)
    return -(counts * np.log2(np.where(counts > 0, probability, 1))).sum()


@given(sets=TABLE_SETS)
@settings(max_examples=60, deadline=None)
def test_bytes_round_trip(sets):
    assert sets_from_bytes(sets_to_bytes(sets)) == sets


@given(sets=TABLE_SETS)
@settings(max_examples=60, deadline=None)
def test_frequencies_sum_exactly_and_are_positive_on_the_support(sets):
    for tables in sets:
        frequencies = tables.frequencies
        assert (frequencies.sum(1) == TOTAL).all()
        for row, table in zip(frequencies, tables.classes, strict=True):
            support = row[table.low + OFFSET :][: table.n]
            assert row[0] >= 1 and (support >= 1).all()
            assert row[0] + support.sum() == TOTAL


def test_the_remainder_goes_to_the_first_of_the_largest():
    def frequencies(*logs):
        return TableSet((ClassTable(0, bytes(logs)),)).frequencies[0, [0, *range(OFFSET, OFFSET + len(logs) - 1)]].tolist()

    assert frequencies(7) == [TOTAL]
    assert frequencies(255, 255) == [2048, 2048]
    assert frequencies(16, 8, 16) == [1024, 2048, 1024]
    assert frequencies(9, 9, 9) == [1366, 1365, 1365]  # each rounds to 1365
    assert frequencies(0, 0, 9, 9, 9) == [1215, 1213, 556, 556, 556]  # 1213 each, two are left
    assert frequencies(0, 0, 255, 255) == [2047, 2047, 1, 1]


def test_rare_symbols_take_from_the_largest_one_by_one():
    """128 symbols just above nothing and 127 large ones: the sum before correction is far above TOTAL."""
    table = TableSet((ClassTable(-127, bytes([255] * 128 + [0] * 128)),))
    row = table.frequencies[0]
    assert row.sum() == TOTAL and row.min() == 1 and row[128:].min() >= 30 and np.ptp(row[128:]) <= 1


def test_lengths_are_those_of_the_frequencies():
    tables = TableSet((ClassTable(-1, bytes([24, 8, 16, 24])), ClassTable(0, b"\0")))
    assert tables.frequencies[0, 126:131].tolist() == [0, 2048, 1024, 512, 0]
    assert tables.lengths[0, 126:131].tolist() == [19, 1, 2, 3, 19]
    assert tables.lengths[0, 0] == 19
    assert (tables.lengths[1] == 16).all()


def test_entries_name_symbol_frequency_and_place_of_every_slot():
    tables = fit_tables(gaussian_counts(classes=3, weights=3000))
    expected = [
        frequency << FREQUENCY_SHIFT | ((column - OFFSET) & 255) << SYMBOL_SHIFT | place
        for row in tables.frequencies.tolist()
        for column, frequency in enumerate(row)
        for place in range(frequency)
    ]
    assert tables.entries.tolist() == expected
    assert max(expected) & PLACE_MASK < TOTAL


def test_loss_on_gaussian_counts_is_below_a_tenth_of_a_percent():
    """Logarithms, 12-bit frequencies and escapes cost 0.065 %, the stored tables 0.047 % of 3 M weights at 3.4 bits."""
    counts = gaussian_counts()
    tables = fit_tables(counts)
    ideal = entropy_bits(counts)
    stored = 8 * len(encode_smallest(sets_to_bytes([tables]))[1])
    assert 3.2 < ideal / counts.sum() < 3.8
    assert 1 <= (counts * tables.lengths).sum() / ideal < 1.0007
    assert stored / ideal < 0.0006


def test_a_far_symbol_escapes_when_rare_and_is_in_the_support_when_common():
    counts = np.zeros((3, 256), np.int64)
    counts[:, OFFSET - 3 : OFFSET + 4] = 1000
    counts[:2, 250] = [1, 900]
    rare, common, none = fit_tables(counts).classes
    assert (rare.low, rare.n) == (none.low, none.n) == (-3, 7)
    assert (common.low, common.n) == (-3, 250 - OFFSET + 4)


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("side", ["low", "high"])
def test_no_neighbouring_support_is_cheaper(shift, side):
    """Costs are those of the integer frequencies, with 4 bits a stored logarithm; rounding may change them by 0.1 %."""
    for row in gaussian_counts(classes=12, weights=24_000):
        best = fit_tables(row[None]).classes[0]
        low, end = best.low + shift * (side == "low"), best.low + best.n + shift * (side == "high")
        inside = row[low + OFFSET : end + OFFSET]
        probability = np.array([row.sum() - inside.sum(), *inside]) / row.sum()
        logs = np.rint(-8 * np.log2(np.maximum(probability, 1 / TOTAL))).astype(np.uint8).tobytes()

        def cost(table, row=row):
            return (row * TableSet((table,)).lengths).sum() + 4 * table.n

        assert cost(best) <= cost(ClassTable(low, logs)) * 1.001


def test_symbols_that_no_support_can_hold_count_as_escapes():
    counts = np.zeros((2, 256), np.int64)
    counts[:, 0], counts[0, 130] = 1000, 3000
    mixed, all_escape = fit_tables(counts).classes
    assert mixed == ClassTable(2, bytes([16, 3]))  # a quarter, three quarters
    assert all_escape == ClassTable(0, b"\0")


def test_classes_without_counts_store_nothing():
    assert fit_tables(np.zeros((2, 256), np.int64)).classes[1].n == 0


@given(counts=st.lists(st.integers(0, 10**6), min_size=255, max_size=255))
@settings(max_examples=10, deadline=None)
def test_any_counts_give_tables_that_are_stored_exactly(counts):
    tables = fit_tables(np.array([[0, *counts]] * TABLE_CLASSES, np.int64))
    assert sets_from_bytes(sets_to_bytes([tables, tables])) == [tables, tables]


def test_arguments_are_left_alone():
    counts = gaussian_counts(classes=2, weights=1000)
    before = counts.copy()
    fit_tables(counts)
    assert (counts == before).all()


def test_truncated_and_trailing_bytes_are_refused():
    raw = sets_to_bytes([fit_tables(gaussian_counts(weights=3000))] * 2)
    for cut in range(len(raw)):
        with pytest.raises(FormatError):
            sets_from_bytes(raw[:cut])
    with pytest.raises(FormatError, match="logarithms"):
        sets_from_bytes(raw + b"\0")


def hostile(low, n):
    """A set whose first class is of so many symbols from `low`; the others are empty."""
    others = bytes(TABLE_CLASSES - 2)
    return bytes([1, low, -low & 255]) + others + bytes([n, -n & 255]) + others + bytes(TABLE_CLASSES + n)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "end after 0 bytes"),
        (b"\x02" + bytes(6 * TABLE_CLASSES - 1), "within their head"),
        (bytes([129]) + bytes(3 * 129 * TABLE_CLASSES), "129 table sets, at most 128"),
        (hostile(128, 1), "support of 1 symbols from -128"),
        (hostile(127, 2), "support of 2 symbols from 127"),
        (hostile(5, 0), "an empty one starts at 0"),
    ],
)
def test_hostile_bytes_are_named(raw, message):
    with pytest.raises(FormatError, match=message):
        sets_from_bytes(raw)


@given(start=st.sampled_from([b"", b"\x01" + bytes(3 * TABLE_CLASSES - 60)]), junk=st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_junk_gives_format_error_or_sound_tables(start, junk):
    raw = start + junk
    with contextlib.suppress(FormatError):
        sets = sets_from_bytes(raw)
        assert sets_to_bytes(sets) == raw
        assert all((tables.frequencies.sum(1) == TOTAL).all() for tables in sets)


def test_stored_bytes_are_those_of_the_format():
    empty = ClassTable(0, b"\0")
    tables = TableSet((ClassTable(-1, bytes([90, 20, 8, 21])), ClassTable(-2, bytes([88, 50, 19, 8, 25])), *[empty] * 26))
    rest = bytes(25).hex()
    heads = "ffff02" + rest + "0301fc" + rest + "5afea8" + rest  # low, n, escape
    assert sets_to_bytes([tables]).hex() == "01" + heads + "b4a8b5" + "d2ff0004"
    assert tables.frequencies[:2, [0, *range(126, 130)]].tolist() == [[2, 0, 863, 2440, 791], [2, 66, 962, 2494, 572]]
