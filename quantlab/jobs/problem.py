"""The input of a method out of a loaded model: its matrices, its unquantized tensors, and which of them are one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from quantlab.artifact.whole import part_names
from quantlab.artifact.writer import RawPayload, passthrough_payload
from quantlab.calib.contraction import kernel_names
from quantlab.calib.statistics import Statistics
from quantlab.errors import CheckpointError
from quantlab.methods.method import Encode, Problem
from quantlab.models.loading import LoadedModel
from quantlab.models.weights import MIN_MATRIX_ELEMENTS, Split, split_state


def split_model(loaded: LoadedModel, keep: Sequence[str] = ()) -> Split:
    """Return the matrices of a model that are quantized, and the tensors that are not.

    Args:
        keep: patterns of names of tensors that are not quantized.
    Raises:
        ConfigError: a pattern matches no tensor.
        CheckpointError: there is no matrix to quantize, or one that the model has under another name.
    """
    split = split_state(loaded.state, kernels=kernel_names(loaded.model), keep=keep)
    if not split.matrices:
        raise CheckpointError(
            f"the checkpoint has no matrix to quantize: no floating 2-D tensor of {MIN_MATRIX_ELEMENTS} weights or more"
        )
    known = {name for name, _ in loaded.model.named_parameters(remove_duplicate=False)}
    stacks = {part: name for name, shape in split.shapes.items() for part in part_names(name, shape)}
    if unknown := sorted(name for name in split.matrices if name not in known and stacks.get(name) not in known):
        raise CheckpointError(f"tensor {unknown[0]} of the checkpoint is not a parameter of the model")
    return split


def matrix_shapes(loaded: LoadedModel, keep: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Return the shape of every matrix that must be measured; the arguments and errors are those of `split_model`.

    Equal matrices that are different parameters of the model are measured each.
    """
    split = split_model(loaded, keep)
    shapes = {name: tuple(tensor.shape) for name, tensor in split.matrices.items()}
    return shapes | {other: shapes[name] for name, others in tied_names(loaded, split).items() for other in others}


def tied_names(loaded: LoadedModel, split: Split) -> dict[str, tuple[str, ...]]:
    """Return the names of the equal matrices that are parameters of their own, for each matrix that has such.

    A parameter with several names is measured under one.
    """
    parameters = {name: id(tensor) for name, tensor in loaded.model.named_parameters(remove_duplicate=False)}
    stacks = {part: (name, at) for name, shape in split.shapes.items() for at, part in enumerate(part_names(name, shape))}

    def place(name: str) -> tuple[int | None, int]:
        whole, number = (name, 0) if name in parameters else stacks.get(name, (name, 0))
        return parameters.get(whole), number

    tied: dict[str, dict[tuple[int | None, int], str]] = {}
    for alias, name in split.aliases.items():
        if name in split.matrices and place(alias)[0] is not None:
            tied.setdefault(name, {place(name): name}).setdefault(place(alias), alias)
    return {name: tuple(n for n in places.values() if n != name) for name, places in tied.items() if len(places) > 1}


def passthrough_of(loaded: LoadedModel, split: Split) -> dict[str, RawPayload]:
    """Return the unquantized tensors ready for the file.

    Buffers (position tables, masks) are not trained: half precision could break them.
    """
    parameters = {name for name, _ in loaded.model.named_parameters(remove_duplicate=False)}
    parameters |= {part for name in parameters & split.shapes.keys() for part in part_names(name, split.shapes[name])}
    buffers = {split.aliases.get(name, name) for name in (*split.unquantized, *split.aliases) if name not in parameters}
    return {n: passthrough_payload(n, tensor, exact=n in buffers) for n, tensor in split.unquantized.items()}


def problem_of(loaded: LoadedModel, split: Split, stats: Statistics, encode: Encode, **more: Any) -> Problem:
    """Return the problem of a model whose tensors are split; `more` are other fields of Problem."""
    return Problem(
        model=loaded.model,
        matrices=split.matrices,
        passthrough=passthrough_of(loaded, split),
        statistics=replace(stats, tied=tied_names(loaded, split)),
        shapes=split.shapes,
        aliases=split.aliases,
        encode=encode,
        **more,
    )
