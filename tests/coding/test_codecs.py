"""Byte codecs: exact, bounded, and unforgiving of damage."""

import contextlib
import zlib

import brotli
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.coding.codecs import (
    BROTLI,
    CODECS,
    DEFLATE,
    bytes_to_codes,
    codes_to_bytes,
    decode,
    encode_smallest,
    from_byte_planes,
    to_byte_planes,
)
from quantlab.errors import FormatError

SAMPLES = [b"", b"\x00", b"a" * 100_000, bytes(range(256)) * 9, np.random.default_rng(0).bytes(5000)]


@pytest.mark.parametrize("number", CODECS)
@pytest.mark.parametrize("raw", SAMPLES, ids=["empty", "one", "equal", "ramp", "noise"])
def test_decode_inverts_encode(number, raw):
    assert decode(number, CODECS[number].encode(raw), len(raw)) == raw


@pytest.mark.parametrize("kib", [2100, 5000])
def test_brotli_output_that_waits_inside_its_window_is_read_too(kib):
    raw = np.random.default_rng(0).integers(0, 64, kib << 10, dtype=np.uint8).tobytes()
    assert decode(BROTLI, brotli.compress(raw, quality=5, lgwin=24), len(raw)) == raw


@given(raw=st.binary(max_size=300))
@settings(max_examples=40, deadline=None)
def test_smallest_is_smallest_and_exact(raw):
    number, stored = encode_smallest(raw)
    assert decode(number, stored, len(raw)) == raw
    assert len(stored) == min(len(codec.encode(raw)) for codec in CODECS.values())


@pytest.mark.parametrize("number", CODECS)
def test_another_length_is_refused(number):
    raw = b"some text that is long enough to be coded" * 20
    stored = CODECS[number].encode(raw)
    for claimed in (0, 1, len(raw) - 1, len(raw) + 1, 10 * len(raw)):
        with pytest.raises(FormatError):
            decode(number, stored, claimed)


@pytest.mark.parametrize("number", [n for n in CODECS if n])
def test_a_truncated_stream_is_refused(number):
    raw = np.random.default_rng(1).integers(-8, 9, 3000).astype(np.int8).tobytes()
    stored = CODECS[number].encode(raw)
    for cut in (0, 1, len(stored) // 2, len(stored) - 1):
        with pytest.raises(FormatError):
            decode(number, stored[:cut], len(raw))


@pytest.mark.parametrize("number", [n for n in CODECS if n])
@given(junk=st.binary(max_size=200), claimed=st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_junk_gives_format_error_or_the_claimed_length(number, junk, claimed):
    with contextlib.suppress(FormatError):
        assert len(decode(number, junk, claimed)) == claimed


@pytest.mark.parametrize("number", [DEFLATE, BROTLI, 3, 4])
def test_a_bomb_is_stopped_near_the_claimed_length(number, monkeypatch):
    """50 MB of zeros claimed to be 1,000 bytes: the decoder must not produce them all."""
    import tracemalloc

    stored = CODECS[number].encode(bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(FormatError):
        decode(number, stored, 1000)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


def test_unknown_codec_is_named():
    with pytest.raises(FormatError, match="codec 77 is unknown"):
        decode(77, b"", 0)


@pytest.mark.parametrize("number", [n for n in CODECS if n])
def test_trailing_bytes_are_refused(number):
    raw = b"abc" * 300
    for junk in (b"x", bytes(1000)):
        with pytest.raises(FormatError):
            decode(number, CODECS[number].encode(raw) + junk, len(raw))


def test_deflate_is_raw():
    assert zlib.decompress(CODECS[DEFLATE].encode(b"abc"), -15) == b"abc"


def test_codes_are_laid_out_column_after_column():
    q = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
    assert codes_to_bytes(q) == bytes([1, 4, 2, 5, 3, 6])
    assert (bytes_to_codes(codes_to_bytes(q), 2, 3) == q).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "uint8"])
def test_byte_planes_round_trip_and_hold_low_bytes_first(dtype):
    values = np.arange(5).astype(dtype)
    raw = to_byte_planes(values)
    assert raw[:5] == values.view(np.uint8).reshape(5, -1)[:, 0].tobytes()
    assert (from_byte_planes(raw, np.dtype(dtype)) == values).all()
    assert from_byte_planes(b"", np.dtype(dtype)).size == 0
