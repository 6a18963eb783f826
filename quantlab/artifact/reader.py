"""An artifact that is open: what it says about itself, where its bytes are, its tensors, its codes."""

import builtins
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.container import VERSION, Section
from quantlab.artifact.decode import (
    TABLES,
    decode_artifact,
    decode_files,
    decode_row_grids,
    decode_trellis,
    itemsize,
    parse_artifact,
)
from quantlab.artifact.layout import Layout, layout_of
from quantlab.artifact.manifest import Manifest, RawTensor, TrellisTensor
from quantlab.coding.frequency_tables import sets_from_bytes
from quantlab.coding.rans import code_bits
from quantlab.errors import FormatError
from quantlab.files import read_regular

if TYPE_CHECKING:
    from torch import Tensor

MOST_COUNTED_CODE = 64
"""Codes beyond it, in both directions, are counted together with it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Artifact:
    """A .qlab file in memory; its checksums are checked, its codes are decoded when they are asked for."""

    path: Path
    bytes: int
    """Length of the file."""
    sha256: str
    """Hex digest of the file."""
    manifest: Manifest
    sections: list[Section]
    layout: Layout

    @property
    def n_params(self) -> int:
        """Number of weights that are stored, equal tensors once."""
        return sum(math.prod(tensor.shape) for tensor in self.manifest.tensors)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every tensor decoded, as numpy arrays by name. FormatError if a stream is damaged."""
        return decode_artifact(self.manifest, self.sections)

    def tensors(self) -> "dict[str, Tensor]":
        """Return every tensor decoded, as a state dict. FormatError if a stream is damaged."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.arrays().items()}

    def files(self) -> "dict[str, builtins.bytes]":
        """Return the files of the tokenizer that the artifact carries, by name. FormatError if their stream is damaged."""
        return decode_files(self.manifest, self.sections)

    def code_counts(self) -> dict[str, list[int]]:
        """Return by quantized tensor how often each code from -64 to 64 occurs; the ends hold all codes beyond them."""
        return {name: _tally(codes_OI) for name, codes_OI in self._codes()}

    def describe(self) -> dict[str, Any]:
        """Return what `quantlab inspect` shows, as plain JSON types. FormatError if a stream is damaged."""
        return {
            "artifact": str(self.path),
            "version": VERSION,
            "artifact_bytes": self.bytes,
            "size_breakdown": self.layout.size_breakdown,
            "producer": self.manifest.producer,
            "model": self.manifest.model,
            "tokenizer": self.manifest.tokenizer,
            "files": self.manifest.files,
            "origin": self.manifest.origin,
            "shapes": {name: list(shape) for name, shape in self.manifest.shapes.items()},
            "aliases": self.manifest.aliases,
            "tensors": list(self._tensor_rows()),
        }

    def _codes(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for grid, codes_OI, _ in decode_row_grids(self.manifest, self.sections):
            yield grid.name, codes_OI
        for trellis, codes_OI, *_ in decode_trellis(self.manifest, self.sections):
            yield trellis.name, codes_OI

    def _tensor_rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each tensor; bytes are those of its codes, of an unquantized one before the codec that all share."""
        sizes, shared = {tensor.name: tensor for tensor in self.layout.tensors}, self._shared_bytes()
        for tensor in self.manifest.tensors:
            row = {"name": tensor.name, "shape": list(tensor.shape), "kind": tensor.kind}
            if isinstance(tensor, RawTensor):
                yield row | {"stored": tensor.dtype, "bytes": math.prod(tensor.shape) * itemsize(tensor.dtype)}
            elif isinstance(tensor, TrellisTensor):
                stored = f"{tensor.bits} bit, {tensor.states} states, rANS"
                yield row | {"stored": stored, "bytes": shared[tensor.name]}
            else:
                size = sizes[tensor.name]
                yield row | {"stored": f"{tensor.bits} bit, {size.codec}", "bytes": size.code_bytes}

    def _shared_bytes(self) -> dict[str, int]:
        """Return what the codes of each trellis tensor take in the stream that they share, by the tables of the file."""
        from quantlab.coding.rans_numba import histogram

        decoded = list(decode_trellis(self.manifest, self.sections))
        sets = sets_from_bytes(self.sections[TABLES].decode()) if decoded else []
        bits = {t.name: code_bits(histogram(q_OI, at), at, sets[t.tables]) for t, q_OI, at, *_ in decoded}
        return {name: round(one / 8) for name, one in bits.items()}


def open_artifact(path: str | Path) -> Artifact:
    """Return the artifact at `path`. FormatError, naming the file, if it cannot be read or is damaged."""
    path = Path(path)
    data = read_regular(path, FormatError)
    try:
        manifest, sections = parse_artifact(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    return Artifact(
        path=path,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        manifest=manifest,
        sections=sections,
        layout=layout_of(manifest, sections, len(data)),
    )


def _tally(codes_OI: NDArray[Any]) -> list[int]:
    end = MOST_COUNTED_CODE
    clipped = codes_OI.clip(-end, end).astype(np.int64)
    counts: list[int] = np.bincount((clipped + end).ravel(), minlength=2 * end + 1).tolist()
    return counts
