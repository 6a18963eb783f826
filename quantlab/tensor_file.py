"""Write state dicts: safetensors only, whole or not at all, and their fingerprint."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from quantlab.files import write_whole


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save `tensors` with string `metadata` in the header; the file appears whole or not at all."""
    write_whole(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata))


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """32 hex digits of SHA-256 over names, dtypes, shapes and bits in order of name."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:32]
