"""What an artifact says about itself, as plain JSON types.

How often each code occurs in an artifact."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.container import DIGEST_BYTES, HEADER, SECTION, VERSION, Section
from quantlab.artifact.decode import (
    CLASSES,
    CODES,
    RAW,
    SCALES,
    SHAPES,
    STREAM,
    TABLES,
    decode_row_grids,
    decode_trellis,
    read_artifact,
)
from quantlab.artifact.manifest import GridTensor, Manifest, TrellisTensor
from quantlab.coding.codecs import CODECS


def describe(path: Path) -> dict[str, Any]:
    """Manifest, tensors with their codec and coded bytes, and where the file's bytes lie. FormatError if damaged."""
    manifest, sections = read_artifact(path)
    size = path.stat().st_size
    return {
        "artifact": str(path),
        "version": VERSION,
        "artifact_bytes": size,
        "size_breakdown": size_breakdown(size, sections),
        "producer": manifest.producer,
        "model": manifest.model,
        "tokenizer": manifest.tokenizer,
        "origin": manifest.origin,
        "tensors": _tensors(manifest, sections),
    }


def size_breakdown(file_bytes: int, sections: Sequence[Section]) -> dict[str, int]:
    """Where the bytes of a file lie; the values add up to its length."""
    stored = [len(s.stored) for s in sections]
    framing = HEADER.size + SECTION.size * len(sections) + DIGEST_BYTES
    return {
        "codes": stored[STREAM] + sum(stored[CODES:]),
        "scales": stored[SCALES] + stored[SHAPES],
        "context": stored[CLASSES] + stored[TABLES],
        "kept": stored[RAW],
        "manifest": file_bytes - framing - sum(stored),
        "framing": framing,
    }


def _tensors(manifest: Manifest, sections: Sequence[Section]) -> list[dict[str, Any]]:
    coded = iter(sections[CODES:])
    rows: list[dict[str, Any]] = []
    for tensor in manifest.tensors:
        row: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "kind": tensor.kind}
        if isinstance(tensor, GridTensor):
            section = next(coded)
            row |= {"stored": f"{tensor.bits} bit, {CODECS[section.codec].name}", "bytes": len(section.stored)}
        elif isinstance(tensor, TrellisTensor):
            row |= {"stored": f"{tensor.bits} bit, {tensor.states} states, rANS"}
        else:
            row |= {"stored": tensor.dtype}
        rows.append(row)
    return rows


CODE_LIMIT = 64
"""Codes beyond it are counted together with it."""


def code_counts(manifest: Manifest, sections: list[Section]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Name of each quantized tensor, and how many of its codes are -CODE_LIMIT to CODE_LIMIT, int64 [2 · CODE_LIMIT + 1].

    Raises:
        FormatError: damaged streams, or codes beyond their width.
    """
    for grid, codes_OI, _ in decode_row_grids(manifest, sections):
        yield grid.name, _tally(codes_OI)
    for trellis, codes_OI, *_ in decode_trellis(manifest, sections):
        yield trellis.name, _tally(codes_OI)


def _tally(codes_OI: NDArray[Any]) -> NDArray[np.int64]:
    clipped = codes_OI.clip(-CODE_LIMIT, CODE_LIMIT).astype(np.int64)
    tally: NDArray[np.int64] = np.bincount((clipped + CODE_LIMIT).ravel(), minlength=2 * CODE_LIMIT + 1)
    return tally
