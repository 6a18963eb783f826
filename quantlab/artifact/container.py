"""The outer layer of a .qlab file: header, section table, manifest, sections, digest (docs/format.md).

Sections follow each other without holes in the order of their table, so no offset can point anywhere else.
Everything that sizes an allocation is checked against the length of the file before anything is allocated.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from quantlab.coding.codecs import CODECS, DEFLATE, decode
from quantlab.errors import ExpansionError, FormatError, first_line
from quantlab.fields import parse_json

MAGIC = b"\x89QLAB\r\n\x1a"
VERSION = 1
HEADER = struct.Struct("<8sHHIIQ")  # magic, version, sections, manifest stored bytes, manifest raw bytes, file bytes
SECTION = struct.Struct("<BIII")  # codec, stored bytes, raw bytes, crc32 of the stored bytes
DIGEST_BYTES = 16  # first half of SHA-256
MANIFEST_MAX_BYTES = 1 << 24
EXPANSION = 64
"""Decoded bytes, or codes, that a stored byte of the file may stand for, besides a floor."""
MANIFEST_FLOOR = 1 << 16
"""Bytes to which the manifest of any file may unpack."""
EXPANSION_FLOOR = 1 << 22
"""Bytes to which the sections of any file may decode."""
CODES_FLOOR = 1 << 20
"""Trellis codes that any file may hold: a code takes longer to decode than a byte."""
TABLES_EXPANSION, TABLES_FLOOR = 4, 1 << 11
"""Bytes to which the frequency tables of a file may decode, for each of its bytes and besides: one takes 32 KiB of memory."""


@dataclass(frozen=True, slots=True)
class Section:
    """One coded byte stream: `decode()` gives back its `raw_bytes` bytes."""

    codec: int
    raw_bytes: int
    stored: bytes

    def decode(self) -> bytes:
        """Return the bytes of the stream. FormatError if it is damaged or of another length."""
        return decode(self.codec, self.stored, self.raw_bytes)


def write_container(manifest: dict[str, Any], sections: list[Section]) -> bytes:
    """Return the whole file: the same manifest and sections always give the same bytes.

    Raises:
        FormatError: the manifest is too large, or has a number or a string that JSON in UTF-8 cannot express.
        ExpansionError: the sections decode to more bytes than a file of this size may hold.
    """
    text = manifest_text(manifest)
    packed = CODECS[DEFLATE].encode(text)
    table = b"".join(SECTION.pack(s.codec, len(s.stored), s.raw_bytes, zlib.crc32(s.stored)) for s in sections)
    body = table + packed + b"".join(s.stored for s in sections)
    size = HEADER.size + len(body) + DIGEST_BYTES
    _check_manifest_size(len(packed), len(text))
    check_expansion(sum(s.raw_bytes for s in sections), size)
    data = HEADER.pack(MAGIC, VERSION, len(sections), len(packed), len(text), size) + body
    return data + hashlib.sha256(data).digest()[:DIGEST_BYTES]


def read_container(data: bytes) -> tuple[dict[str, Any], list[Section]]:
    """Return manifest and sections of a whole file in memory. All lengths and checksums are checked, no section is decoded.

    Raises:
        FormatError: it is not a .qlab file, of another version, truncated, or altered, or it has trailing bytes, or sizes that
            its length does not justify.
    """
    sections_count, packed_bytes, text_bytes = _read_header(data)
    table_end = HEADER.size + sections_count * SECTION.size
    if table_end > len(data):
        raise FormatError(f"the header names {sections_count} sections, their table does not fit a file of {len(data)} bytes")
    rows = list(SECTION.iter_unpack(data[HEADER.size : table_end]))
    stored_total, raw_total = sum(row[1] for row in rows), sum(row[2] for row in rows)
    expected = table_end + packed_bytes + stored_total + DIGEST_BYTES
    if expected != len(data):
        raise FormatError(f"header and section table describe {expected} bytes, the file has {len(data)}")
    check_expansion(raw_total, len(data))
    if hashlib.sha256(data[:-DIGEST_BYTES]).digest()[:DIGEST_BYTES] != data[-DIGEST_BYTES:]:
        raise FormatError("file digest does not match: the file was altered or damaged")
    manifest = _read_manifest(data[table_end : table_end + packed_bytes], text_bytes)
    sections, at = [], table_end + packed_bytes
    for index, (codec, stored_bytes, raw_bytes, crc) in enumerate(rows):
        stored = data[at : at + stored_bytes]
        if zlib.crc32(stored) != crc:
            raise FormatError(f"section {index}: its checksum does not match: the file was altered or damaged")
        sections.append(Section(codec, raw_bytes, stored))
        at += stored_bytes
    return manifest, sections


def _read_header(data: bytes) -> tuple[int, int, int]:
    if len(data) < HEADER.size + DIGEST_BYTES:
        raise FormatError(f"file of {len(data)} bytes is too short for a .qlab header")
    magic, version, sections, packed_bytes, text_bytes, file_bytes = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError(f"not a .qlab file: it starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise FormatError(f"artifact version {version} is unknown, this version of quantlab reads version {VERSION}")
    if file_bytes != len(data):
        raise FormatError(f"header says {file_bytes} bytes, the file has {len(data)}")
    _check_manifest_size(packed_bytes, text_bytes)
    return sections, packed_bytes, text_bytes


def _read_manifest(packed: bytes, text_bytes: int) -> dict[str, Any]:
    text = decode(DEFLATE, packed, text_bytes)
    manifest = parse_json(text, "manifest", FormatError)
    if not isinstance(manifest, dict):
        raise FormatError(f"manifest must be a JSON object, got {type(manifest).__name__}")
    if manifest_text(manifest) != text:
        raise FormatError("manifest is not canonical: a key is there twice or out of order, or there are spaces or escapes")
    return manifest


def manifest_text(manifest: dict[str, Any]) -> bytes:
    """Return the only bytes that may stand for a manifest: sorted keys, no spaces, UTF-8, finite numbers as Python writes them.

    Raises:
        FormatError: it has a number that is not finite, or a string with half a surrogate pair.
    """
    try:
        return json.dumps(manifest, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise FormatError(f"manifest cannot be written as JSON: {first_line(error)}") from error


def _check_manifest_size(packed_bytes: int, text_bytes: int) -> None:
    allowed = min(MANIFEST_MAX_BYTES, MANIFEST_FLOOR + EXPANSION * packed_bytes)
    if text_bytes > allowed:
        raise FormatError(f"manifest has {text_bytes} bytes in {packed_bytes} stored ones, at most {allowed} are allowed")


def check_expansion(raw_total: int, file_bytes: int) -> None:
    """Raise ExpansionError where sections decode to more bytes than a file of this size may hold."""
    _check_share(raw_total, file_bytes, EXPANSION, EXPANSION_FLOOR, "sections decode to {} bytes")


def check_codes(shapes: Iterable[Sequence[int]], file_bytes: int) -> None:
    """Raise ExpansionError where trellis tensors of these shapes have more codes than a file of this size may hold.

    A tensor counts as O · max(I, 64) codes, and as 64 at least: rows and tensors take time to decode, however short they are.
    """
    total = sum(max(rows * max(columns, EXPANSION), columns, EXPANSION) for rows, columns in shapes)
    _check_share(total, file_bytes, EXPANSION, CODES_FLOOR, "sections decode to {} codes")


def check_tables(raw_bytes: int, file_bytes: int) -> None:
    """Raise ExpansionError where frequency tables decode to more bytes than those of a file of this size may."""
    _check_share(raw_bytes, file_bytes, TABLES_EXPANSION, TABLES_FLOOR, "frequency tables decode to {} bytes")


def _check_share(total: int, file_bytes: int, expansion: int, floor: int, what: str) -> None:
    allowed = floor + expansion * file_bytes
    if total > allowed:
        message = f"{what.format(total)}, a file of {file_bytes} bytes may hold {allowed}"
        raise ExpansionError(message, least_bytes=-(-(total - floor) // expansion))
