"""Tensors from the two quantized formats of the challenge: integers and their scales, each checked before it is used.

Letters: O rows, I columns, R rank, G groups.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlab.errors import CheckpointError

INT8_FORMAT = "int8_clean_per_row_v1"
"""Name of the baseline's format, which the file has under `__quant_format__`."""
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _Parts:
    """A table of the file from names to values, with errors that say what is wrong with which."""

    def __init__(self, path: Path, what: str, table: Any) -> None:
        if not isinstance(table, Mapping):
            raise CheckpointError(f"checkpoint {path}: {what} is a {type(table).__name__}, expected a table")
        self.path, self.what, self.table = path, what, table

    def error(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {self.path}: {name} in {self.what} {problem}")

    def tensor(self, name: str, *, floating: bool) -> Tensor:
        """Return a strided tensor, floating and finite or int8."""
        value = self.table.get(name)
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise self.error(name, "is missing" if value is None else "is no plain tensor")
        if value.is_floating_point() is not floating or not (floating or value.dtype == torch.int8):
            raise self.error(name, f"is {value.dtype}, expected {'floating point' if floating else 'int8'}")
        if floating and not bool(torch.isfinite(value).all()):
            raise self.error(name, "is not finite")
        return value

    def dtype(self, name: str) -> torch.dtype:
        found = self.table.get(name)
        if not isinstance(found, str) or found not in _FLOATS:
            raise self.error(name, f"is {found!r:.40}, allowed are {', '.join(_FLOATS)}")
        return _FLOATS[found]


def dequantize_int8(path: Path, loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the format `INT8_FORMAT`: int8 times a scale for each row or one for all, or unquantized.

    Each tensor has the dtype that the file says it had; one that was stored at its own dtype keeps that.

    Raises:
        CheckpointError: a part is missing, of another type or shape, or not finite; or a tensor is there twice.
    """
    codes, scales, dtypes, others = (
        _Parts(path, key, loaded.get(key)) for key in ("quantized", "scales", "dtypes", "passthrough")
    )
    original = _Parts(path, "passthrough_orig_dtypes", loaded.get("passthrough_orig_dtypes", {}))
    tensors = {}
    for name in codes.table:
        q, scale = codes.tensor(name, floating=False), scales.tensor(name, floating=True)
        tensors[str(name)] = _scaled(q, scale, scales, name).to(dtypes.dtype(name))
    for name, value in others.table.items():
        if name in tensors:
            raise others.error(name, "is also in quantized")
        if not isinstance(value, Tensor):
            raise others.error(name, "is no plain tensor")
        tensors[str(name)] = value.to(original.dtype(name)) if name in original.table else value
    return tensors


def dequantize_mixed(path: Path, w: Any, m: Any) -> dict[str, Tensor]:
    """Return the tensors of the format {"w", "m"}, where m says of each name how w holds it.

    Quantized tensors are float32: int8 times fp16 scales is exact there. Unquantized ones have the dtype of the file, since it
    does not tell the original one. A description that contains lqer adds a product of two small quantized matrices.

    Raises:
        CheckpointError: a part is missing, left over, of another type or shape, or not finite; or a description is unknown.
    """
    parts, about = _Parts(path, "w", w), _Parts(path, "m", m)
    tensors, used = {}, set()
    for name, how in about.table.items():
        if not isinstance(how, str):
            raise about.error(name, f"is a {type(how).__name__}, expected a text")
        tensors[str(name)], keys = _mixed(parts, str(name), how)
        used |= keys
    if left := sorted(map(str, parts.table.keys() - used)):
        raise parts.error(left[0], "is not described in m")
    return tensors


def _mixed(parts: _Parts, name: str, how: str) -> tuple[Tensor, set[str]]:
    """Return one tensor and the keys of w that it was made from."""
    if how.startswith("passthrough"):
        if not isinstance(value := parts.table.get(name), Tensor):
            raise parts.error(name, "is missing or no tensor")
        return value, {name}
    if how == "gate_int8_row":
        q, scale = parts.tensor(f"{name}.gq", floating=False), parts.tensor(f"{name}.gs", floating=True)
        return _scaled(q, scale, parts, f"{name}.gs"), {f"{name}.gq", f"{name}.gs"}
    method, plus, correction = how.partition("+")
    if not method.startswith("gptq") or (plus and correction not in ("lqer", "lqer_asym")):
        raise parts.error(name, f"is {how!r:.60} by m, which is not supported")
    q, scale = parts.tensor(f"{name}.q", floating=False), parts.tensor(f"{name}.scale", floating=True)
    tensor, keys = _scaled(q, scale, parts, f"{name}.scale"), {f"{name}.q", f"{name}.scale"}
    if not plus:
        return tensor, keys
    ends = ("lqA_a", "lqAs_a", "lqB_a", "lqBs_a") if correction == "lqer_asym" else ("lqA", "lqAs", "lqB", "lqBs")
    names = [f"{name}.{end}" for end in ends]
    return tensor + _low_rank(parts, names, tensor.shape, by_group=correction == "lqer_asym"), keys | set(names)


def _low_rank(parts: _Parts, names: list[str], shape: torch.Size, *, by_group: bool) -> Tensor:
    """Return A [O, R] @ B [R, I] of a correction; `by_group` if A has one scale and B one for each group, else one a row."""
    a, a_scale, b, b_scale = (parts.tensor(n, floating=i % 2 == 1) for i, n in enumerate(names))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or (a.shape[0], b.shape[1]) != tuple(shape):
        raise parts.error(names[0], f"is {list(a.shape)} and B is {list(b.shape)}, which do not give {list(shape)}")
    if not by_group:
        return _scaled(a, a_scale, parts, names[1]) @ _scaled(b, b_scale, parts, names[3])
    groups = b_scale.numel()
    if a_scale.numel() != 1 or not groups or b.numel() % groups:
        raise parts.error(names[3], f"has {groups} scales for {b.numel()} values")
    b_groups = b.reshape(groups, -1).float() * b_scale.float().reshape(groups, 1)
    return (a.float() * a_scale.float().reshape(())) @ b_groups.reshape(b.shape)


def _scaled(q: Tensor, scale: Tensor, parts: _Parts, name: str) -> Tensor:
    """Return q · scale as float32: a scale for each row if it is a vector, or one number for all."""
    if scale.ndim and (q.ndim == 0 or tuple(scale.shape) != (q.shape[0],)):
        raise parts.error(name, f"has shape {list(scale.shape)}, but the integers have shape {list(q.shape)}")
    if bool((scale < 0).any()):
        raise parts.error(name, "has a negative scale")
    return q.float() * scale.float().reshape(-1, *[1] * (q.ndim - 1)) if scale.ndim else q.float() * scale.float()
