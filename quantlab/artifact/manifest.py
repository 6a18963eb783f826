"""The manifest, in which a .qlab file describes itself: checked dataclasses, stored as JSON with sorted keys."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from quantlab.coding.frequency_tables import MAX_SETS
from quantlab.coding.rans import MAX_LANES, MIN_LANES
from quantlab.errors import FormatError
from quantlab.fields import JSON, Reader
from quantlab.format_rules import STATES, WIDE, WIDTHS

MAX_ELEMENTS = 1 << 32  # of one tensor
FILE_NAMES = (
    *("added_tokens.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer.model"),
    "tokenizer_config.json",
)
"""Names that the files of a tokenizer may have inside an artifact, in order."""
MAX_FILE_BYTES = 1 << 26  # of all files together
RAW_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")


@dataclass(frozen=True, kw_only=True, slots=True)
class GridTensor:
    """A matrix as integer codes on a per-row grid: w[i, j] = code[i, j] · scale[i] · 2**exponent."""

    name: str
    """Key in the state dict."""
    shape: tuple[int, ...]
    """[rows, columns]."""
    bits: int
    """Codes lie within ±(2**(bits-1) - 1)."""
    exponent: int
    """Power of two that all float16 row scales of this tensor share."""
    kind: Literal["row_grid"] = "row_grid"

    def __post_init__(self) -> None:
        _check_coded(self.name, self.shape, self.bits, WIDTHS)
        if type(self.exponent) is not int or not -126 <= self.exponent <= 127:
            raise FormatError(f"tensor {self.name!r}: exponent must lie in -126 to 127, got {self.exponent!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrellisTensor:
    """A matrix as integer codes on a grid with row and column scales.

    w[i, j] = (code[i, j] - half[i, j]) · 2**(level/64 + (a[i] + b[j])/4), where half is ½ for weights on a path of the trellis
    and 0 for those that bypass it (format_rules).
    """

    name: str
    """Key in the state dict."""
    shape: tuple[int, ...]
    """[rows, columns]."""
    bits: int
    """Codes lie within ±(2**(bits-1) - 1)."""
    level: int
    """Log-step index: the size of all steps, in 64ths of a power of two."""
    states: int
    """Number of states of the trellis; 1 for plain integers."""
    paths: Literal["blocks", "columns"]
    """Order of weights on the paths of the trellis (format_rules.PATHS); with 1 state, the order in which they were rounded."""
    classes: int
    """Offset of the scale classes of all weights: log2 of how large weights are in steps, in quarters."""
    tables: int
    """Number of its table set."""
    kind: Literal["trellis_grid"] = "trellis_grid"

    def __post_init__(self) -> None:
        _check_coded(self.name, self.shape, self.bits, (*WIDTHS, WIDE))
        for key, low, high in (("level", -7680, 7680), ("classes", -500, 500), ("tables", 0, MAX_SETS - 1)):
            value = getattr(self, key)
            if type(value) is not int or not low <= value <= high:
                raise FormatError(f"tensor {self.name!r}: {key} must lie in {low} to {high}, got {value!r}")
        if type(self.states) is not int or self.states not in STATES:
            raise FormatError(f"tensor {self.name!r}: states must be one of {', '.join(map(str, STATES))}, got {self.states!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTensor:
    """A tensor stored unquantized, in `dtype`."""

    name: str
    """Key in the state dict."""
    shape: tuple[int, ...]
    """Any number of dimensions, also none."""
    dtype: str
    """One of RAW_DTYPES."""
    kind: Literal["raw"] = "raw"

    def __post_init__(self) -> None:
        _check_shape(self.name, self.shape)
        if self.dtype not in RAW_DTYPES:
            raise FormatError(f"tensor {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(RAW_DTYPES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything in a file but the bytes of its tensors."""

    tensors: "tuple[Tensor, ...]"
    """All tensors, in the order in which their bytes lie in the sections."""
    model: dict[str, Any] = field(default_factory=dict)
    """Model config of the built-in architecture; empty for a model of the user's own."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """sha256 (first 32 hex digits) and vocab_size of the tokenizer; empty when none was given."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Fingerprints and options that made the file."""
    files: dict[str, Any] = field(default_factory=dict)
    """Bytes of each file of the tokenizer that the artifact carries, by name; empty where it carries none."""
    producer: str = ""
    """Program that wrote the file, and its version."""
    lanes: int = 0
    """Number of interleaved lanes of the code stream; 0 where no tensor is in it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; fields that hold their default are left out of the file."""
        whole = asdict(self)
        return {key: value for key, value in whole.items() if value or key == "tensors"}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Manifest":
        """Return the manifest that `to_dict` turned into `raw`.

        Raises:
            FormatError: a missing or unknown key, a wrong type, a value out of range, or a name used twice.
        """
        entries = raw.get("tensors", [])
        if not isinstance(entries, list):
            raise FormatError("manifest tensors must be a list")
        manifest = _READER.read(cls, raw | ({"tensors": []} if "tensors" in raw else {}), "manifest")
        if not (manifest.lanes == 0 or MIN_LANES <= manifest.lanes <= MAX_LANES):
            raise FormatError(f"manifest lanes must be 0, or {MIN_LANES} to {MAX_LANES}, got {manifest.lanes!r}")
        tensors = tuple(_read_tensor(index, entry) for index, entry in enumerate(entries))
        counts = Counter(t.name for t in tensors)
        if len(counts) != len(tensors):
            raise FormatError(f"tensor {counts.most_common(1)[0][0]!r} is listed twice")
        _check_tokenizer(manifest.tokenizer)
        check_files(manifest.files)
        return replace(manifest, tensors=tensors)


CodedTensor = GridTensor | TrellisTensor
Tensor = CodedTensor | RawTensor
_KINDS: dict[str, type[GridTensor] | type[TrellisTensor] | type[RawTensor]] = {
    "row_grid": GridTensor,
    "trellis_grid": TrellisTensor,
    "raw": RawTensor,
}


_READER = Reader(error=FormatError, refuses_unknown_keys=True, refuses_large_numbers=True, notation=JSON)


def _read_tensor(index: int, entry: Any) -> Tensor:
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str) or entry["kind"] not in _KINDS:
        kind = entry.get("kind") if isinstance(entry, dict) else entry
        raise FormatError(f"tensor {index}: kind {kind!r} is not one of {', '.join(_KINDS)}")
    tensor: Tensor = _READER.read(_KINDS[entry["kind"]], entry, f"tensor {index}")
    _check_name(tensor.name)
    return tensor


def _check_tokenizer(raw: dict[str, Any]) -> None:
    if raw and not (isinstance(raw.get("sha256"), str) and type(raw.get("vocab_size")) is int):
        raise FormatError("manifest tokenizer needs sha256, a string, and vocab_size, a whole number")


def check_files(sizes: Mapping[str, Any]) -> None:
    """Raise FormatError unless these are names of FILE_NAMES, each with 1 byte or more, and MAX_FILE_BYTES in all at most."""
    for name, size in sizes.items():
        if name not in FILE_NAMES:
            raise FormatError(f"manifest files: {name!r:.60} is not one of {', '.join(FILE_NAMES)}")
        if type(size) is not int or size < 1:
            raise FormatError(f"manifest files: {name} must have a whole number of bytes, at least 1, got {size!r:.60}")
    if (total := sum(sizes.values())) > MAX_FILE_BYTES:
        raise FormatError(f"manifest files: {total} bytes in all, at most {MAX_FILE_BYTES} are allowed")


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"tensor name {name!r} is not valid Unicode") from error
    if name == "__metadata__":  # safetensors keeps its header's strings under this name
        raise FormatError("no tensor may be named '__metadata__'")


def _check_coded(name: str, shape: tuple[Any, ...], bits: Any, widths: tuple[int, ...]) -> None:
    _check_shape(name, shape)
    if len(shape) != 2:
        raise FormatError(f"tensor {name!r}: a grid needs 2 dimensions, got shape {list(shape)}")
    if type(bits) is not int or bits not in widths:
        raise FormatError(f"tensor {name!r}: bits must be one of {', '.join(map(str, widths))}, got {bits!r}")


def _check_shape(name: str, shape: tuple[Any, ...]) -> None:
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in shape):
        raise FormatError(f"tensor {name!r}: shape {list(shape)} is not at most 8 whole numbers below {MAX_ELEMENTS}")
    if math.prod(shape) >= MAX_ELEMENTS:
        raise FormatError(f"tensor {name!r}: shape {list(shape)} has {MAX_ELEMENTS} elements or more")
