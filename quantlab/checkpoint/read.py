"""Read the state dict out of any common checkpoint file, without running anything that is in it."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
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
    return _checked(path, _strip_wrappers(tensors))


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"checkpoint {path} is damaged or holds more than tensors: {first}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"checkpoint {path} is damaged: {first}") from error


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


def _strip_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS * 2:  # either may be the outer one
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


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
