"""Documents as raw bytes from text files: plain, JSON lines, and either of them compressed with zstd."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from quantlab.errors import DataError

CHUNK_BYTES = 2**16


def read_documents(path: str | Path) -> Iterator[bytes]:
    """Yield the documents of one file.

    `.jsonl`: the "text" of each line's object, as UTF-8; blank lines are skipped. Any other name: the whole file is one
    document, byte for byte, valid UTF-8 or not. A further `.zst` is decompressed while reading. Errors come when the
    damaged place is reached.

    Raises:
        DataError: the file is missing, empty, damaged zstd, or a line is not JSON, has no "text", or holds half a
            surrogate pair (an escape like "\\ud800" alone), which UTF-8 cannot express.
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
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _decompressed(path: Path, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of every zstd frame; a frame that does not end is damage (zstandard's readers are silent)."""
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
    """Split at newlines in time linear in the text, however long a line is."""
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
        # utf-8 by name: given bytes, json.loads would guess UTF-16 from zero bytes
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(f"{place}: not JSON in UTF-8: {error}") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{place}: must be an object with a string "text"')
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f'{place}: "text" holds half a surrogate pair, {code}, at character {error.start}') from error
