"""Safetensors files: written whole or not at all, their header's strings, and a fingerprint of a state dict."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from quantlab.errors import CheckpointError
from quantlab.files import write_whole


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save `tensors` with string `metadata` in the header; the file appears whole or not at all.

    Raises:
        QuantlabError: the file cannot be written.
    """
    write_whole(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the strings in the header of a .safetensors file; an empty dict for any other file.

    Raises:
        CheckpointError: the .safetensors file is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read the header of {path}: the file is damaged: {error}") from error


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return 32 hex digits of SHA-256 over the names, dtypes, shapes and bits of the tensors, in order of name."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:32]
