"""The Parameter Golf record pipeline on any checkpoint of the baseline architecture: the peer of our files.

After parameter-golf #1855: row step k · std(row) / limit in fp16 (SDClip), GPTQ with act-order, int8 codes by role, each
matrix transposed, each role under lrzip-zpaq or brotli-11, whichever is smaller (brotli alone without the program lrzip). The
three matrices with the largest error get a correction of rank 4 in 2 and 4 bits (LQER, lqer.py).
Left out: row reordering and int8 gates. In the peer's favour: codes may use the whole int8 container (the published limits only
set the step), no pickle framing, and record_search also searches k by group. rate_distortion.py measures its files.

As published, GPTQ of a tied embedding knows only its use as head. Where the model looks a row up, errors of GPTQ are nearly of
rank 1, and LQER takes them away: on small models, whose embedding is a large share, most of its effect is that.
"""

import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from os import cpu_count
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import torch
from lqer import Correction, correction_of, largest_errors
from numpy.typing import NDArray
from torch import Tensor

from quantlab.calib.fisher import column_hessian
from quantlab.calib.statistics import Statistics
from quantlab.methods.classic.gptq import feedback, gptq
from quantlab.methods.classic.row_grid import RowGrid
from quantlab.models.loading import LoadedModel
from quantlab.models.weights import split_state

DAMPING = 0.01
LIMITS = {"embedding": 63, "attention": 31, "mlp": 31}
"""Largest published code of each group; with k it sets the step."""
CONTAINER_BITS = 8
CORRECTIONS = 3
"""Matrices with a correction, as published."""
LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Clips:
    """k of each group, in standard deviations of a row; the defaults are the published ones."""

    embedding: float = 14.0
    attention: float = 13.0
    mlp: float = 11.5

    def times(self, embedding: float, attention: float, mlp: float) -> "Clips":
        """Return each k multiplied by its group's factor."""
        return Clips(self.embedding * embedding, self.attention * attention, self.mlp * mlp)


@dataclass(frozen=True, slots=True)
class Coded:
    """One matrix as the file holds it."""

    q_OI: NDArray[np.int8]
    scale_O: NDArray[np.float16]

    @property
    def weights_OI(self) -> Tensor:
        """Weights float32 [O, I], as a reader of the file gets them."""
        return torch.from_numpy(self.q_OI.astype(np.float32) * self.scale_O.astype(np.float32)[:, None])


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed model: the file, and the state dict that was read back from it."""

    state: dict[str, Tensor]
    data: bytes
    clips: Clips
    grid: tuple[dict[str, float], ...] = ()
    """Factors and KL of every combination that was tried; empty for published ratios."""


class RecordPipeline:
    """Quantizes, codes and sizes one model; all results are cached, so a search computes nothing twice."""

    def __init__(
        self, loaded: LoadedModel, stats: Statistics, *, corrections: int = CORRECTIONS, workers: int = cpu_count() or 1
    ) -> None:
        """Prepare GPTQ of every matrix.

        Args:
            corrections: matrices that get a low-rank correction, those with the largest error; 0 leaves LQER out.
        """
        self.loaded, self.stats, self.workers, self.corrections = loaded, stats, workers, corrections
        self.matrices, others = split_state(loaded.state)
        self.passthrough = {name: t.to(torch.float16) for name, t in others.items() if t.is_floating_point()}
        self.roles: dict[str, list[str]] = {}
        for name in self.matrices:
            self.roles.setdefault(role_of(name), []).append(name)
        products, lookups = stats.products, stats.lookups  # of a tied embedding its role as head alone, as published
        uses = {name: products[name] if name in products else lookups[name] for name in self.matrices}
        self._feedback = self._map(lambda n: feedback(n, column_hessian((uses[n],)), damping=DAMPING), self.matrices)
        self._coded: dict[tuple[str, float], Coded] = {}
        self._corrections: dict[tuple[str, float], Correction] = {}
        self._sizes: dict[tuple[str, float], int] = {}

    def quantize(self, name: str, clips: Clips) -> Coded:
        """Quantize one matrix by GPTQ on row steps k · std(row) / limit."""
        group = group_of(name)
        k: float = getattr(clips, group)
        if (name, k) not in self._coded:
            w_OI = self.matrices[name]
            scale_O = (k * w_OI.std(1) / LIMITS[group]).half().numpy()
            q_OI = gptq(w_OI, RowGrid(CONTAINER_BITS, scale_O, 0), self._feedback[name])
            self._coded[name, k] = Coded(q_OI.numpy(), scale_O)
        return self._coded[name, k]

    def corrected(self, clips: Clips) -> dict[str, Correction]:
        """Return the corrections of the matrices with the largest error, by name."""
        errors = {name: self.matrices[name] - self.quantize(name, clips).weights_OI for name in self.matrices}
        found = {}
        for name in largest_errors(errors, self.corrections):
            key = (name, getattr(clips, group_of(name)))
            if key not in self._corrections:
                self._corrections[key] = correction_of(errors[name])
            found[name] = self._corrections[key]
        return found

    def state(self, clips: Clips) -> dict[str, Tensor]:
        """Return the state dict that a reader of the file gets."""
        weights = {name: self.quantize(name, clips).weights_OI for name in self.matrices}
        for name, correction in self.corrected(clips).items():
            weights[name] = weights[name] + correction.product_OI
        return weights | {name: t.float() for name, t in self.passthrough.items()}

    def roles_bytes(self, roles: Iterable[str], clips: Clips) -> int:
        """Return the size of these roles' streams under brotli."""
        return sum(self._map(lambda role: self._role_bytes(role, clips), roles).values())

    def brotli_bytes(self, clips: Clips) -> int:
        """Return the size of the file if every role were under brotli."""
        return self.roles_bytes(self.roles, clips) + len(self._frame({role: ("b", b"") for role in self.roles}, clips))

    def encode(self, clips: Clips) -> bytes:
        """Return the file: length of the header, header, one stream a role, then all scales and small tensors."""
        return self._frame(self._map(lambda role: _smallest(self._stream(role, clips)), self.roles), clips)

    def _map(self, f: Callable[[str], Any], names: Iterable[str]) -> dict[str, Any]:
        names = list(names)
        with ThreadPoolExecutor(self.workers) as pool:
            return dict(zip(names, pool.map(f, names), strict=True))

    def _role_bytes(self, role: str, clips: Clips) -> int:
        key = (role, getattr(clips, group_of(role)))
        if key not in self._sizes:
            self._sizes[key] = len(_brotli(self._stream(role, clips)))
        return self._sizes[key]

    def _stream(self, role: str, clips: Clips) -> bytes:
        return b"".join(self.quantize(name, clips).q_OI.T.tobytes() for name in self.roles[role])

    def _frame(self, streams: dict[str, tuple[str, bytes]], clips: Clips) -> bytes:
        names = [name for role in self.roles.values() for name in role]
        corrected = self.corrected(clips)
        header = {
            "roles": [[coder, len(stream), len(self.roles[role])] for role, (coder, stream) in streams.items()],
            "matrices": [[name, *self.matrices[name].shape] for name in names],
            "kept": [[name, *t.shape] for name, t in self.passthrough.items()],
            "corrected": list(corrected),
        }
        head = _brotli(json.dumps(header, separators=(",", ":")).encode())
        halves = [self.quantize(name, clips).scale_O for name in names] + [t.numpy() for t in self.passthrough.values()]
        side = _brotli(b"".join(h.tobytes() for h in halves) + b"".join(c.to_bytes() for c in corrected.values()))
        return LENGTH.pack(len(head)) + head + b"".join(stream for _, stream in streams.values()) + side


def role_of(name: str) -> str:
    """Return the part of a tensor's name that all blocks share."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def group_of(name: str) -> str:
    """Return the field of `Clips` that a tensor or role belongs to."""
    return "mlp" if "mlp." in name else "attention" if "attn." in name else "embedding"


def decode(data: bytes) -> dict[str, Tensor]:
    """Return the state dict float32 of a file by `RecordPipeline.encode`, from its bytes alone."""
    at = LENGTH.size + LENGTH.unpack_from(data)[0]
    header = json.loads(brotli.decompress(data[LENGTH.size : at]))
    matrices, codes = iter(header["matrices"]), {}
    for coder, size, count in header["roles"]:
        raw, at = np.frombuffer(_decompress(coder, data[at : at + size]), np.int8), at + size
        for name, rows, columns in (next(matrices) for _ in range(count)):
            codes[name], raw = raw[: rows * columns].reshape(columns, rows).T, raw[rows * columns :]
    side, state = _Bytes(brotli.decompress(data[at:])), {}
    for name, q_OI in codes.items():
        state[name] = Coded(q_OI, side.take(len(q_OI), np.float16)).weights_OI
    for name, *shape in header["kept"]:
        state[name] = torch.from_numpy(side.take(prod(shape), np.float16).astype(np.float32)).view(shape)
    for name in header["corrected"]:
        correction, size = Correction.from_bytes(side.rest, *state[name].shape)
        side.take(size, np.uint8)
        state[name] = state[name] + correction.product_OI
    return state


class _Bytes:
    """Bytes that are read from the front."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest

    def take(self, count: int, dtype: Any) -> NDArray[Any]:
        """Return the next `count` values."""
        values: NDArray[Any] = np.frombuffer(self.rest, dtype, count)
        self.rest = self.rest[values.nbytes :]
        return values


def _brotli(raw: bytes) -> bytes:
    stream: bytes = brotli.compress(raw, quality=11, lgwin=24)
    return stream


def _smallest(raw: bytes) -> tuple[str, bytes]:
    streams = [("b", _brotli(raw))]
    if shutil.which("lrzip"):
        streams.append(("z", _lrzip(raw, "-z", "-L", "9", "-N", "0")))  # its default is the lowest priority
    return min(streams, key=lambda s: len(s[1]))


def _decompress(coder: str, stream: bytes) -> bytes:
    raw: bytes = brotli.decompress(stream) if coder == "b" else _lrzip(stream, "-d")
    return raw


def _lrzip(data: bytes, *options: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.write_bytes(data)
        subprocess.run(["lrzip", "-q", *options, "-o", target, source], check=True, capture_output=True)
        return target.read_bytes()
