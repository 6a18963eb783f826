"""What an artifact says about itself, as plain JSON types."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantlab.artifact.container import DIGEST_BYTES, HEADER, SECTION, VERSION, Section
from quantlab.artifact.decode import CLASSES, CODES, RAW, SCALES, SHAPES, STREAM, TABLES, read_artifact
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
        "bytes_by_kind": bytes_by_kind(size, sections),
        "producer": manifest.producer,
        "model": manifest.model,
        "tokenizer": manifest.tokenizer,
        "origin": manifest.origin,
        "tensors": _tensors(manifest, sections),
    }


def bytes_by_kind(file_bytes: int, sections: Sequence[Section]) -> dict[str, int]:
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
