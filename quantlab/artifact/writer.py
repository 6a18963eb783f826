"""From codes, scales and unquantized tensors to the bytes of a .qlab file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.container import Section, check_codes, check_expansion, check_tables, write_container
from quantlab.artifact.layout import Layout, layout_of
from quantlab.artifact.manifest import GridTensor, Manifest, RawTensor, TrellisTensor, check_files
from quantlab.artifact.shaped_grid import context_of
from quantlab.coding.codecs import SELF_CONTAINED, STORED, encode_smallest, to_byte_planes
from quantlab.coding.contexts import TensorContext
from quantlab.coding.frequency_tables import TableSet, fit_tables, sets_to_bytes
from quantlab.coding.rans import code_bits, lanes_for, stream_bytes
from quantlab.errors import FormatError
from quantlab.format_rules import COLUMNS, TABLE_CLASSES


@dataclass(frozen=True, slots=True)
class GridPayload:
    """One matrix on a row grid, ready to be written."""

    entry: GridTensor
    scale_O: NDArray[np.float16]
    codes: Section


@dataclass(frozen=True)
class TrellisPayload:
    """One matrix on a grid with row and column scales, ready to be written."""

    entry: TrellisTensor
    a_O: NDArray[np.int8]
    b_I: NDArray[np.int8]
    rows_O: NDArray[np.int8]
    """Share of each row in the scale class beyond what its step says (artifact.shaped_grid)."""
    columns_I: NDArray[np.int8]
    codes_OI: NDArray[np.int16]

    @cached_property
    def context(self) -> TensorContext:
        """What the coder must know of the matrix."""
        return context_of(self.entry, self.a_O, self.b_I, self.rows_O, self.columns_I)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How often each table meets each symbol of the codes, int64 [28, 256]."""
        from quantlab.coding.rans_numba import histogram  # numba takes a second to load: only where something is coded

        return histogram(self.codes_OI, self.context)


@dataclass(frozen=True, slots=True)
class RawPayload:
    """One unquantized tensor, ready to be written."""

    entry: RawTensor
    raw: bytes
    value: Tensor
    """Value that every reader of the file must get: 16-bit floats as float32."""


Payload = GridPayload | TrellisPayload | RawPayload


@dataclass(frozen=True, slots=True, eq=False)
class EncodedArtifact:
    """A whole file in memory, and where its bytes are; its length is that of the file."""

    data: bytes
    layout: Layout

    def __len__(self) -> int:
        return len(self.data)


def encode_artifact(
    payloads: Sequence[Payload], *, draft: bool = False, files: Mapping[str, bytes] | None = None, **about: Any
) -> EncodedArtifact:
    """Return the file of all payloads; `about` are the other fields of Manifest (model, tokenizer, shapes, ...).

    The stream of trellis codes takes tables fitted to them, one set for each number of table set in the entries.

    Args:
        draft: leaves the code stream out: zeros stand for it, about as many as it would have bytes. For a search that needs
            lengths, which a draft gives nearly, in a fraction of the time.
        files: the tokenizer's files by name, which the artifact carries.
    Raises:
        FormatError: a file has another name than FILE_NAMES, is empty, or there are more bytes than MAX_FILE_BYTES.
        ExpansionError: the file would be so short that readers refuse it.
    """
    grids = [p for p in payloads if isinstance(p, GridPayload)]
    trellises = [p for p in payloads if isinstance(p, TrellisPayload)]
    codecs = None if grids else SELF_CONTAINED  # without row grids, the standard library and numpy are enough to read the file
    scales = np.concatenate([np.empty(0, np.float16), *(p.scale_O for p in grids)])
    shapes = _joined([*(p.a_O for p in trellises), *(p.b_I for p in trellises)])
    classes = _joined([*(p.rows_O for p in trellises), *(p.columns_I for p in trellises)])
    raw = b"".join(p.raw for p in payloads if isinstance(p, RawPayload))
    coded = _coded(trellises, draft)
    small = [_cached_section(part, codecs) for part in (to_byte_planes(scales), shapes, raw, classes, coded.tables)]
    sections = [*small, Section(STORED, len(coded.stream), coded.stream), *(p.codes for p in grids)]
    sizes = {name: len(content) for name, content in sorted((files or {}).items())}
    check_files(sizes)
    if files:
        sections.append(_cached_section(b"".join(files[name] for name in sizes), codecs))
    manifest = Manifest(tensors=tuple(p.entry for p in payloads), lanes=coded.lanes, files=sizes, **about)
    data = write_container(manifest.to_dict(), sections)
    check_codes((p.entry.shape for p in trellises), len(data))
    check_tables(len(coded.tables), len(data))
    check_expansion(manifest.aliased_elements, len(data))
    code_bytes = {p.entry.name: round(bits / 8) for p, bits in zip(trellises, coded.bits, strict=True)}
    return EncodedArtifact(data, layout_of(manifest, sections, len(data), code_bytes))


def _joined(parts: list[NDArray[np.int8]]) -> bytes:
    return np.concatenate([np.empty(0, np.int8), *parts]).tobytes()


@dataclass(frozen=True, slots=True)
class _Coded:
    """All trellis codes: the number of lanes, stored tables, stream, and the length of each payload's codes in bits."""

    lanes: int = 0
    tables: bytes = b""
    stream: bytes = b""
    bits: tuple[float, ...] = ()


def _coded(payloads: list[TrellisPayload], draft: bool) -> _Coded:
    if not payloads:
        return _Coded()
    sets = fit_sets(payloads)
    bits = _code_bits(payloads, sets)
    lanes = lanes_for(sum(bits) / 8, sum(p.codes_OI.size for p in payloads))
    stream = bytes(stream_bytes(sum(bits), lanes)) if draft else _stream(payloads, sets, lanes)
    return _Coded(lanes, sets_to_bytes(sets), stream, tuple(bits))


def _stream(payloads: list[TrellisPayload], sets: list[TableSet], lanes: int) -> bytes:
    from quantlab.coding.rans_numba import encode

    return encode([p.codes_OI for p in payloads], [p.context for p in payloads], sets, lanes)


def _code_bits(payloads: Sequence[TrellisPayload], sets: list[TableSet]) -> list[float]:
    return [code_bits(p.counts, p.context, sets[p.entry.tables]) for p in payloads]


def coded_bytes(payloads: Sequence[TrellisPayload]) -> list[int]:
    """Return what each payload's codes take in the stream, to the nearest byte; lanes and tables are shared by all."""
    return [round(one / 8) for one in _code_bits(payloads, fit_sets(payloads))]


def fit_sets(payloads: Sequence[TrellisPayload]) -> list[TableSet]:
    """Return frequency tables fitted to the codes of all payloads, by number of table set."""
    counts = np.zeros((1 + max(p.entry.tables for p in payloads), TABLE_CLASSES, COLUMNS), np.int64)
    for p in payloads:
        counts[p.entry.tables] += p.counts
    return [fit_tables(one) for one in counts]


@lru_cache(maxsize=64)  # a search writes the same side information again and again
def _cached_section(raw: bytes, codecs: Sequence[int] | None) -> Section:
    return smallest_section(raw, codecs)


def smallest_section(raw: bytes, codecs: Sequence[int] | None = None) -> Section:
    """Return `raw` under the codec, of those allowed, that makes it smallest."""
    codec, stored = encode_smallest(raw, codecs)
    return Section(codec, len(raw), stored)


def passthrough_payload(name: str, tensor: Tensor, *, exact: bool = False) -> RawPayload:
    """Return a tensor as the file stores it unquantized: floats in 16 bits where that loses less than half a float16 unit.

    float16 and bfloat16 stay as they are; float32 and float64 become float16 if every value survives to
    2**-11 of the tensor's largest, else float32. Integers and bools stay. With `exact` floats keep their own dtype.

    Raises:
        FormatError: a value is not finite, which readers refuse.
    """
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise FormatError(f"tensor {name!r}: a value is not finite")
    if tensor.dtype in (torch.float32, torch.float64) and not exact:
        tensor = tensor.half() if _fits_half(tensor) else tensor.float()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype == torch.bfloat16:
        array: NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16)
    else:
        array = tensor.view(torch.uint8).numpy() if tensor.dtype == torch.bool else tensor.numpy()
    value = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return RawPayload(RawTensor(name=name, shape=tuple(tensor.shape), dtype=dtype), to_byte_planes(array), value)


def _fits_half(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    error = (tensor.half().double() - tensor.double()).abs().max().item()
    return math.isfinite(error) and error <= 2.0**-11 * tensor.abs().max().item()
