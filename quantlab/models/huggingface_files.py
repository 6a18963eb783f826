"""Weights of a folder that transformers saved: which files hold them, and what their headers say, each checked."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from quantlab.errors import CheckpointError, first_line
from quantlab.fields import read_json_object
from quantlab.files import check_regular

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Dtype and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a saved model, in order of name.

    Raises:
        CheckpointError: there are none, or the index is damaged or lists one that is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        hint = None
        if any(folder.glob("*.bin")):
            hint = "load it with transformers and save_pretrained it again: pickled weights of a folder are not read"
        raise CheckpointError(f"checkpoint folder {folder} has neither {WEIGHTS} nor {INDEX}", hint=hint)
    places = read_json_object(folder / INDEX, CheckpointError).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"checkpoint index {folder / INDEX} is damaged: weight_map must map tensors to files")
    for name in (names := sorted(set(places.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"checkpoint index {folder / INDEX} is damaged: {name!r} is no file of the folder")
        if not (folder / name).is_file():
            raise CheckpointError(
                f"checkpoint folder {folder}: shard {name} is missing ({len(names)} shards are listed)",
                hint="fetch the folder again",
            )
    return [folder / name for name in names]


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Return dtype and shape of every tensor of a saved model, by its name in the files, without reading values.

    Raises:
        CheckpointError: see `weight_files`; or a file is damaged or has a tensor of another dtype than `DTYPES`.
    """
    headers: dict[str, TensorHeader] = {}
    for path in weight_files(folder):
        check_regular(path, CheckpointError)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    part = file.get_slice(name)
                    if (dtype := part.get_dtype()) not in DTYPES:
                        raise CheckpointError(f"{path}: tensor {name} is {dtype}, allowed are {', '.join(DTYPES)}")
                    headers[name] = TensorHeader(DTYPES[dtype], tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged: {first_line(error)}") from error
    return headers


def usual_dtype(headers: Mapping[str, TensorHeader]) -> torch.dtype | None:
    """Return the dtype of most floating values of a folder; None where there are none."""
    values: Counter[torch.dtype] = Counter()
    for header in headers.values():
        values[header.dtype] += header.size if header.dtype.is_floating_point else 0
    return values.most_common(1)[0][0] if values else None
