"""Read the state dict out of any common checkpoint file, without running anything that is in it."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from quantlab.errors import CheckpointError, first_line

_NESTED_KEYS = ("model", "state_dict", "model_state_dict", "module", "ema", "params", "net")
_NOT_SHARDS = {"quantlab_statistics", "quantlab_train"}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = (*_FLOATS, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)
_LARGEST = 1e30  # no weight is; below it every grid step is a normal float32
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """State dict of a .pt/.pth/.bin file, a .safetensors file, or a folder of .safetensors shards, on the CPU.

    A nested checkpoint gives its first entry under `model`, `state_dict`, ... that holds tensors. Prefixes that
    DistributedDataParallel and torch.compile put before every name are taken off.

    Raises:
        CheckpointError: missing, damaged, of an unknown kind, without tensors, or with a value that is not finite.
    """
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.is_dir():
        tensors = _read_shards(path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in (".pt", ".pth", ".bin"):
        tensors = _find_tensors(path, _read_pickle(path))
    else:
        raise CheckpointError(f"checkpoint {path} must be .pt, .pth, .bin, .safetensors or a folder of .safetensors")
    if not tensors:
        raise CheckpointError(f"checkpoint {path} holds no tensors")
    return _checked(path, _strip_wrappers(path, tensors))


def read_metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a .safetensors file; nothing for any other checkpoint."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {path} is damaged or holds more than tensors: {first_line(error)}") from error
    except Exception as error:  # damaged pickles fail in any way: struct.error, IndexError, RuntimeError, ...
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error


def _read_shards(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in _shards(folder):
        part = _read_safetensors(shard)
        if twice := sorted(tensors.keys() & part.keys()):
            raise CheckpointError(f"tensor {twice[0]} is in {shard} and in an earlier shard")
        tensors.update(part)
    return tensors


def _shards(folder: Path) -> list[Path]:
    """What the index file lists; without one, all .safetensors files but our own statistics and training checkpoints."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            return sorted(folder / name for name in set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"index {index} is damaged: {first_line(error)}") from error
    found = [f for f in sorted(folder.glob("*.safetensors")) if not _NOT_SHARDS & read_metadata(f).keys()]
    if not found:
        raise CheckpointError(f"checkpoint folder {folder} holds no .safetensors files")
    return found


def _find_tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict within what torch.load returned: itself, or one level down under a usual key."""
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(loaded).__name__}, a state dict is needed")
    candidates = [*(loaded[key] for key in _NESTED_KEYS if isinstance(loaded.get(key), Mapping)), loaded]
    for candidate in candidates:  # the top level last: beside a nested state dict it may hold a stray tensor
        tensors = {str(k): v for k, v in candidate.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    keys = ", ".join(map(str, list(loaded)[:6]))
    raise CheckpointError(f"checkpoint {path} has no state dict among its keys: {keys}")


def _strip_wrappers(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        while short.startswith(_WRAPPERS):  # in any nesting
            short = short.split(".", 1)[1]
        if short in stripped:
            raise CheckpointError(f"checkpoint {path}: two tensors are named {short} without {' and '.join(_WRAPPERS)}")
        stripped[short] = tensor
    return stripped


def _checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"checkpoint {path}: tensor {name} is sparse or quantized, a plain tensor is needed")
        if tensor.dtype not in _DTYPES:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
            raise CheckpointError(f"checkpoint {path}: tensor {name} is {tensor.dtype}, allowed are {allowed}")
        if tensor.is_floating_point() and tensor.numel() and _LARGEST < float(tensor.abs().max()) < float("inf"):
            raise CheckpointError(f"checkpoint {path}: tensor {name} has a value beyond ±{_LARGEST:g}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(f"checkpoint {path}: tensor {name} has {bad} values that are not finite")
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
