"""SHA-256 of files by their content; a hash is remembered as long as the file keeps its size and its time of change."""

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quantlab.errors import DataError, QuantlabError
from quantlab.fields import read_json
from quantlab.files import hash_file, write_whole
from quantlab.progress import Progress, silent
from quantlab.text.shards import match_shards

SETTLED_SECONDS = 2.0
"""A file that changes twice within a tick of its clock looks the same both times, so only older files are remembered."""
THREADS = 8

_ENTRY = [int, int, int, str]
"""Types of size, time, inode and hash in the cache."""
Contents = list[list[str]]
"""Name and hex SHA-256 of each file."""


class FileHashes:
    """Hashes that this process computed, and those of earlier ones in the file `cache` if there is one.

    In all methods `what` is the option that named the file; errors begin with it.
    """

    def __init__(self, cache: Path | None = None, progress: Progress = silent) -> None:
        self._cache, self._progress = cache, progress
        self._known: dict[str, list[Any]] = _read_cache(cache) if cache else {}
        self._is_changed = False

    def of(self, path: Path, what: str) -> str:
        """Return the hex SHA-256 of a file. DataError if it is missing or cannot be read."""
        return self._of_all([path], what)[0]

    def of_files(self, paths: Iterable[Path], what: str) -> Contents:
        """Return name and hash of each file in the given order; the folders that they lie in do not matter."""
        paths = list(paths)
        return [[p.name, digest] for p, digest in zip(paths, self._of_all(paths, what), strict=True)]

    def of_source(self, text: str, what: str) -> Contents:
        """Return the files that `text:FILE` or `tokens:GLOB` names; an empty list for any other source."""
        kind, _, path = text.partition(":")
        if kind == "text":
            return self.of_files([Path(path)], what)
        return self.of_shards(path, what) if kind == "tokens" else []

    def of_shards(self, pattern: str, what: str) -> Contents:
        """Return the token shards that a pattern matches. DataError if there are none."""
        try:
            paths = match_shards(pattern)
        except DataError as error:
            raise DataError(f"{what}: {error}") from error
        return self.of_files(paths, what)

    def of_checkpoint(self, path: Path, what: str) -> Contents:
        """Return suffix and hash of a file, or the .safetensors and .json files of a folder."""
        if not path.is_dir():
            return [[path.suffix, self.of(path, what)]]
        names = sorted(n for n in os.listdir(path) if n.endswith((".safetensors", ".json")))
        return self.of_files([path / name for name in names], what)

    def save(self) -> None:
        """Write the hashes of settled files to the cache."""
        if self._cache and self._is_changed:
            limit = (time.time() - SETTLED_SECONDS) * 1e9
            settled = {name: entry for name, entry in self._known.items() if entry[1] < limit}
            write_whole(self._cache, (json.dumps(settled, indent=0) + "\n").encode())
            self._is_changed = False

    def _of_all(self, paths: list[Path], what: str) -> list[str]:
        now = [_stamp(path, what) for path in paths]
        new = [(p, s) for p, s in zip(paths, now, strict=True) if self._known.get(os.path.abspath(p), [])[:3] != s]
        if new:
            self._hash_all(new, what)
        return [str(self._known[os.path.abspath(path)][3]) for path in paths]

    def _hash_all(self, new: list[tuple[Path, list[int]]], what: str) -> None:
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            digests = pool.map(lambda entry: _digest(entry[0], what), new)
            for done, ((path, stamp), digest) in enumerate(zip(new, digests, strict=True), start=1):
                self._known[os.path.abspath(path)] = [*stamp, digest]
                if len(new) > 1:
                    self._progress(f"hash {what}", done, len(new))
        self._is_changed = True


def _stamp(path: Path, what: str) -> list[int]:
    """Return a file's size, the time of its last change in nanoseconds, and its inode."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{what}: cannot read {path}: {error.strerror}") from error
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise DataError(f"{what}: {path} is {kind}, a file is needed")
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _digest(path: Path, what: str) -> str:
    try:
        return hash_file(path)[1]
    except QuantlabError as error:
        raise DataError(f"{what}: {error}") from error


def _read_cache(cache: Path) -> dict[str, list[Any]]:
    """Return what the cache holds; an unreadable one only costs time."""
    try:
        known = read_json(cache)
    except QuantlabError:
        return {}
    if not isinstance(known, dict):
        return {}
    return {name: entry for name, entry in known.items() if isinstance(entry, list) and [*map(type, entry)] == _ENTRY}
