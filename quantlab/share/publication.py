"""A published model: its files with their hashes, what it is made from, and what it scores; `quantlab.json` beside the files.

quantlab.json is written last: a place without it is an upload that has not ended. Until then quantlab.uploading.json names the
files that are there already, so that the next attempt goes on after them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quantlab.errors import ConfigError, QuantlabError, ReportError
from quantlab.fields import json_object, read_fields
from quantlab.files import hash_file, whole_file
from quantlab.progress import Progress, silent
from quantlab.share.place import Place

MANIFEST_NAME, UPLOADING_NAME = "quantlab.json", "quantlab.uploading.json"
FORMAT = 1
MOST_MANIFEST_BYTES = 1 << 22
MOST_FILES = 100
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFile:
    """One file of a publication."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """What quantlab.json says."""

    format: int = FORMAT
    name: str
    producer: str
    files: dict[str, PublishedFile]
    about: dict[str, Any] = field(default_factory=dict)
    """Score, bytes, architecture, tokenizer, method: what an index lists."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Data, code, seeds, versions and parents, as far as they were recorded."""
    run: dict[str, Any] = field(default_factory=dict)
    """The recorded run, cleaned of private names; empty where there is none."""
    run_name: str = ""

    def to_json(self) -> bytes:
        """Return the file."""
        return (json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n").encode()


def read_publication(raw: bytes, where: str) -> Publication:
    """Return a publication that somebody wrote. ReportError if it is damaged, of another format, or names a path as a file."""
    found = read_fields(Publication, json_object(raw, where, ReportError), where)
    if found.format != FORMAT:
        raise ReportError(f"{where} has format {found.format}, this quantlab reads {FORMAT}")
    if len(found.files) > MOST_FILES:
        raise ReportError(f"{where} names {len(found.files):,} files, at most {MOST_FILES} are fetched")
    for name, file in found.files.items():
        if not PLAIN_NAME.fullmatch(name) or name == MANIFEST_NAME:
            raise ReportError(f"{where} names the file {name!r}, which is no plain file name")
        if file.bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            raise ReportError(f"{where}: size or hash of {name} is wrong")
    return found


def upload(publication: Publication, folder: Path, place: Place, *, force: bool, progress: Progress = silent) -> list[str]:
    """Write the files of a publication to a place, quantlab.json last; return the names that were sent now.

    Args:
        folder: holds the files under their names.
        force: whether another publication there is replaced.
    Raises:
        ConfigError: another publication is there.
        QuantlabError: the place cannot be read or written, or a file has changed.
    """
    there = place.names()
    if MANIFEST_NAME in there:
        old = read_publication(place.read(MANIFEST_NAME, MOST_MANIFEST_BYTES), f"{place.url}/{MANIFEST_NAME}")
        if old == publication:
            return []
        if not force:
            raise ConfigError(f"{place.url} holds another publication, {old.name}", hint="pass --force to replace it")
    arrived = {name: digest for name, digest in _arrived(place, there).items() if name in there}
    sent = []
    for number, (name, file) in enumerate(publication.files.items()):
        progress("upload", number, len(publication.files), name)
        if hash_file(folder / name) != (file.bytes, file.sha256):
            raise QuantlabError(f"{folder / name} has changed while it was published")
        if arrived.get(name) != file.sha256:
            place.put(folder / name, name)
            sent.append(name)
            arrived[name] = file.sha256
            _put_bytes(place, UPLOADING_NAME, json.dumps(arrived).encode())
    _put_bytes(place, MANIFEST_NAME, publication.to_json())
    progress("upload", len(publication.files), len(publication.files))
    return sent


def _arrived(place: Place, there: list[str]) -> Mapping[str, str]:
    """Return the files that an earlier attempt has sent, with their hashes; what cannot be read is sent again."""
    if UPLOADING_NAME not in there:
        return {}
    try:
        found = json_object(place.read(UPLOADING_NAME, MOST_MANIFEST_BYTES), UPLOADING_NAME, ReportError)
    except ReportError:
        return {}
    return {name: digest for name, digest in found.items() if isinstance(digest, str)}


def _put_bytes(place: Place, name: str, data: bytes) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        place.put(Path(folder) / name, name)


def fetch_publication(place: Place) -> Publication:
    """Return what a place says of itself. QuantlabError if there is no whole publication."""
    names = place.names()
    if MANIFEST_NAME not in names:
        why = "its upload has not ended" if UPLOADING_NAME in names else f"it has no {MANIFEST_NAME}"
        raise QuantlabError(f"{place.url} is no published model: {why}")
    return read_publication(place.read(MANIFEST_NAME, MOST_MANIFEST_BYTES), f"{place.url}/{MANIFEST_NAME}")


def download(
    publication: Publication, place: Place, folder: Path, *, force: bool, progress: Progress = silent
) -> Iterator[tuple[str, bool]]:
    """Write the files into `folder`; yield each name, and whether it was fetched now.

    A file takes its name only when its size and hash are those of the publication. One that is there with the same hash stays.

    Raises:
        ConfigError: a file of that name with other content is there, and `force` is not set.
        QuantlabError: a file cannot be read, or is not what the publication says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    same = {name: _is_there(folder / name, file, force) for name, file in publication.files.items()}
    for number, (name, file) in enumerate(publication.files.items()):
        progress("download", number, len(publication.files), name)
        if not same[name]:
            _download(place, name, file, folder / name)
        yield name, not same[name]
    with whole_file(folder / MANIFEST_NAME) as out:
        out.write(publication.to_json())
    progress("download", len(publication.files), len(publication.files))


def _is_there(path: Path, file: PublishedFile, force: bool) -> bool:
    if not path.exists():
        return False
    if path.is_file() and hash_file(path) == (file.bytes, file.sha256):
        return True
    if not force or not path.is_file():
        raise ConfigError(f"output {path} exists and is another file", hint="pass --force to replace it")
    return False


def _download(place: Place, name: str, file: PublishedFile, path: Path) -> None:
    import hashlib

    digest, size = hashlib.sha256(), 0
    with whole_file(path) as out:
        for block in place.blocks(name):
            size += len(block)
            digest.update(block)
            if size > file.bytes:
                raise QuantlabError(f"{place.url}/{name} has more than the {file.bytes:,} bytes that {MANIFEST_NAME} says")
            out.write(block)
        if (size, digest.hexdigest()) != (file.bytes, file.sha256):
            raise QuantlabError(
                f"{place.url}/{name} is not what {MANIFEST_NAME} says: {size:,} of {file.bytes:,} bytes, sha256 "
                f"{digest.hexdigest()[:12]} for {file.sha256[:12]}"
            )
