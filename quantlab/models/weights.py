"""Tell the matrices of a state dict that are quantized from the tensors that stay unquantized.

A matrix is a tensor [O, I]; each [O, I] of a stack [E, O, I] (fused experts, banks); and a convolution's kernel [O, I, K...],
whose columns are those of I and K together. What is stored twice in a state dict is a matrix once.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from quantlab.artifact.whole import part_name, part_names, whole_tensors
from quantlab.errors import CheckpointError, ConfigError

MIN_MATRIX_ELEMENTS = 4096
"""A smaller matrix would save less than its scales and its entry in the manifest cost."""

_CONTROL = re.compile(
    r"(^|[._])(norm\d*|ln_?\w*|bias|gains?|gates?(_w|_proj)?|mix(es)?|scales?|skips?|skip_weights?|lambdas?)(\.weight|\.bias)?$"
)
"""Names of per-channel controls, which the challenge stores in full precision; quantlab does the same."""
_RATES = re.compile(r"(^|[._])A_logs?$")
"""Names of the logarithms of a state space's rates of decay: small errors grow with every token, whatever their shape."""

CONTROL_MAX_ROWS = 32
"""A control has a row for each head, layer or stream. A larger matrix of such a name is a layer (a router, an MLP's gate).

Stacked matrices and kernels have more rows and columns than this: a kernel of 4 columns costs more than it saves."""


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a floating matrix [O, I] of at least 4,096 weights, and no control by its rows and name."""
    if tensor.ndim != 2 or tensor.numel() < MIN_MATRIX_ELEMENTS or not tensor.is_floating_point() or _RATES.search(name):
        return False
    return min(tensor.shape) > CONTROL_MAX_ROWS or not _CONTROL.search(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A state dict as it is stored: matrices, unquantized tensors, and how they make up the state dict again."""

    matrices: dict[str, Tensor]
    """Matrices to quantize, float32 [O, I], in order of name; `name.k` is matrix k of a stack."""
    unquantized: dict[str, Tensor]
    """All other tensors in order of name, also matrices of a stack that are kept."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each tensor that is not stored in its own: a stack, or a kernel."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Name of a tensor that is not stored, and of the equal one that is."""

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return stored tensors under the names and in the shapes of the state dict."""
        return whole_tensors(tensors, self.shapes, self.aliases, torch.cat)

    @property
    def weights(self) -> int:
        """Number of weights that are stored, each once."""
        return sum(tensor.numel() for part in (self.matrices, self.unquantized) for tensor in part.values())


def split_state(state: Mapping[str, Tensor], *, kernels: frozenset[str] = frozenset(), keep: Sequence[str] = ()) -> Split:
    """Return the matrices and the unquantized tensors of a state dict; tensors that share memory or are equal count once.

    Args:
        kernels: names of the kernels of convolutions (calib.contraction.kernel_names).
        keep: patterns of names, as of a shell; what they match is not quantized. A pattern that matches a stack keeps all of
            it, one that matches a tensor keeps those that are equal too.
    Raises:
        CheckpointError: a tensor has the name of a matrix of a stack.
        ConfigError: a pattern matches no tensor.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, Tensor] = {}
    for name, tensor in sorted(state.items()):
        for part, matrix in _parts(name, tensor, name in kernels):
            if part in parts or (part != name and part in state):
                raise CheckpointError(f"tensor {part} of the checkpoint has the name of a matrix in a stack")
            parts[part] = matrix
            if part != name or matrix.shape != tensor.shape:
                shapes[name] = tuple(tensor.shape)
    aliases = _aliases(parts)
    kept = stored_names(keep, parts, shapes, aliases, "keep")
    stored = {name: tensor for name, tensor in sorted(parts.items()) if name not in aliases}
    matrices = {n: t.to(torch.float32) for n, t in stored.items() if is_matrix(n, t) and n not in kept}
    unquantized = {n: t for n, t in stored.items() if n not in matrices}
    return Split(matrices=matrices, unquantized=unquantized, shapes=shapes, aliases=aliases)


def stored_names(
    patterns: Iterable[str],
    stored: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    option: str,
) -> dict[str, str]:
    """Return the stored tensors that patterns, as of a shell, match by any of their names; each with the last such pattern.

    Args:
        stored: names under which tensors are stored, and perhaps their aliases.
        shapes, aliases: those of a `Split`; a pattern that matches a stack matches all its matrices.
        option: named in the error.
    Raises:
        ConfigError: a pattern matches nothing.
    """
    known = set(stored)
    others = {alias: name for alias, name in aliases.items() if name in known or alias in known}
    names = {name: {others.get(name, name)} for name in (*known, *others)}
    for whole, shape in shapes.items():
        if parts := {others.get(part, part) for part in part_names(whole, shape) if part in names}:
            names.setdefault(whole, set()).update(parts)
    found: dict[str, str] = {}
    for pattern in patterns:
        matched = [name for name in sorted(names) if fnmatchcase(name, pattern)]
        if not matched:
            example = f", which have names like {min(names)}" if names else ""
            raise ConfigError(f"{option} {pattern} matches none of the tensors that it could be for{example}")
        found |= {part: pattern for name in matched for part in names[name]}
    return found


def _parts(name: str, tensor: Tensor, is_kernel: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor as it is stored: the matrices of a stack, a kernel's matrix, or the tensor itself."""
    if not tensor.is_floating_point() or tensor.ndim < 3 or not tensor.numel():
        yield name, tensor
    elif is_kernel:
        matrix = tensor.reshape(len(tensor), -1)
        yield name, matrix if _is_worth_it(name, matrix) else tensor
    elif _is_worth_it(name, tensor.reshape(-1, *tensor.shape[-2:])[0]):
        for at, matrix in enumerate(tensor.reshape(-1, *tensor.shape[-2:])):
            yield part_name(name, at), matrix
    else:
        yield name, tensor


def _is_worth_it(name: str, matrix: Tensor) -> bool:
    return is_matrix(name, matrix) and min(matrix.shape) > CONTROL_MAX_ROWS


def _aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name of each tensor that another one before it equals, with that one's name.

    Small tensors are equal only where they share memory: norms that were not trained, for example, are equal by chance.
    """
    places: dict[object, str] = {}
    alike: dict[object, list[str]] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        same = alike.setdefault(_sample(tensor), []) if tensor.numel() >= MIN_MATRIX_ELEMENTS else []
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if found := places.get(place) or next((other for other in same if _is_equal(tensor, tensors[other])), None):
            aliases[name] = found
            continue
        places[place] = name
        same.append(name)
    return aliases


def _sample(tensor: Tensor) -> object:
    """Return what equal tensors have in common, and few others: dtype, shape, and some of the values."""
    flat = tensor.detach().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), bytes(flat[:: flat.numel() // 32].cpu().clone().view(torch.uint8).numpy())


def _is_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one dtype and shape have the same bits."""
    flat_a, flat_b = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(flat_a, flat_b)
