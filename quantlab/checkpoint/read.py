"""Read the state dict out of any common checkpoint file, without running anything that is in it."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from quantlab.errors import CheckpointError

_NESTED_KEYS = ("model", "state_dict", "model_state_dict", "module", "ema", "params", "net")
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
        raise CheckpointError(f"checkpoint {path} is damaged or holds more than tensors: {_first_line(error)}") from error
    except Exception as error:  # damaged pickles fail in any way: struct.error, IndexError, RuntimeError, ...
        raise CheckpointError(f"checkpoint {path} is damaged: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error


def _read_shards(folder: Path) -> dict[str, Tensor]:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(f"checkpoint folder {folder} holds no .safetensors files")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        part = _read_safetensors(shard)
        if twice := sorted(tensors.keys() & part.keys()):
            raise CheckpointError(f"tensor {twice[0]} is in {shard} and in an earlier shard")
        tensors.update(part)
    return tensors


def _find_tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict within what torch.load returned: itself, or one level down under a usual key."""
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(loaded).__name__}, a state dict is needed")
    candidates = [loaded, *(loaded[key] for key in _NESTED_KEYS if isinstance(loaded.get(key), Mapping))]
    for candidate in candidates:
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
        if tensor.is_complex():
            raise CheckpointError(f"checkpoint {path}: tensor {name} is {tensor.dtype}, real numbers are needed")
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            bad = int((~torch.isfinite(tensor.float())).sum())
            raise CheckpointError(f"checkpoint {path}: tensor {name} has {bad} values that are not finite")
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
