"""What a .qlab file says about itself, as checked dataclasses; stored as JSON with sorted keys."""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from quantlab.errors import FormatError

MAX_ELEMENTS = 1 << 32  # of one tensor
RAW_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
WIDTHS = range(2, 9)


def code_limit(bits: int) -> int:
    """Largest code of a symmetric grid of `bits` bits: 2**(bits-1) - 1."""
    return int(2 ** (bits - 1) - 1)


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
        _check_coded(self.name, self.shape, self.bits)
        if type(self.exponent) is not int or not -126 <= self.exponent <= 127:
            raise FormatError(f"tensor {self.name!r}: exponent must be -126 to 127, got {self.exponent!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapedTensor:
    """A matrix as integer codes on a shaped grid: w[i, j] = code[i, j] · 2**(level/64 + (a[i] + b[j])/4)."""

    name: str
    """Key in the state dict."""
    shape: tuple[int, ...]
    """[rows, columns]."""
    bits: int
    """Codes lie within ±(2**(bits-1) - 1)."""
    level: int
    """Size of all steps, in 64ths of an octave."""
    kind: Literal["shaped_grid"] = "shaped_grid"

    def __post_init__(self) -> None:
        _check_coded(self.name, self.shape, self.bits)
        if type(self.level) is not int or not -7680 <= self.level <= 7680:
            raise FormatError(f"tensor {self.name!r}: level must be -7680 to 7680, got {self.level!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTensor:
    """A tensor kept as it is in `dtype`."""

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
    """Everything but the tensors' bytes."""

    tensors: "tuple[Tensor, ...]"
    """In the order in which their bytes lie in the sections."""
    model: dict[str, Any] = field(default_factory=dict)
    """Model config of the built-in architecture; empty for a model of the user's own."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """sha256 (first 32 hex digits) and vocab_size of the tokenizer; empty when none was given."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Fingerprints and options that made the file."""
    producer: str = ""
    """Program and version."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; fields that hold their default are left out of the file."""
        whole = asdict(self)
        return {key: value for key, value in whole.items() if value}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Manifest":
        """Inverse of `to_dict`. FormatError on a missing or unknown key, a wrong type, or a name used twice."""
        _check_keys("manifest", raw, {f.name for f in fields(cls)}, {"tensors"})
        for key in ("model", "tokenizer", "origin"):
            if not isinstance(raw.get(key, {}), dict):
                raise FormatError(f"manifest {key} must be an object")
        if not isinstance(raw["tensors"], list) or not isinstance(raw.get("producer", ""), str):
            raise FormatError("manifest tensors must be a list, producer a string")
        tensors = tuple(_read_tensor(index, entry) for index, entry in enumerate(raw["tensors"]))
        counts = Counter(t.name for t in tensors)
        if len(counts) != len(tensors):
            raise FormatError(f"tensor {counts.most_common(1)[0][0]!r} is listed twice")
        _check_tokenizer(raw.get("tokenizer", {}))
        return cls(**{**raw, "tensors": tensors})


CodedTensor = GridTensor | ShapedTensor
Tensor = CodedTensor | RawTensor
_KINDS: dict[str, type[GridTensor] | type[ShapedTensor] | type[RawTensor]] = {
    "row_grid": GridTensor,
    "shaped_grid": ShapedTensor,
    "raw": RawTensor,
}


def _read_tensor(index: int, entry: Any) -> Tensor:
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str) or entry["kind"] not in _KINDS:
        kind = entry.get("kind") if isinstance(entry, dict) else entry
        raise FormatError(f"tensor {index}: kind {kind!r} is not one of {', '.join(_KINDS)}")
    cls = _KINDS[entry["kind"]]
    names = {f.name for f in fields(cls)}
    _check_keys(f"tensor {index}", entry, names, names)
    if not isinstance(entry["name"], str) or not isinstance(entry["shape"], list):
        raise FormatError(f"tensor {index}: name must be a string and shape a list")
    _check_name(entry["name"])
    return cls(**{**entry, "shape": tuple(entry["shape"])})


def _check_tokenizer(raw: dict[str, Any]) -> None:
    if raw and not (isinstance(raw.get("sha256"), str) and type(raw.get("vocab_size")) is int):
        raise FormatError("manifest tokenizer needs sha256, a string, and vocab_size, a whole number")


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"tensor name {name!r} is not valid Unicode") from error
    if name == "__metadata__":  # safetensors keeps its header's strings under this name
        raise FormatError("no tensor may be named '__metadata__'")


def _check_keys(where: str, raw: dict[str, Any], known: set[str], required: set[str]) -> None:
    if unknown := sorted(raw.keys() - known):
        raise FormatError(f"{where}: unknown key {unknown[0]!r}")
    if missing := sorted(required - raw.keys()):
        raise FormatError(f"{where}: key {missing[0]!r} is missing")


def _check_coded(name: str, shape: tuple[Any, ...], bits: Any) -> None:
    _check_shape(name, shape)
    if len(shape) != 2:
        raise FormatError(f"tensor {name!r}: a grid needs 2 dimensions, got shape {list(shape)}")
    if type(bits) is not int or bits not in WIDTHS:
        raise FormatError(f"tensor {name!r}: bits must be 2 to 8, got {bits!r}")


def _check_shape(name: str, shape: tuple[Any, ...]) -> None:
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in shape):
        raise FormatError(f"tensor {name!r}: shape {list(shape)} is not at most 8 whole numbers below {MAX_ELEMENTS}")
    if math.prod(shape) >= MAX_ELEMENTS:
        raise FormatError(f"tensor {name!r}: shape {list(shape)} has {MAX_ELEMENTS} elements or more")
