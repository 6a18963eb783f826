"""The work that a killed packing leaves behind, so that `pack --resume` goes on where it stopped.

A folder beside the output keeps the statistics, notes such as the chosen effort, the tuned tensors, and the codes of every
finished tensor, each file written whole or not at all. Packing is deterministic: a resumed one takes the same steps and finds
most of them done, so it writes the same bytes. The folder goes away with success.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantlab.calib.statistics import Statistics, read_statistics, write_statistics
from quantlab.errors import ConfigError
from quantlab.files import write_whole
from quantlab.models.checkpoint import read_checkpoint
from quantlab.tensor_file import read_metadata, write_safetensors

Codes = NDArray[np.int16]
Tensors = tuple[dict[str, Tensor], dict[str, str]]


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
        self._lock = Lock()
        about = folder / "pack.json"
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        elif about.is_file() and about.read_text() != self._about:
            raise ConfigError(f"{folder} was left by another checkpoint, budget or options", hint="run without --resume")
        self._kept_bytes = sum(path.stat().st_size for path in folder.glob("*.npy"))

    def codes(self, key: bytes, compute: Callable[[], Codes]) -> Codes:
        """Return what `compute` gives, or gave in an earlier packing under the same key."""
        path = self.folder / f"{hashlib.sha256(key).hexdigest()[:32]}.npy"
        if path.is_file():
            known: Codes = np.load(path, allow_pickle=False).astype(np.int16)
            return known
        codes = compute()
        fits = codes.size == 0 or (codes.min() >= -128 and codes.max() <= 127)
        buffer = io.BytesIO()
        np.save(buffer, codes.astype(np.int8) if fits else codes)
        if self._has_room(len(buffer.getvalue())):
            self._write(path, buffer.getvalue())
        return codes

    def _has_room(self, size: int) -> bool:
        """Count `size` bytes of codes towards `most_bytes`; False, and nothing is counted, where they exceed it."""
        with self._lock:
            fits = self._most_bytes is None or self._kept_bytes + size <= self._most_bytes
            self._kept_bytes += size if fits else 0
        return fits

    def note(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a small JSON object under a name: what `compute` gives, or gave in an earlier packing."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            self._write(path, json.dumps(compute()).encode())
        noted: dict[str, Any] = json.loads(path.read_text())
        return noted

    def tensors(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """Return named tensors and strings that describe them: what `compute` gives, or gave in an earlier packing."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            tensors, about = compute()
            self._begin()
            write_safetensors(path, tensors, about)
            return tensors, about
        return read_checkpoint(path), read_metadata(path)

    def statistics(self, compute: Callable[[], Statistics]) -> Statistics:
        """Return the statistics: what `compute` gives, or gave in an earlier packing."""
        path = self.folder / "statistics.safetensors"
        if not path.is_file():
            statistics = compute()
            self._begin()
            write_statistics(path, statistics)
        return read_statistics(path)

    def _begin(self) -> None:
        """Make the folder with the first thing worth keeping."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "pack.json", self._about.encode())

    def _write(self, path: Path, data: bytes) -> None:
        self._begin()
        write_whole(path, data)

    def remove(self) -> None:
        """Remove the folder: the packing is done, nothing is left to resume."""
        shutil.rmtree(self.folder, ignore_errors=True)


def folder_of(output: Path) -> Path:
    """Return where a packing to `output` keeps its work."""
    return output.with_name(f".{output.name}.work")
