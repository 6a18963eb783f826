"""Read what torch.save wrote, without executing anything that is in it."""

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from quantlab.errors import CheckpointError, first_line, is_out_of_memory
from quantlab.files import open_regular

_REFUSED = re.compile(r"GLOBAL (\S+)")
"""The name in torch's message of what a pickle asked for."""


def read_torch_file(path: Path) -> Any:
    """Return the tensors, numbers, strings and containers of a file of torch.save, on the CPU.

    Raises:
        CheckpointError: the file is damaged or holds anything else, or entries of its zip are compressed or overlap.
    """
    with open_regular(path, CheckpointError, "checkpoint") as file:
        if _is_zip(path, file):
            _check_entries(path, file, os.fstat(file.fileno()).st_size)
        file.seek(0)
        return _load(path, file)


def read_torch_bytes(path: Path, raw: bytes) -> Any:
    """Return what torch.save wrote to `raw`, which came out of the file `path`, on the CPU.

    Nothing is inflated: the entries of the zip must be stored, as torch.save stores them, and fit into `raw`.

    Raises:
        CheckpointError: `raw` is damaged or holds anything else.
    """
    file = io.BytesIO(raw)
    if not _is_zip(path, file):
        is_pickle = raw[:1] == b"\x80"
        what = (
            "a pickle, as the challenge's MLX script writes it; the .npz beside it can be read"
            if is_pickle
            else "no torch file"
        )
        raise CheckpointError(f"checkpoint {path} holds {what}")
    _check_entries(path, file, len(raw))
    file.seek(0)
    return _load(path, file)


def _is_zip(path: Path, file: IO[bytes]) -> bool:
    """Return whether the file ends as a zip does. CheckpointError where that end is damaged."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile as error:  # an end that claims several disks
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error


def _check_entries(path: Path, file: IO[bytes], size: int) -> None:
    """Raise CheckpointError where the zip would give more bytes than it has."""
    try:
        entries = zipfile.ZipFile(file).infolist()
    except Exception as error:  # damaged archives fail in any way: BadZipFile, ValueError, OverflowError, struct.error, ...
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error
    if any(e.filename.endswith("/constants.pkl") for e in entries):
        raise _refused(path, "GLOBAL TorchScript")
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
    if packed or sum(e.file_size for e in entries) > size:
        raise CheckpointError(f"checkpoint {path}: its torch file has compressed or overlapping entries")


def _load(path: Path, source: IO[bytes]) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles fail in any way: struct.error, IndexError, RuntimeError, ...
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            raise _refused(path, str(error)) from error  # torch's own text tells how to switch its protection off
        if is_out_of_memory(error):
            raise CheckpointError(f"checkpoint {path}: its tensors do not fit into memory") from error
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error


def _refused(path: Path, told: str) -> CheckpointError:
    found = _REFUSED.search(told)
    what = f", namely {found[1]:.100}" if found else ""
    return CheckpointError(
        f"checkpoint {path} is damaged or holds more than tensors, numbers, strings and containers{what}",
        hint="nothing else is read, since it could run code: save the state dict of the model alone",
    )
