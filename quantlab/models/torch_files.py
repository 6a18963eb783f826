"""Read what torch.save wrote, without executing anything that is in it."""

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from quantlab.errors import CheckpointError, first_line

_FOREIGN = re.compile(r"GLOBAL ([\w.]{1,100}) was not an allowed global")
"""What torch says of a class or function in a pickle that it does not load; the name is that of Python."""


def read_torch_file(path: Path) -> Any:
    """Return the tensors, numbers, strings and containers of a file of torch.save, on the CPU.

    Raises:
        CheckpointError: the file is damaged or holds anything else.
    """
    return _load(path, path)


def read_torch_bytes(path: Path, raw: bytes) -> Any:
    """Return what torch.save wrote to `raw`, which came out of the file `path`, on the CPU.

    Nothing is inflated: the entries of the zip must be stored, as torch.save stores them, and fit into `raw`.

    Raises:
        CheckpointError: `raw` is damaged or holds anything else.
    """
    try:
        entries = zipfile.ZipFile(io.BytesIO(raw)).infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError) as error:
        is_pickle = raw[:1] == b"\x80"
        what = (
            "a pickle, as the challenge's MLX script writes it; the .npz beside it can be read"
            if is_pickle
            else "no torch file"
        )
        raise CheckpointError(f"checkpoint {path} holds {what}") from error
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
    if packed or sum(e.file_size for e in entries) > len(raw):
        raise CheckpointError(f"checkpoint {path}: its torch file has compressed or overlapping entries")
    return _load(path, io.BytesIO(raw))


def _load(path: Path, source: Path | io.BytesIO) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := _FOREIGN.search(str(error)):
            raise CheckpointError(
                f"checkpoint {path} holds a pickled {found[1]}, which is not loaded since that would run code",
                hint="save the weights alone: torch.save(model.state_dict(), path), or safetensors",
            ) from error
        raise CheckpointError(f"checkpoint {path} is damaged or holds more than tensors: {first_line(error)}") from error
    except Exception as error:  # damaged pickles fail in any way: struct.error, IndexError, RuntimeError, ...
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error
