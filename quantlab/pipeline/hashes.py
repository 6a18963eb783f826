"""SHA-256 of files by their content, remembered as long as a file keeps its size and time."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quantlab.errors import DataError
from quantlab.files import write_whole
from quantlab.progress import Progress, silent
from quantlab.text.shards import match_shards

SETTLED_SECONDS = 2.0
"""A file changed again within a tick of its clock would look the same: only older ones are remembered."""
THREADS = 8

Contents = list[list[str]]
"""[name, hex SHA-256] of each file."""


class FileHashes:
    """Hashes of this process' lifetime, and of earlier ones in the file `cache` if there is one."""

    def __init__(self, cache: Path | None = None, progress: Progress = silent) -> None:
        self._cache, self._progress = cache, progress
        self._known: dict[str, list[Any]] = _read(cache) if cache else {}
        self._is_changed = False

    def of(self, path: Path, what: str) -> str:
        """Hex SHA-256 of a file. DataError, which names `what` it is, if it is missing or cannot be read."""
        return self._of_all([path], what)[0]

    def of_files(self, paths: Iterable[Path], what: str) -> Contents:
        """Name and hash of each file, in their order; folders do not matter."""
        paths = list(paths)
        return [[p.name, digest] for p, digest in zip(paths, self._of_all(paths, what), strict=True)]

    def of_source(self, text: str, what: str) -> Contents:
        """What is behind `text:FILE` or `tokens:GLOB`; nothing behind any other source."""
        kind, _, path = text.partition(":")
        if kind == "text":
            return self.of_files([Path(path)], what)
        return self.of_shards(path, what) if kind == "tokens" else []

    def of_shards(self, pattern: str, what: str) -> Contents:
        """The token shards that a pattern matches."""
        try:
            paths = match_shards(pattern)
        except DataError as error:
            raise DataError(f"{what}: {error}") from error
        return self.of_files(paths, what)

    def of_checkpoint(self, path: Path, what: str) -> Contents:
        """A file, whatever its name, or the .safetensors and .json files of a folder."""
        if not path.is_dir():
            return [[path.suffix, self.of(path, what)]]
        names = sorted(n for n in os.listdir(path) if n.endswith((".safetensors", ".json")))
        return self.of_files([path / name for name in names], what)

    def save(self) -> None:
        """Write to the cache what is worth remembering."""
        if self._cache and self._is_changed:
            limit = (time.time() - SETTLED_SECONDS) * 1e9
            settled = {name: entry for name, entry in self._known.items() if entry[1] < limit}
            write_whole(self._cache, (json.dumps(settled, indent=0) + "\n").encode())
            self._is_changed = False

    def _of_all(self, paths: list[Path], what: str) -> list[str]:
        now = [_stamp(path, what) for path in paths]
        new = [(p, s) for p, s in zip(paths, now, strict=True) if self._known.get(_name(p), [])[:3] != s]
        if new:
            self._read_all(new, what)
        return [str(self._known[_name(path)][3]) for path in paths]

    def _read_all(self, new: list[tuple[Path, list[int]]], what: str) -> None:
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            for done, (path, stamp, digest) in enumerate(pool.map(lambda one: (*one, _digest(one[0], what)), new), start=1):
                self._known[_name(path)] = [*stamp, digest]
                if len(new) > 1:
                    self._progress(f"hash {what}", done, len(new))
        self._is_changed = True


def _stamp(path: Path, what: str) -> list[int]:
    """Size, time of the last change in nanoseconds, and number of the file."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{what}: cannot read {path}: {error.strerror}") from error
    if path.is_dir():
        raise DataError(f"{what}: {path} is a folder, a file is needed")
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _digest(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{what}: cannot read {path}: {error.strerror}") from error


def _name(path: Path) -> str:
    return os.path.abspath(path)


def _read(cache: Path) -> dict[str, list[Any]]:
    """An unreadable cache only costs time."""
    try:
        known = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 4}
