"""Layout of a .qlab file: its bytes by part and by tensor. The writer returns it; a reader computes it from the sections."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantlab.artifact.container import DIGEST_BYTES, HEADER, SECTION, Section
from quantlab.artifact.decode import CLASSES, CODES, GRID_SCALES, RAW, ROW_SCALES, STREAM, TABLES
from quantlab.artifact.manifest import GridTensor, Manifest, RawTensor, TrellisTensor
from quantlab.coding.codecs import CODECS


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBytes:
    """Bytes of one quantized matrix."""

    name: str
    shape: tuple[int, int]
    width_bits: int
    """Width of the codes' container; the coder decides the bytes on disk."""
    codec: str
    code_bytes: int | None
    """Coded stream; None where a reader cannot tell: trellis-coded tensors share one stream, whose writer knows."""
    side_bytes: int
    """Scales before their codec, and the tensor's line in the section table if it has one."""

    @property
    def bytes(self) -> int | None:
        """Coded stream and side information."""
        return None if self.code_bytes is None else self.code_bytes + self.side_bytes

    @property
    def bpw(self) -> float | None:
        """8 · bytes / weights."""
        weights = math.prod(self.shape)
        return None if self.bytes is None or not weights else 8 * self.bytes / weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The parts of one file."""

    size_breakdown: dict[str, int]
    """Bytes by part: codes, scales, entropy_model (its side information), passthrough, tokenizer where the file carries one,
    manifest, framing; they add up to the file's length."""
    tensors: tuple[TensorBytes, ...]
    """Quantized matrices in the file's order."""
    passthrough: tuple[RawTensor, ...]
    """Tensors that are stored unquantized."""


def layout_of(
    manifest: Manifest, sections: Sequence[Section], file_bytes: int, code_bytes: Mapping[str, int] | None = None
) -> Layout:
    """Return the layout of a file of `file_bytes` bytes; `code_bytes` says what the codes of each trellis tensor take."""
    return Layout(
        size_breakdown=_breakdown(sections, file_bytes, has_files=bool(manifest.files)),
        tensors=_tensors(manifest, sections, code_bytes or {}),
        passthrough=tuple(tensor for tensor in manifest.tensors if isinstance(tensor, RawTensor)),
    )


def _breakdown(sections: Sequence[Section], file_bytes: int, *, has_files: bool) -> dict[str, int]:
    stored = [len(section.stored) for section in sections]
    end = len(stored) - has_files
    framing = HEADER.size + SECTION.size * len(sections) + DIGEST_BYTES
    return {
        "codes": stored[STREAM] + sum(stored[CODES:end]),
        "scales": stored[ROW_SCALES] + stored[GRID_SCALES],
        "entropy_model": stored[CLASSES] + stored[TABLES],
        "passthrough": stored[RAW],
        **({"tokenizer": stored[end]} if has_files else {}),
        "manifest": file_bytes - framing - sum(stored),
        "framing": framing,
    }


def _tensors(manifest: Manifest, sections: Sequence[Section], code_bytes: Mapping[str, int]) -> tuple[TensorBytes, ...]:
    own_sections = iter(sections[CODES:])
    return tuple(
        _on_row_grid(tensor, next(own_sections)) if isinstance(tensor, GridTensor) else _on_trellis(tensor, code_bytes)
        for tensor in manifest.tensors
        if not isinstance(tensor, RawTensor)
    )


def _on_row_grid(tensor: GridTensor, section: Section) -> TensorBytes:
    rows, columns = tensor.shape
    return TensorBytes(
        name=tensor.name,
        shape=(rows, columns),
        width_bits=tensor.bits,
        codec=CODECS[section.codec].name,
        code_bytes=len(section.stored),
        side_bytes=SECTION.size + 2 * rows,
    )


def _on_trellis(tensor: TrellisTensor, code_bytes: Mapping[str, int]) -> TensorBytes:
    rows, columns = tensor.shape
    return TensorBytes(
        name=tensor.name,
        shape=(rows, columns),
        width_bits=tensor.bits,
        codec="rans",
        code_bytes=code_bytes.get(tensor.name),
        side_bytes=2 * (rows + columns),
    )
