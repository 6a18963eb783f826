"""The work that a killed packing leaves behind, so that `pack --resume` goes on where it stopped.

A folder beside the output keeps the statistics, notes such as the chosen effort, the tuned tensors, and the codes of every
finished tensor, each file written whole or not at all. Packing is deterministic: a resumed one takes the same steps and finds
most of them done, so it writes the same bytes. The folder goes away with success.

The name of each file ends in a digest of its bytes, of what it is and of everything that decides the result, so a file that is
damaged, or belongs elsewhere, is never used: what it held is computed anew.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from safetensors.torch import load_file
from torch import Tensor

from quantlab.calib.statistics import Statistics, read_statistics, write_statistics
from quantlab.errors import ConfigError, QuantlabError
from quantlab.files import write_whole
from quantlab.tensor_file import read_metadata, write_safetensors

Codes = NDArray[np.int16]
Tensors = tuple[dict[str, Tensor], dict[str, str]]
T = TypeVar("T")

ABOUT_NAME = "pack.json"
"""Says whose work the folder holds."""
CODES = ".codes"
"""End of the names of files that hold the codes of one tensor, as safetensors."""
_KEPT = re.compile(r"([\w-]+)-([0-9a-f]{32})\.(codes|json|safetensors)")
_log = logging.getLogger(__name__)


class Workspace:
    """The folder of one packing, which is the `Memo` of its method; `key` names everything that decides the result."""

    def __init__(self, folder: Path, key: dict[str, Any], *, resume: bool, most_bytes: int | None = None) -> None:
        """Begin anew, or go on in what an earlier packing with the same key left.

        Args:
            most_bytes: bytes of codes that are kept. Once they are reached nothing is added, and a resumed packing computes
                what is missing.
        Raises:
            ConfigError: the folder was left by a packing of another checkpoint, budget or options.
        """
        self.folder, self._most_bytes = folder, most_bytes
        self._about = json.dumps(key, sort_keys=True)
        self._decided = hashlib.sha256(self._about.encode())
        self._lock = Lock()
        self._found: dict[str, Path] = {}
        if resume and folder.is_dir():
            self._check_about()
            self._find()
        else:
            shutil.rmtree(folder, ignore_errors=True)
        self._kept_bytes = sum(path.stat().st_size for path in self._found.values() if path.suffix == CODES)

    def _check_about(self) -> None:
        """Raise ConfigError if the folder says that it is of other options; write it anew if it is damaged or absent."""
        path = self.folder / ABOUT_NAME
        known = _read_about(path)
        if known is None and path.exists():
            _log.warning("%s is damaged and written anew", path)
        if known is not None and known != self._about:
            raise ConfigError(f"{self.folder} was left by another checkpoint, budget or options", hint="run without --resume")
        if known is None:
            self._write_about()

    def _find(self) -> None:
        """Note the files of finished work, and remove what a killed process was writing."""
        for path in self.folder.iterdir():
            if match := _KEPT.fullmatch(path.name):
                self._found[match[1]] = path
            elif path.name != ABOUT_NAME and path.is_file():
                path.unlink()

    def codes(self, key: bytes, compute: Callable[[], Codes]) -> Codes:
        """Return what `compute` gives, or gave in an earlier packing under the same key."""
        name = hashlib.sha256(key).hexdigest()[:32]
        known = self._known(name, _read_codes)
        if known is not None:
            return known
        codes = compute()
        fits = codes.size == 0 or (codes.min() >= -128 and codes.max() <= 127)
        data = save({"codes": np.ascontiguousarray(codes, np.int8 if fits else np.int16)})
        if self._has_room(len(data)):
            self._write(name, CODES, data)
        return codes

    def _has_room(self, size: int) -> bool:
        """Count `size` bytes of codes towards `most_bytes`; False, and nothing is counted, where they exceed it."""
        with self._lock:
            fits = self._most_bytes is None or self._kept_bytes + size <= self._most_bytes
            self._kept_bytes += size if fits else 0
        return fits

    def note(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a small JSON object under a name: what `compute` gives, or gave in an earlier packing.

        What is kept later depends on it: after another note, it is not found.
        """
        noted = self._known(name, _read_note)
        if noted is None:
            self._write(name, ".json", json.dumps(compute()).encode())
            noted = _read_note(self._found[name])
        self._decided.update(json.dumps(noted, sort_keys=True).encode())
        return noted

    def tensors(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """Return named tensors and strings that describe them: what `compute` gives, or gave in an earlier packing."""
        known = self._known(name, _read_tensors)
        if known is not None:
            return known
        tensors, about = compute()
        self._write_file(name, lambda path: write_safetensors(path, tensors, about))
        return tensors, about

    def statistics(self, compute: Callable[[], Statistics]) -> Statistics:
        """Return the statistics: what `compute` gives, or gave in an earlier packing."""
        known = self._known("statistics", read_statistics)
        if known is not None:
            return known
        statistics = compute()
        return read_statistics(self._write_file("statistics", lambda path: write_statistics(path, statistics)))

    def _known(self, name: str, read: Callable[[Path], T]) -> T | None:
        """Return what the file `name` of an earlier packing holds; None without one. A damaged one is removed, with a line."""
        path = self._found.get(name)
        if path is None:
            return None
        try:
            if path.name == self._sealed(name, path).name:
                return read(path)
        except (OSError, ValueError, KeyError, SafetensorError, QuantlabError) as error:
            _log.debug("%s: %s", path, error)
        _log.warning("%s is damaged: what it held is computed anew", path)
        self._forget(name, path)
        return None

    def _forget(self, name: str, path: Path) -> None:
        with self._lock:
            self._kept_bytes -= path.stat().st_size if path.suffix == CODES else 0
        path.unlink()
        del self._found[name]

    def _sealed(self, name: str, path: Path) -> Path:
        """Return the path that the file at `path` has as the finished work `name`: with the digest of both."""
        digest = self._decided.copy()
        digest.update(f"\n{name}{path.suffix}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return self.folder / f"{name}-{digest.hexdigest()[:32]}{path.suffix}"

    def _write(self, name: str, kind: str, data: bytes) -> None:
        self._write_file(name, lambda path: write_whole(path, data), kind)

    def _write_file(self, name: str, write: Callable[[Path], None], kind: str = ".safetensors") -> Path:
        """Keep what `write` writes; return its path."""
        if not self.folder.is_dir():  # it is made with the first thing worth keeping
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_about()
        path = self.folder / f"{name}{kind}"
        write(path)
        sealed = self._sealed(name, path)
        os.replace(path, sealed)
        self._found[name] = sealed
        return sealed

    def _write_about(self) -> None:
        about = {"key": self._about, "sha256": hashlib.sha256(self._about.encode()).hexdigest()}
        write_whole(self.folder / ABOUT_NAME, json.dumps(about).encode())

    def remove(self) -> None:
        """Remove the folder: the packing is done, nothing is left to resume."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read_about(path: Path) -> str | None:
    """Return the key in a folder's pack.json; None if it is absent or damaged."""
    try:
        about = json.loads(path.read_bytes())
        key = str(about["key"])
        return key if about["sha256"] == hashlib.sha256(key.encode()).hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_codes(path: Path) -> Codes:
    codes = load(path.read_bytes())["codes"]  # np.load parses Python, which threads of CPython 3.11 cannot do at once
    if codes.dtype not in (np.int8, np.int16) or codes.ndim != 2:
        raise ValueError(f"codes must be int8 or int16 [O, I], got {codes.dtype} {codes.shape}")
    return codes.astype(np.int16)


def _read_note(path: Path) -> dict[str, Any]:
    noted = json.loads(path.read_bytes())
    if not isinstance(noted, dict):
        raise ValueError(f"a note must be a JSON object, got {noted!r:.40}")
    return noted


def _read_tensors(path: Path) -> Tensors:
    return dict(load_file(path, device="cpu")), read_metadata(path)


def folder_of(output: Path) -> Path:
    """Return where a packing to `output` keeps its work."""
    return output.with_name(f".{output.name}.work")
