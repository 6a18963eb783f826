"""Tensors of a state dict that are not stored as they are: stacks of matrices, kernels, and equal tensors."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Any)
"""A numpy array or a torch tensor."""


def part_name(name: str, number: int) -> str:
    """Return the name under which matrix `number` of a stack is stored."""
    return f"{name}.{number}"


def part_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """Return the names under which the matrices of a stack [..., O, I] are stored."""
    return [part_name(name, number) for number in range(math.prod(shape[:-2]))]


def with_aliases(stored: Mapping[str, T], aliases: Mapping[str, str]) -> dict[str, T]:
    """Return what is stored under every name that it has."""
    return {**stored, **{alias: stored[name] for alias, name in aliases.items() if name in stored}}


def whole_tensors(
    stored: Mapping[str, T],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    concatenate: Callable[[list[T]], T],
) -> dict[str, T]:
    """Return stored tensors under the names and in the shapes of their state dict; equal ones share memory.

    Args:
        shapes: of stacks, whose matrices are stored as `name.0`, `name.1` and so on, and of tensors stored in another shape.
        aliases: name of each tensor that is not stored, with that of the equal one that is. What is not in `stored` has none.
        concatenate: joins matrices along their rows.
    """
    tensors = with_aliases(stored, aliases)
    for name, shape in shapes.items():
        parts = [tensors[name]] if name in tensors else [tensors.pop(part) for part in part_names(name, shape)]
        tensors[name] = concatenate(parts).reshape(shape)
    return tensors
