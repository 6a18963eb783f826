"""Read the state dict of any common checkpoint file without executing anything that is in it, and check every tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quantlab.errors import CheckpointError
from quantlab.files import check_regular
from quantlab.models.huggingface_files import weight_files
from quantlab.models.mlx import read_npz
from quantlab.models.ptz import read_ptz
from quantlab.models.torch_files import read_torch_file
from quantlab.tensor_file import read_metadata

NESTED_KEYS = ("model", "state_dict", "model_state_dict", "module", "ema", "params", "net")
"""Keys under which training scripts usually store the state dict, in the order in which they are tried."""
NOT_SHARDS = {"quantlab_statistics", "quantlab_train"}
"""Metadata keys of files that quantlab writes beside a model and that hold no weights of it."""
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
)
"""The dtypes that a tensor may have."""
LARGEST_VALUE = 1e30
"""Largest absolute value of a tensor: no trained weight comes near it, and below it every grid step is a normal float32."""
MOST_SHARING = 64
"""Bytes of tensors for each byte of a .pt file, besides `FREE_BYTES`: tied weights are stored once."""
FREE_BYTES = 1 << 20
"""Bytes of tensors that any .pt file may have."""
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint file, or of a folder of .safetensors shards, on the CPU.

    Files are .pt, .pth, .bin, .safetensors, a submission of the challenge (.ptz, dequantized), or arrays of its MLX script
    (.npz).

    The state dict of a nested checkpoint is its first entry under one of `NESTED_KEYS` that holds tensors. `WRAPPER_PREFIXES`
    are removed from the names.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of an unknown kind or without tensors; or see `checked_state`.
    """
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.is_dir():
        tensors = _read_shards(path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in (".pt", ".pth", ".bin"):
        tensors = _find_tensors(path, read_torch_file(path))
        _check_total(path, tensors)
    elif path.suffix == ".ptz":
        tensors = read_ptz(path)
    elif path.suffix == ".npz":
        tensors = read_npz(path)
    else:
        raise CheckpointError(
            f"checkpoint {path} must be .pt, .pth, .bin, .safetensors, .ptz, .npz, or a folder of .safetensors files"
        )
    if not tensors:
        raise CheckpointError(f"checkpoint {path} holds no tensors")
    return checked_state(path, _strip_wrappers(path, tensors))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    check_regular(path, CheckpointError, "checkpoint")
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error


def _read_shards(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in _shards(folder):
        part = _read_safetensors(shard)
        if twice := sorted(tensors.keys() & part.keys()):
            raise CheckpointError(f"tensor {twice[0]} is in shard {shard} and in an earlier shard of the same folder")
        tensors.update(part)
    return tensors


def _shards(folder: Path) -> list[Path]:
    """Return the files that the index lists; without an index, all .safetensors files but quantlab's own that hold no model."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return weight_files(folder)
    found = [f for f in sorted(folder.glob("*.safetensors")) if not NOT_SHARDS & read_metadata(f).keys()]
    if not found:
        raise CheckpointError(f"checkpoint folder {folder} holds no .safetensors files of a model")
    return found


def _find_tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    """Return the state dict within what torch.load returned: the value itself, or one level down under a usual key."""
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(loaded).__name__}, but a state dict is needed")
    candidates = [*(loaded[key] for key in NESTED_KEYS if isinstance(loaded.get(key), Mapping)), loaded]
    for candidate in candidates:  # the top level comes last: beside a nested state dict it may hold a stray tensor
        tensors = {str(k): v for k, v in candidate.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    keys = ", ".join(map(str, list(loaded)[:6]))
    raise CheckpointError(f"checkpoint {path} has no state dict among its keys: {keys}")


def _check_total(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where views repeat memory so often that copies of them would take far more than the file."""
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            continue  # refused by `checked_state`
        stored, shown = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
        if shown > stored:
            what = f"tensor {name} {list(tensor.shape)} is a view that makes {shown} bytes of {stored}"
            raise CheckpointError(f"checkpoint {path}: {what}", hint="save contiguous tensors")
    total, size = sum(t.numel() * t.element_size() for t in tensors.values()), path.stat().st_size
    if total > (most := FREE_BYTES + MOST_SHARING * size):
        raise CheckpointError(f"checkpoint {path}: its tensors have {total} bytes, a file of {size} may have {most}")


def _strip_wrappers(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        while short.startswith(WRAPPER_PREFIXES):  # the wrappers may be nested in any order
            short = short.split(".", 1)[1]
        if short in stripped:
            prefixes = " and ".join(WRAPPER_PREFIXES)
            raise CheckpointError(f"checkpoint {path}: two tensors are named {short} once {prefixes} are removed")
        stripped[short] = tensor
    return stripped


def checked_state(path: Path | str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, detached and contiguous, after checking each; `path` names their source in errors.

    Raises:
        CheckpointError: a tensor has no values (device meta), is sparse, quantized or of another dtype than `DTYPES`, or has a
            value that is not finite or beyond `LARGEST_VALUE`.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise CheckpointError(f"checkpoint {path}: tensor {name} is on the device meta, which holds no values")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"checkpoint {path}: tensor {name} is sparse or quantized, but a plain tensor is needed")
        if tensor.dtype not in DTYPES:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise CheckpointError(f"checkpoint {path}: tensor {name} is {tensor.dtype}, allowed are {allowed}")
        if tensor.is_floating_point() and tensor.numel() and LARGEST_VALUE < float(tensor.abs().max()) < float("inf"):
            raise CheckpointError(f"checkpoint {path}: tensor {name} has a value beyond ±{LARGEST_VALUE:g}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(f"checkpoint {path}: tensor {name} has {bad} values that are not finite")
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
