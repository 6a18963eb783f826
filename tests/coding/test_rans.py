"""The entropy coder: exact, near its entropy, alike in numpy and numba, and unforgiving of damage."""

import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from coder_samples import RANGES, context_of, equal, path_codes, random_codes, scalar_decode, set_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantlab.coding import rans, rans_numba
from quantlab.coding.codecs import encode_smallest
from quantlab.coding.contexts import classes_of, raw_bits
from quantlab.coding.frequency_tables import ClassTable, TableSet, fit_tables, sets_to_bytes
from quantlab.coding.rans import MAX_LANES, lanes_for
from quantlab.errors import FormatError
from quantlab.format_rules import STATES

PLAIN = set_of(ClassTable(0, b"\0\0"))


def fitted(codes, contexts):
    return fit_tables(sum(rans_numba.histogram(c, p) for c, p in zip(codes, contexts, strict=True)))


SHAPES = st.tuples(st.integers(0, 6), st.integers(0, 11))
KINDS = st.sampled_from(sorted(RANGES))


@given(
    drawn=st.lists(st.tuples(SHAPES, st.sampled_from(STATES), KINDS), max_size=4),
    lanes=st.one_of(st.integers(1, 9), st.sampled_from([32, 64, 96])),
    seed=st.integers(0, 2**32),
)
@example(drawn=[], lanes=1, seed=0)
@example(drawn=[], lanes=64, seed=0)
@example(drawn=[((7, 11), 8, "high"), ((6, 9), 1, "path")], lanes=64, seed=1)
@example(drawn=[((1, 1), 8, "path"), ((0, 5), 4, "high"), ((5, 0), 4, "mixed"), ((1, 9), 32, "high")], lanes=4, seed=1)
@settings(max_examples=40, deadline=None)
def test_every_reader_inverts_every_writer(drawn, lanes, seed):
    """Two table sets: fitted ones, and ones in which almost everything escapes."""
    rng = np.random.default_rng(seed)
    made = [random_codes(rng, shape, states, kind, tables=int(rng.integers(2))) for shape, states, kind in drawn]
    codes, contexts = [code for code, _ in made], [context for _, context in made]
    counts = np.zeros((28, 256), np.int64) + sum(rans_numba.histogram(c, p) for c, p in made)
    sets = [fit_tables(counts), set_of(ClassTable(0, b"\x03\x00"))]
    stream = rans_numba.encode(codes, contexts, sets, lanes)
    assert rans.encode(codes, contexts, sets, lanes) == stream
    for decode in (rans.decode, rans_numba.decode, scalar_decode):
        assert equal(decode(stream, contexts, sets, lanes), codes)


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize(
    ("shape", "lanes", "kind"),
    [((37, 300), 64, "mixed"), ((5, 700), 512, "path"), ((300, 3), 16, "low"), ((1, 2049), 2048, "high")],
)
def test_larger_tensors_round_trip(states, shape, lanes, kind):
    code, context = random_codes(np.random.default_rng(states), shape, states, kind)
    sets = [fitted([code], [context])]
    stream = rans_numba.encode([code], [context], sets, lanes)
    assert equal(rans.decode(stream, [context], sets, lanes), [code])
    assert equal(rans_numba.decode(stream, [context], sets, lanes), [code])


def test_tensors_share_a_byte_of_raw_bits_and_may_be_larger_than_a_chunk():
    rng = np.random.default_rng(4)
    made = [random_codes(rng, shape, 1, "high") for shape in ((3, 1), (300, 500), (1, 1))]
    codes, contexts = [code for code, _ in made], [context for _, context in made]
    assert raw_bits(contexts[0]) % 8 and sum(raw_bits(context) for context in contexts) > 8 * rans.MAX_LANES
    sets = [fitted(codes, contexts)]
    stream = rans_numba.encode(codes, contexts, sets, 64)
    assert equal(rans_numba.decode(stream, contexts, sets, 64), codes)


@pytest.mark.parametrize(("states", "extremes"), [(1, (-32767, 32767)), (8, (-32766, 32766)), (8, (-32765, 32766))])
@pytest.mark.parametrize("number", [0, 8, 9, 27, 28, 55, 83, 1000])
def test_extreme_codes_round_trip_with_and_without_support(states, extremes, number):
    context = context_of((2, 2), states, (number, number), (0, 0))
    k = np.array([extremes, extremes]) >> (states > 1)
    code = path_codes(k, classes_of(context), states, context.paths)
    assert code.min() <= -32765 and code.max() >= 32766
    for table in (ClassTable(0, b"\0"), ClassTable(-127, bytes(256))):
        stream = rans_numba.encode([code], [context], [set_of(table)], 16)
        assert equal(rans.decode(stream, [context], [set_of(table)], 16), [code])


def test_a_constant_tensor_costs_next_to_nothing():
    code, context = np.full((500, 64), 3, np.int16), context_of((500, 64), 1, [0] * 500, [0] * 64)
    tables = fitted([code], [context])
    stream = rans_numba.encode([code], [context], [tables], 16)
    assert len(stream) <= 8 + 6 * 16 and rans.code_bits(rans_numba.histogram(code, context), context, tables) < 12
    assert equal(rans.decode(stream, [context], [tables], 16), [code])


def small_stream():
    """Some escapes, three raw bits, four states, some words."""
    k = np.random.default_rng(5).integers(-3, 4, (3, 7))
    contexts = [
        context_of((3, 7), 8, (5, 6, 5), (0, 1, 2, 3, 4, 5, 6)),
        context_of((4, 5), 1, (12, 20, 12, 12), (0, 0, 11, 4, 12)),
    ]
    codes = [
        path_codes(k, classes_of(contexts[0]), 8, contexts[0].paths),
        np.arange(-10, 10, dtype=np.int16).reshape(4, 5) // 4,
    ]
    codes[0][2, 0], codes[1][1, 4], codes[1][2, 2] = 2 * 90, 444, -9000
    sets = [set_of(ClassTable(-2, bytes([20, 24, 12, 10, 14, 30])))]
    return codes, contexts, sets, rans_numba.encode(codes, contexts, sets, 4)


def outcome(decode, *arguments):
    """The codes, or None where decode raised FormatError."""
    try:
        return decode(*arguments)
    except FormatError:
        return None


def test_a_change_of_any_byte_is_refused_or_gives_other_codes():
    codes, contexts, sets, stream = small_stream()
    for at in range(len(stream)):
        for change in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            altered = stream[:at] + bytes([stream[at] ^ change]) + stream[at + 1 :]
            slow, fast = (
                outcome(rans.decode, altered, contexts, sets, 4),
                outcome(rans_numba.decode, altered, contexts, sets, 4),
            )
            assert fast is None or not equal(fast, codes)
            assert (slow is None and fast is None) or equal(slow, fast)


@pytest.mark.parametrize("decode", [rans.decode, rans_numba.decode])
def test_truncated_and_trailing_streams_are_refused(decode):
    _, contexts, sets, stream = small_stream()
    for cut in range(len(stream)):
        with pytest.raises(FormatError):
            decode(stream[:cut], contexts, sets, 4)
    for junk in (b"\0", b"\0\0", bytes(1000)):
        with pytest.raises(FormatError):
            decode(stream + junk, contexts, sets, 4)


@given(junk=st.binary(max_size=80), count=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_junk_gives_the_same_outcome_in_both_readers(junk, count):
    _, contexts, sets, _ = small_stream()
    stream = bytes([count, 0, 0, 0, 1, 0, 0, 0]) + bytes(2 * count) + b"\x20" + junk
    slow, fast = outcome(rans.decode, stream, contexts, sets, 4), outcome(rans_numba.decode, stream, contexts, sets, 4)
    assert (slow is None and fast is None) or equal(slow, fast)


@pytest.mark.parametrize("decode", [rans.decode, rans_numba.decode])
def test_damage_is_named(decode):
    _, contexts, sets, stream = small_stream()
    raw_at = 8 + 2 * stream[0]
    assert raw_bits(contexts[1]) == 3 and stream[4] == 1
    with pytest.raises(FormatError, match="cannot hold 4294967295 escapes"):
        decode(b"\xff" * 4 + stream[4:], contexts, sets, 4)
    with pytest.raises(FormatError, match="4294967295 bytes of raw bits"):
        decode(stream[:4] + b"\xff" * 4 + stream[8:], contexts, sets, 4)
    with pytest.raises(FormatError, match="has 3 bytes of raw bits, its contexts need 3 bits"):
        decode(stream[:4] + b"\3" + stream[5:raw_at] + bytes(2) + stream[raw_at:], contexts, sets, 4)
    with pytest.raises(FormatError, match="unused bits"):
        decode(stream[:raw_at] + bytes([stream[raw_at] | 16]) + stream[raw_at + 1 :], contexts, sets, 4)
    with pytest.raises(FormatError, match="starts in state 0"):
        decode(stream[: raw_at + 1] + bytes(4) + stream[raw_at + 5 :], contexts, sets, 4)
    with pytest.raises(FormatError, match="lane groups end after"):
        decode(stream[:-2], contexts, sets, 4)
    with pytest.raises(FormatError, match="11 escapes for 12 places"):
        decode(bytes([stream[0] - 1]) + stream[1:8] + stream[10:], contexts, sets, 4)
    with pytest.raises(FormatError, match="symbols reach from -16384"):
        decode(stream[:8] + b"\0\xc0" * stream[0] + stream[raw_at:], contexts, sets, 4)
    with pytest.raises(FormatError, match="beyond 16 bits"):
        decode(stream[: raw_at - 4] + b"\xff\x7f" + stream[raw_at - 2 :], contexts, sets, 4)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (context_of(shape=(2, 4)), "scale classes of (2,) rows and (3,) columns, the shape is (2, 4)"),
        (context_of(states=5), "a trellis has 5 states"),
        (context_of(tables=1), "context 0 names table set 1, there are 1"),
        (context_of(rows=(0, 1001)), "scale classes of rows reach from 0 to 1001, allowed are ±1000"),
        (context_of(columns=(-32768, 0, 0)), "scale classes of columns reach from -32768 to 0"),
        (context_of(dtype=np.uint8), "scale classes of rows are uint8"),
    ],
)
def test_contexts_that_fit_no_tables_are_refused(context, message):
    for call in (rans.decode, rans_numba.decode, rans.encode, rans_numba.encode):
        with pytest.raises(FormatError, match=re.escape(message)):
            call(b"" if "decode" in call.__name__ else [np.zeros((2, 3), np.int16)], [context], [PLAIN], 16)


def test_table_sets_have_a_fixed_number_of_classes():
    with pytest.raises(FormatError, match="a table set has 2 tables, 28 expected"):
        rans.decode(bytes(100), [], [TableSet((ClassTable(0, b"\0"),) * 2)], 16)


@pytest.mark.parametrize("lanes", [-1, 0, 33, MAX_LANES - 1, MAX_LANES + 32])
def test_numbers_of_lanes_have_bounds(lanes):
    with pytest.raises(FormatError, match=f"{lanes} lanes"):
        rans.decode(bytes(100), [], [], lanes)


@pytest.mark.parametrize(
    ("code", "states", "message"),
    [
        (np.full((2, 3), -32768, np.int16), 1, "codes must lie in -32767 to 32767"),
        (np.full((2, 3), -32767, np.int16), 4, "codes must lie in -32766 to 32767"),
        (np.full((2, 3), 3, np.int16), 4, "codes of scale classes below 6 must be even"),
        (np.full((2, 4), 1, np.int16), 1, r"codes are int16 \(2, 4\)"),
        (np.full((2, 3), 1, np.int8), 1, "codes are int8"),
    ],
)
def test_codes_that_no_reader_would_give_are_refused(code, states, message):
    with pytest.raises(ValueError, match=message):
        rans_numba.encode([code], [context_of(states=states)], [PLAIN], 16)
    with pytest.raises(ValueError, match=message):
        rans_numba.histogram(code, context_of(states=states))


@pytest.mark.parametrize("states", STATES)
def test_total_loss_is_small_on_gaussian_weights(states):
    """Tables, escapes, rounding and lanes cost 0.41 % of 131,072 weights in 7 classes; 0.10 % of 3 M (benchmarks/coder.py)."""
    rng = np.random.default_rng(11)
    shape = (256, 512)
    rows, columns = (np.arange(n) % 4 for n in shape)
    context = context_of(shape, states, rows + 15, columns)
    sigma = 2.7 * 2 ** ((rows[:, None] + columns[None, :] - 3.0) / 4)
    code = path_codes(np.rint(rng.standard_normal(shape) * sigma).astype(int), classes_of(context), states, context.paths)
    counts = rans_numba.histogram(code, context)
    tables = fit_tables(counts)
    ideal_bytes = entropy_bits(counts) / 8
    lanes = lanes_for(ideal_bytes)
    stream = rans_numba.encode([code], [context], [tables], lanes)
    table_bytes = len(encode_smallest(sets_to_bytes([tables]))[1])
    assert ideal_bytes < rans.code_bits(rans_numba.histogram(code, context), context, tables) / 8 < ideal_bytes * 1.0005
    assert len(stream) + table_bytes < ideal_bytes * 1.0045


def entropy_bits(counts):
    probability = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return -(counts * np.log2(np.where(counts > 0, probability, 1))).sum()


def test_raw_low_bits_cost_little_beyond_the_entropy_of_whole_symbols():
    """Gaussian codes up to 8,000 in one class: the ideal is their differential entropy, 12.7 bits."""
    shape, deviation = (200, 512), 1700
    code = np.rint(np.random.default_rng(3).standard_normal(shape) * deviation).astype(np.int16)
    context = context_of(shape, 1, [8 + round(4 * np.log2(deviation))] * shape[0], [0] * shape[1])
    ideal_bits = code.size * np.log2(deviation * np.sqrt(2 * np.pi * np.e))
    assert abs(rans.code_bits(rans_numba.histogram(code, context), context, fitted([code], [context])) / ideal_bits - 1) < 0.001


def test_lanes_waste_about_three_bytes_each():
    code, context = random_codes(np.random.default_rng(2), (40, 4096), 1, "mixed")
    tables = fitted([code], [context])
    for lanes in (16, 256, 2048):
        waste = (
            len(rans_numba.encode([code], [context], [tables], lanes))
            - rans.code_bits(rans_numba.histogram(code, context), context, tables) / 8
            - 8
        )
        assert 2 * lanes < waste < 4 * lanes


def test_lanes_follow_the_size():
    sizes = (0, 190_000, 200_000, 1_400_000, 16_000_000, 1e9)
    assert [lanes_for(size) for size in sizes] == [16, 16, 32, 224, 2048, 2048]


def test_each_lane_group_has_its_own_words():
    """Two lane groups, of constant and of random symbols: nearly all words are the second one's."""
    rng, context = np.random.default_rng(1), context_of((64, 64), 1, [15] * 64, [0] * 64)
    code = np.zeros((64, 64), np.int16)
    code[:, 32:] = np.rint(2 * rng.standard_normal((64, 32)))
    sets = [fitted([code], [context])]
    stream = rans_numba.encode([code], [context], sets, 64)
    first, words = int.from_bytes(stream[8:12], "little"), (len(stream) - 12 - 4 * 64) // 2
    assert 0 < first < 0.7 * (words - first)
    for change, message in ((1, "lane groups end after"), (words, "its lane groups need")):
        altered = stream[:8] + (first + change).to_bytes(4, "little") + stream[12:]
        for decode in (rans.decode, rans_numba.decode):
            with pytest.raises(FormatError, match=message):
                decode(altered, [context], sets, 64)


def test_histogram_counts_symbols_by_table():
    """Codes of the odd half count as the mirrored symbol, low bits are off, what no support holds is in column 0."""
    context = context_of(states=4, rows=(8, 9), columns=(0, 1, 20))
    code = path_codes(np.array([[1, 1, 300], [3, 1, -9]]), classes_of(context), 4, context.paths)
    assert code.tolist() == [[2, 2, 600], [7, 2, -18]]
    expected = np.zeros((28, 256), np.int64)
    for table, column in ((8, 129), (9, 129), (24, 0), (9, 125), (10, 129), (25, 123)):
        expected[table, column] += 1
    assert (rans_numba.histogram(code, context) == expected).all()


def test_arguments_are_left_alone_and_writing_twice_gives_the_same_bytes():
    codes, contexts, sets, stream = small_stream()
    before = [code.copy() for code in codes]
    assert rans_numba.encode(codes, contexts, sets, 4) == stream
    for decode in (rans.decode, rans_numba.decode):
        first = decode(stream, contexts, sets, 4)
        assert equal(first, decode(stream, contexts, sets, 4)) and equal(codes, before)


def test_writing_takes_memory_for_one_matrix():
    rng = np.random.default_rng(0)
    made = [random_codes(rng, (128, 1024), 8, "path") for _ in range(24)]
    codes, contexts = [code for code, _ in made], [context for _, context in made]
    sets = [fitted(codes, contexts)]
    rans_numba.encode(codes[:1], contexts[:1], sets, 64)  # compiles
    tracemalloc.start()
    stream = rans_numba.encode(codes, contexts, sets, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(stream) + 36 * codes[0].size  # all of them: 24 * 10 bytes a weight of one, and more


def test_strided_and_read_only_arrays_are_accepted():
    codes, contexts, sets, stream = small_stream()
    turned = [np.asfortranarray(code) for code in codes]
    for context in contexts:
        context.rows_O.setflags(write=False)
    assert rans_numba.encode(turned, contexts, sets, 4) == stream
    assert equal(rans_numba.decode(bytearray(stream), contexts, sets, 4), codes)


def test_the_stream_is_that_of_the_format():
    """A row without and a row with 4 raw bits a symbol; the escape is 777, then 777 >> 4 = 48 with low bits 9.

    Lane 0 has symbols 0, -1 and the second escape, lane 1 the others; states by hand from frequencies 2, 863, 2440 and 791.
    """
    tables = set_of(ClassTable(-1, bytes([90, 20, 8, 21])))
    context = context_of(rows=(3, 40), columns=(0, 1, 2))
    code = np.array([[0, 777, -1], [0, 777, -16]], np.int16)
    counts, escapes, raw, states = "0200000002000000", "09033000", "0900", "c748bd3f00f02c3f"
    stream = bytes.fromhex(counts + escapes + raw + states)
    assert rans_numba.encode([code], [context], [tables], 2) == stream
    assert equal(rans.decode(stream, [context], [tables], 2), [code])


def test_the_reference_reader_needs_no_numba():
    program = "import sys; import quantlab.coding.rans, quantlab.coding.byte_coder; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
