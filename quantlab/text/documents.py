"""Read documents as raw bytes from plain text files and JSON lines, either of them also compressed with zstd."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from quantlab.errors import DataError, why_not
from quantlab.files import open_regular

CHUNK_BYTES = 2**16
"""Bytes that are read from a file at once."""


def read_documents(path: str | Path) -> Iterator[bytes]:
    """Yield the documents of one file.

    A `.jsonl` file has one document in each line, the "text" of its JSON object, as UTF-8; blank lines are skipped. A file of
    any other name is one document, byte for byte, valid UTF-8 or not. A file whose name ends in `.zst` is decompressed while
    it is read. An error is raised only when the damaged place is reached.

    Raises:
        DataError: the file is missing, empty or damaged zstd; or a line is not JSON, has no "text", or holds half a surrogate
            pair (an escape like "\\ud800" alone), which UTF-8 cannot express.
    """
    path = Path(path)
    is_compressed = path.suffix == ".zst"
    is_json_lines = (Path(path.stem) if is_compressed else path).suffix == ".jsonl"
    chunks = _decompressed(path, _chunks(path)) if is_compressed else _chunks(path)
    is_empty = True
    for document in _json_documents(path, chunks) if is_json_lines else _whole(chunks):
        is_empty = False
        yield document
    if is_empty:
        raise DataError(f"no documents in {path}: the file is empty")


def _chunks(path: Path) -> Iterator[bytes]:
    with open_regular(path, DataError) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _decompressed(path: Path, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of every zstd frame. A frame without an end is an error here; zstandard's readers do not report it."""
    frame = None
    position = 0
    for chunk in chunks:
        data = chunk
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                place = f"within the {CHUNK_BYTES:,} compressed bytes after {position:,}"
                raise DataError(f"{path}: damaged zstd {place}: {error}") from error
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
        position += len(chunk)
    if frame is not None:
        raise DataError(f"{path}: damaged zstd, it stops in the middle of a frame after {position:,} bytes")


def _whole(chunks: Iterable[bytes]) -> Iterator[bytes]:
    if document := b"".join(chunks):
        yield document


def _json_documents(path: Path, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(_lines(chunks), start=1):
        if line.strip():
            yield _json_text(f"{path} line {number}", line)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of the text, in time linear in its length, however long a line is."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        for other in others:
            yield b"".join(parts)
            parts = [other]
    yield b"".join(parts)


def _json_text(place: str, line: bytes) -> bytes:
    try:
        # decoded here because json.loads would guess UTF-16 from zero bytes
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(f"{place}: not JSON in UTF-8: {why_not(error)}") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{place}: must be an object with a string "text"')
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f'{place}: "text" holds half a surrogate pair, {code}, at character {error.start}') from error
