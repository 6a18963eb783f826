"""Tell what is in a checkpoint: which adapter reads it, its tensors, and what packing would do with each."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlab.artifact.whole import part_names
from quantlab.calib.contraction import kernel_names
from quantlab.errors import QuantlabError
from quantlab.files import hash_file
from quantlab.models.checkpoint import read_checkpoint
from quantlab.models.huggingface import ADAPTER, is_folder
from quantlab.models.huggingface_files import TensorHeader, tensor_headers, usual_dtype, weight_files
from quantlab.models.loading import LoadedModel, load
from quantlab.models.weights import MIN_MATRIX_ELEMENTS, Split, split_state

CODED, ALIAS = "coded", "alias"
REASONS = {
    CODED: "quantized and entropy-coded",
    "integer": "unquantized, not floating",
    "vector": "unquantized, one dimension or none",
    "rank": "unquantized, more than two dimensions",
    "small": f"unquantized, fewer than {MIN_MATRIX_ELEMENTS:,} weights",
    "control": "unquantized, few rows and the name of a control",
    ALIAS: "equal to another tensor",
    "unknown": "no model fits, so it is not known how it is used",
}
"""What packing does with a tensor: coded, or the reason why it is stored unquantized or not at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectedTensor:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Dtype in the file where the file has the tensor in this form, else that of the model."""
    packing: str
    """One of `REASONS`."""
    alias_of: str = ""
    """Name of the tensor that this one equals."""

    @property
    def weights(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a checkpoint holds, and whether it can be packed."""

    checkpoint: str
    bytes: int
    """Bytes of the files with weights."""
    adapter: str
    """challenge, huggingface, file (a factory in a Python file), or none where no model fits."""
    tensors: tuple[InspectedTensor, ...]
    about: dict[str, Any] = field(default_factory=dict)
    """What is known of the model: model_type, vocab_size, context_length, bos_id."""
    tokenizer: dict[str, int] = field(default_factory=dict)
    """Bytes of each file of the tokenizer, by name."""
    problem: str = ""
    """Why it cannot be packed as it is; empty where it can."""
    hint: str = ""
    """What to do about it."""

    def weights(self, *packing: str) -> int:
        """Return the number of weights of tensors that packing treats so; without an argument of all but aliases."""
        chosen = set(packing) or REASONS.keys() - {ALIAS}
        return sum(tensor.weights for tensor in self.tensors if tensor.packing in chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, with the totals."""
        rows = [asdict(tensor) for tensor in self.tensors]
        totals = {"parameters": self.weights(), "coded_parameters": self.weights(CODED)}
        return asdict(self) | {"tensors": rows} | totals


def inspect_checkpoint(path: str | Path, *, model: str | None = None) -> Inspection:
    """Return what is in a checkpoint of any kind that `quantlab.load` reads, also where no model fits its tensors.

    Args:
        model: as of `quantlab.load`; a factory runs its file.
    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of an unknown kind.
        ConfigError, ShapeError, CheckpointError: `model` is wrong, or does not fit; without it that is told as the problem.
    """
    path = Path(path)
    try:
        loaded = load(path, model=model)
    except QuantlabError as error:
        if model is not None:
            raise  # what was asked for is wrong
        return _without_model(path, error)
    headers = tensor_headers(path) if is_folder(path) and not model else {}
    return Inspection(
        checkpoint=str(path),
        bytes=_weight_bytes(path),
        adapter=_adapter(loaded),
        tensors=_tensors(loaded.state, headers, _tied(loaded), kernel_names(loaded.model)),
        about=_about(loaded),
        tokenizer={name: len(content) for name, content in loaded.tokenizer_files.items()},
    )


def _without_model(path: Path, error: QuantlabError) -> Inspection:
    """Return what the files alone tell. The error of reading them, where they cannot be read either."""
    headers = tensor_headers(path) if is_folder(path) else {}
    if not headers:
        headers = {name: TensorHeader(t.dtype, tuple(t.shape)) for name, t in read_checkpoint(path).items()}
    rows = [
        InspectedTensor(name=name, shape=header.shape, dtype=_dtype(header.dtype), packing="unknown")
        for name, header in sorted(headers.items())
    ]
    return Inspection(
        checkpoint=str(path),
        bytes=_weight_bytes(path),
        adapter="none",
        tensors=tuple(rows),
        problem=str(error),
        hint=error.hint or "",
    )


def _weight_bytes(path: Path) -> int:
    if is_folder(path):
        return sum(file.stat().st_size for file in weight_files(path))
    return hash_file(path)[0]


def _adapter(loaded: LoadedModel) -> str:
    if loaded.code_sha256:
        return "file"
    return str(loaded.config.get("adapter", "challenge"))


def _about(loaded: LoadedModel) -> dict[str, Any]:
    kind = {"model_type": loaded.config["config"]["model_type"]} if loaded.config.get("adapter") == ADAPTER else {}
    known = {"context_length": loaded.context_length, "bos_id": loaded.bos_id}
    return kind | {"vocab_size": loaded.vocab_size} | {key: value for key, value in known.items() if value is not None}


def _tied(loaded: LoadedModel) -> dict[str, str]:
    """Return the names of parameters that are other names of a tensor of the state, with that tensor's name."""
    parameters = dict(loaded.model.named_parameters(remove_duplicate=False))
    names = {id(parameter): name for name, parameter in parameters.items() if name in loaded.state}
    others = {name: names.get(id(parameter), "") for name, parameter in parameters.items() if name not in loaded.state}
    return {name: other for name, other in others.items() if other}


def _tensors(
    state: Mapping[str, Tensor], headers: Mapping[str, TensorHeader], tied: Mapping[str, str], kernels: frozenset[str]
) -> tuple[InspectedTensor, ...]:
    """Return the tensors of a state in order of name, and after them its tied names.

    Args:
        headers: what the files say of tensors; their dtypes are shown.
        tied: names of the model that a state does not have, with the names of their tensors.
        kernels: names of the kernels of convolutions.
    """
    coded = _coded(split_state(state, kernels=kernels))
    usual = usual_dtype(headers)  # of weights that the files have in another form
    first: dict[str, str] = {}
    rows = []
    for name, tensor in sorted(state.items()):
        dtype = headers[name].dtype if name in headers else usual if tensor.is_floating_point() and usual else tensor.dtype
        other = first.setdefault(_identity(name, tensor), name)
        packing = ALIAS if other != name else CODED if name in coded else _reason(tensor)
        alias_of = other if other != name else ""
        rows.append(
            InspectedTensor(name=name, shape=tuple(tensor.shape), dtype=_dtype(dtype), packing=packing, alias_of=alias_of)
        )
    shapes = {row.name: row for row in rows}
    for name, other in sorted(tied.items()):
        row = shapes[other]
        rows.append(InspectedTensor(name=name, shape=row.shape, dtype=row.dtype, packing=ALIAS, alias_of=other))
    return tuple(rows)


def _coded(split: Split) -> set[str]:
    """Return the names of the tensors that are quantized, whole or as the matrices of a stack."""
    stacks = {
        name
        for name, shape in split.shapes.items()
        if any(split.aliases.get(part, part) in split.matrices for part in part_names(name, shape))
    }
    return stacks | split.matrices.keys()


def _identity(name: str, tensor: Tensor) -> str:
    """Return what equal tensors have in common; the name of a tensor that is too small to be equal but by chance."""
    if tensor.numel() < MIN_MATRIX_ELEMENTS:
        return name
    values = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(values).hexdigest()}"


def _reason(tensor: Tensor) -> str:
    if not tensor.is_floating_point():
        return "integer"
    if tensor.ndim != 2:
        return "vector" if tensor.ndim < 2 else "rank"
    return "small" if tensor.numel() < MIN_MATRIX_ELEMENTS else "control"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
