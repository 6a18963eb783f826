"""The order-0 byte codec: exact, near the entropy, and unforgiving of damage."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantlab.coding.byte_coder import decode_bytes, encode_bytes, lanes_of
from quantlab.coding.codecs import DEFLATE, RANS, decode, encode_smallest
from quantlab.errors import FormatError


def entropy_bytes(raw):
    counts = np.bincount(np.frombuffer(raw, np.uint8))
    counts = counts[counts > 0]
    return -(counts * np.log2(counts / len(raw))).sum() / 8


def laplacian(count, deviation, centre=0):
    values = np.rint(np.random.default_rng(count).laplace(size=count) * deviation).astype(int) + centre
    return (values % 256).astype(np.uint8).tobytes()


@given(raw=st.one_of(st.binary(max_size=300), st.lists(st.sampled_from([0, 1, 2, 255]), max_size=300).map(bytes)))
@example(raw=b"")
@example(raw=b"\x80")
@example(raw=bytes(range(256)))
@example(raw=bytes([128]) * 1000)
@settings(max_examples=60, deadline=None)
def test_bytes_round_trip(raw):
    assert decode_bytes(encode_bytes(raw), len(raw)) == raw


@pytest.mark.parametrize("count", [4095, 4096, 8192, 65_536, 140_001])
def test_long_arrays_round_trip(count):
    """Arrays of one or more lanes, and of one or more chunks."""
    raw = laplacian(count, 30)
    assert decode_bytes(encode_bytes(raw), count) == raw


@pytest.mark.parametrize("centre", [0, 128, 77])
@pytest.mark.parametrize(("count", "slack_bytes"), [(200, 20), (1000, 25), (10_000, 50), (50_000, 85)])
@pytest.mark.parametrize("deviation", [0.3, 0.7, 1.5])
def test_size_is_near_the_entropy(count, slack_bytes, deviation, centre):
    """The size does not depend on where the values lie: supports wrap around."""
    raw = laplacian(count, deviation, centre)
    assert len(encode_bytes(raw)) <= entropy_bytes(raw) + slack_bytes


def test_all_equal_bytes_cost_a_head_and_the_lanes():
    assert len(encode_bytes(b"\7" * 1000)) <= 3 + 2 + 4
    assert len(encode_bytes(b"\7" * 50_000)) <= 3 + 2 + 6 * 16


def test_lanes_follow_the_length():
    assert [lanes_of(count) for count in (1, 4095, 4096, 8192, 32_768, 10**9)] == [1, 1, 2, 4, 16, 16]


SAMPLE = laplacian(90, 3) + b"\x7f"  # one escape


def outcome(stored, raw_bytes):
    """Return the bytes, or None where decode_bytes raised FormatError."""
    try:
        return decode_bytes(stored, raw_bytes)
    except FormatError:
        return None


def test_a_change_of_any_byte_is_refused_or_gives_other_bytes():
    """The exception: altered logarithms that give the same frequencies."""
    stored = encode_bytes(SAMPLE)
    states_at = 3 + ((stored[1] + 1) * (stored[2] & 15) + 7) // 8
    for at in range(len(stored)):
        for change in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            altered = outcome(stored[:at] + bytes([stored[at] ^ change]) + stored[at + 1 :], len(SAMPLE))
            assert altered is None or len(altered) == len(SAMPLE)
            assert altered != SAMPLE or at < states_at


def test_truncated_and_trailing_bytes_are_refused():
    stored = encode_bytes(SAMPLE)
    assert all(outcome(stored[:cut], len(SAMPLE)) is None for cut in range(len(stored)))
    assert all(outcome(stored + junk, len(SAMPLE)) is None for junk in (b"\0", b"\0\0", bytes(1000)))
    assert outcome(b"\0", 0) is None and outcome(b"", 1) is None


@given(junk=st.binary(max_size=60), raw_bytes=st.integers(0, 9000), packing=st.integers(0, 63))
@settings(max_examples=200, deadline=None)
def test_junk_gives_format_error_or_bytes(junk, raw_bytes, packing):
    for stored in (junk, bytes([5, 3, packing]) + junk):
        raw = outcome(stored, raw_bytes)
        assert raw is None or len(raw) == raw_bytes


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "within their head"),
        (b"\0\1\x40", "units of 2\\*\\*4"),
        (b"\0\1\x09", "logarithms of 9 bits"),
        (b"\5\0\1", "0 values from 5"),
        (b"\0\1\x01", "table of 2 bits is cut"),
        (b"\0\1\x01\x20", "does not end in zeros"),
        (b"\0\0\x18\xff", "a logarithm of 510"),
        (b"\0\1\x01\x40\0\0", "within the states of 1 lanes"),
        (b"\0\1\x01\x40\0\0\0\0", "start in state 0"),
    ],
)
def test_damage_is_named(stored, message):
    with pytest.raises(FormatError, match=message):
        decode_bytes(stored, 10)


def test_a_hostile_length_stops_with_the_words():
    with pytest.raises(FormatError, match="more are needed"):
        decode_bytes(b"\0\1\x01\0" + b"\0\0\1\0" * 16, 2**20)


def test_a_stream_holds_16_times_its_bytes_and_2_to_the_20_at_most():
    for size in (0, 100):
        with pytest.raises(FormatError, match=f"at most {2**20 + 16 * size} are allowed"):
            decode_bytes(bytes(size), 2**20 + 16 * size + 1)


def test_the_writer_leaves_out_a_stream_that_readers_refuse():
    """Zeros take almost no bits, so that rans-0 would be smallest."""
    for size, codec in ((2**20, RANS), (2**21, DEFLATE)):
        number, stored = encode_smallest(bytes(size), (DEFLATE, RANS))
        assert number == codec and decode(number, stored, size) == bytes(size)


def test_the_stream_is_that_of_the_format():
    """Support 254 to 1; logarithms of 3 bits, in units of 1: 4 (the escape), 4, 3, 1, 3; one state, one word, escaped 100."""
    raw = bytes([0, 255, 0, 1, 0, 254, 0, 0, 100, 0, 0, 255, 1, 0, 0, 0])
    stored = bytes.fromhex("fe0433" + "9196" + "46f8a607" + "fee7" + "64")
    assert encode_bytes(raw) == stored
    assert decode_bytes(stored, len(raw)) == raw
