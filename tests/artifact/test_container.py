"""The outer layer of the file: every damaged or hostile byte is noticed."""

import hashlib
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.artifact.container import DIGEST_BYTES, HEADER, SECTION, Section, read_container, write_container
from quantlab.errors import FormatError

MANIFEST = {"tensors": [], "producer": "test"}
SECTIONS = [Section(0, 5, b"hello"), Section(1, 3, zlib.compress(b"abc")[2:-4]), Section(0, 0, b"")]


def resealed(data: bytes) -> bytes:
    """The file with a digest that fits: what an attacker would do."""
    return data[:-DIGEST_BYTES] + hashlib.sha256(data[:-DIGEST_BYTES]).digest()[:DIGEST_BYTES]


def test_round_trip():
    data = write_container(MANIFEST, SECTIONS)
    assert read_container(data) == (MANIFEST, SECTIONS)
    assert write_container(MANIFEST, SECTIONS) == data


@given(
    payloads=st.lists(st.binary(max_size=50), max_size=5),
    text=st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=4),
)
@settings(deadline=None)
def test_any_sections_round_trip(payloads, text):
    sections = [Section(0, len(p), p) for p in payloads]
    assert read_container(write_container(text, sections)) == (text, sections)


def test_every_changed_byte_is_noticed():
    data = write_container(MANIFEST, SECTIONS)
    for at in range(len(data)):
        for change in (1, 0x80):
            broken = bytearray(data)
            broken[at] ^= change
            with pytest.raises(FormatError):
                read_container(bytes(broken))


def test_every_truncation_and_every_extension_is_noticed():
    data = write_container(MANIFEST, SECTIONS)
    for size in range(len(data)):
        with pytest.raises(FormatError):
            read_container(data[:size])
    with pytest.raises(FormatError, match="header says"):
        read_container(data + b"\x00")


def test_other_files_and_other_versions_are_told_apart():
    data = write_container(MANIFEST, SECTIONS)
    with pytest.raises(FormatError, match="not a .qlab file"):
        read_container(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FormatError, match="version 2 is unknown"):
        read_container(resealed(data[:8] + struct.pack("<H", 2) + data[10:]))


@pytest.mark.parametrize("raw_bytes", [2**32 - 1, 2**30])
def test_a_section_may_not_claim_more_than_the_file_justifies(raw_bytes):
    data = write_container(MANIFEST, SECTIONS)
    table = SECTION.pack(0, 5, raw_bytes, zlib.crc32(b"hello"))
    hostile = resealed(data[: HEADER.size] + table + data[HEADER.size + SECTION.size :])
    with pytest.raises(FormatError, match="sections decode to"):
        read_container(hostile)


def test_overlapping_or_missing_sections_cannot_be_expressed():
    """Stored lengths must add up to the file: neither a longer nor a shorter section passes."""
    data = write_container(MANIFEST, SECTIONS)
    for length in (4, 6, 2**31):
        table = SECTION.pack(0, length, 5, zlib.crc32(b"hello"))
        with pytest.raises(FormatError, match="describe"):
            read_container(resealed(data[: HEADER.size] + table + data[HEADER.size + SECTION.size :]))


def test_section_checksum_names_the_section():
    data = write_container(MANIFEST, SECTIONS)
    table = SECTION.pack(0, 5, 5, 123)
    with pytest.raises(FormatError, match="section 0: its checksum"):
        read_container(resealed(data[: HEADER.size] + table + data[HEADER.size + SECTION.size :]))


@pytest.mark.parametrize("text", [b"[1]", b"not json", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000])
def test_a_manifest_that_is_no_object_is_refused(text):
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = encoder.compress(text) + encoder.flush()
    size = HEADER.size + len(packed) + DIGEST_BYTES
    magic, version, *_ = HEADER.unpack_from(write_container({}, []))
    data = HEADER.pack(magic, version, 0, len(packed), len(text), size) + packed + bytes(DIGEST_BYTES)
    with pytest.raises(FormatError, match="manifest"):
        read_container(resealed(data))


def test_a_manifest_bomb_is_refused_before_it_is_unpacked():
    magic, version, *_ = HEADER.unpack_from(write_container({}, []))
    data = HEADER.pack(magic, version, 0, 1, 2**32 - 1, HEADER.size + 1 + DIGEST_BYTES) + b"x" + bytes(DIGEST_BYTES)
    with pytest.raises(FormatError, match="manifest has 4294967295 bytes"):
        read_container(resealed(data))


def test_manifest_is_canonical_json():
    """The same content in another order gives the same bytes."""
    a = write_container({"b": 1, "a": {"d": 2, "c": 3}}, [])
    b = write_container({"a": {"c": 3, "d": 2}, "b": 1}, [])
    assert a == b
    for value in (float("nan"), -float("inf"), "\ud800"):
        with pytest.raises(FormatError, match="manifest cannot be written as JSON"):
            write_container({"x": value}, [])
    assert json.loads("{}") == read_container(write_container({}, []))[0]


def test_the_writer_refuses_what_the_reader_would():
    with pytest.raises(FormatError, match="sections decode to"):
        write_container({}, [Section(1, 2**31, np.random.default_rng(0).bytes(10))])
