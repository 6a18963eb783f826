"""Products of a tensor and a weight, in whatever form a model writes them, as products with the matrices of a parameter.

A parameter is a matrix [O, I], or a stack of E such matrices. A linear layer, x @ W.T, an einsum over experts or a product with
one slice of a stack are all sums over one side of a matrix; the dimensions of the weight's view tell which.

Legend: E matrices of a stack, T tokens, O rows and I columns of a matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

Label = int | str
Span = tuple[tuple[int, int], ...]
"""Runs of rows or columns, each from its first to the one after its last."""


class MeasureError(ValueError):
    """A product whose statistics cannot be summed; the message says why."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """A parameter as a stack of matrices."""

    parameter: Tensor
    is_kernel: bool = False
    """Whether it is a convolution's kernel [O, I, K...], which is one matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        shape = self.parameter.shape
        return (shape[0], prod(shape[1:])) if self.is_kernel or len(shape) == 2 else (shape[-2], shape[-1])

    @property
    def count(self) -> int:
        """Number of matrices."""
        rows, columns = self.shape
        return self.parameter.numel() // (rows * columns)


def kernel_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the kernels [O, I, K...] of a model's convolutions; transposed ones have another order."""
    kinds = (nn.Conv1d, nn.Conv2d)
    return frozenset(f"{name}.weight" if name else "weight" for name, part in model.named_modules() if isinstance(part, kinds))


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The two sides of a product with one matrix, for the same tokens."""

    number: int
    """Number of the matrix in its stack."""
    columns_TI: Tensor
    """What stands at its columns: inputs, or the output gradients of x @ W."""
    rows_TO: Tensor
    """What stands at its rows: output gradients, or the inputs of x @ W."""
    row_share: float = 1.0
    """Share of the matrix's rows that the product uses; the others have zeros."""
    column_share: float = 1.0
    """The same of its columns."""
    rows: Span = ()
    """Rows that a product with a part of the matrix uses; empty for all of them."""
    columns: Span = ()
    """The same of its columns."""


class Product(Protocol):
    """A way to multiply by the matrices of one parameter."""

    def pairs(self, x: Tensor, g: Tensor) -> Iterator[Pair]:
        """Yield both sides of each matrix, given x and the gradient of the result."""


class Linear:
    """x @ W.T with a whole matrix, as in a linear layer."""

    def pairs(self, x: Tensor, g: Tensor) -> Iterator[Pair]:
        """Yield the one pair."""
        yield Pair(0, x.flatten(0, -2), g.flatten(0, -2))


@dataclass(frozen=True, slots=True)
class _Axis:
    """The dimensions of a view that lie along one axis of a parameter."""

    labels: tuple[Label, ...]
    start: int
    size: int

    def span(self, length: int) -> Span:
        """Return the places along an axis of this length; nothing for all of them."""
        return () if self.size == length else ((self.start, self.start + self.size),)


class Contraction:
    """A product of x and a view of a parameter, summed over one side of its matrices.

    Args:
        view: a tensor that shares the parameter's memory.
        labels_x, labels_w, labels_out: one label for each dimension of x, of the view and of the result, as in an einsum.
    Raises:
        MeasureError: it is no such product, or the view is a part of a matrix that is not a run of whole rows or columns.
    """

    def __init__(
        self,
        matrices: Matrices,
        view: Tensor,
        x: Tensor,
        labels_x: Sequence[Label],
        labels_w: Sequence[Label],
        labels_out: Sequence[Label],
    ) -> None:
        if len(set(labels_x)) < len(labels_x) or len(set(labels_w)) < len(labels_w):
            raise MeasureError("a dimension is used twice")
        self.rows, self.columns = matrices.shape
        self._place(matrices, view, labels_w)
        along = {*self._O.labels, *self._I.labels, *self._E}
        if any(n > 1 and label not in {*along, *labels_x} for label, n in zip(labels_w, view.shape, strict=True)):
            raise MeasureError("it repeats the weight")
        self.x_labels = _used(labels_x, x.shape, along, set(labels_out))
        self.out_labels = [label if label in along or label in self.x_labels else None for label in labels_out]
        known = {label for label in (*self.x_labels, *self.out_labels) if label is not None}
        if not along <= known:
            raise MeasureError("it sums the weight itself")
        sides = {side: self._side(axis) for side, axis in (("O", self._O), ("I", self._I))}
        inputs = {side for side, where in sides.items() if where == "x"}
        outputs = {side for side, where in sides.items() if where == "out"}
        if len(inputs) > 1 or len(outputs) > 1 or "both" in sides.values():
            raise MeasureError("it does not sum over one side of the matrix")
        self.is_turned = inputs == {"O"} or outputs == {"I"}
        self.tokens = [label for label in self.x_labels if label is not None and label not in along]

    def pairs(self, x: Tensor, g: Tensor) -> Iterator[Pair]:
        """Yield both sides of each matrix, given x and the gradient of the result."""
        inputs, outputs = (self._O, self._I) if self.is_turned else (self._I, self._O)
        n_in, n_out = (self.rows, self.columns) if self.is_turned else (self.columns, self.rows)
        for places in product(*(range(size) for size, _ in self._E.values())):
            at = dict(zip(self._E, places, strict=True))
            number = self.first + sum(places[k] * stride for k, (_, stride) in enumerate(self._E.values()))
            x_T = _matrix(x, self.x_labels, at, self.tokens, inputs, n_in)
            g_T = _matrix(g, self.out_labels, at, self.tokens, outputs, n_out)
            columns_TI, rows_TO = (g_T, x_T) if self.is_turned else (x_T, g_T)
            shares = self._O.size / self.rows, self._I.size / self.columns
            yield Pair(number, columns_TI, rows_TO, *shares, self._O.span(self.rows), self._I.span(self.columns))

    def _place(self, matrices: Matrices, view: Tensor, labels: Sequence[Label]) -> None:
        """Find the axis of the parameter along which each dimension of the view lies."""
        parameter, size = matrices.parameter, self.rows * self.columns
        if not parameter.is_contiguous():
            raise MeasureError("the parameter is not contiguous")
        number, rest = divmod(int(view.storage_offset() - parameter.storage_offset()), size)
        self.first = number
        each = zip(view.stride(), view.shape, labels, strict=True)
        dims = sorted(((stride, n, label) for stride, n, label in each if n > 1 and stride), key=lambda dim: -dim[0])
        self._E = {label: (n, stride // size) for stride, n, label in dims if stride >= size}
        if any(stride % size for stride, _, _ in dims if stride >= size):
            raise MeasureError("it is a part of a matrix")
        inner = [dim for dim in dims if dim[0] < size]
        row, column = divmod(rest, self.columns)
        self._O = _axis([dim for dim in inner if dim[0] >= self.columns], self.columns, row, self.rows)
        self._I = _axis([dim for dim in inner if dim[0] < self.columns], 1, column, self.columns)

    def _side(self, axis: _Axis) -> str:
        """Return where the labels of an axis are: x, out, both, or empty where the axis has none."""
        where = {("both" if label in self.out_labels else "x") if label in self.x_labels else "out" for label in axis.labels}
        return "both" if len(where) > 1 else next(iter(where), "")


class Grouped:
    """x [T, K] @ W [E, K, N], where runs of tokens go to one matrix each (torch.nn.functional.grouped_mm).

    Args:
        view: [E, K, N], a view of the parameter.
        ends_E: token after the last one of each matrix.
    """

    def __init__(self, matrices: Matrices, view: Tensor, x: Tensor, ends_E: Tensor) -> None:
        if view.ndim != 3 or x.ndim != 2:
            raise MeasureError("it is not a product of tokens with a stack of matrices")
        self.stops = ends_E.tolist()
        self.each = [Contraction(matrices, one, x, ["t", "k"], ["k", "n"], ["t", "n"]) for one in view]

    def pairs(self, x: Tensor, g: Tensor) -> Iterator[Pair]:
        """Yield both sides of each matrix for its own tokens."""
        for start, stop, contraction in zip([0, *self.stops], self.stops, self.each, strict=False):
            yield from contraction.pairs(x[start:stop], g[start:stop])


def _used(labels: Sequence[Label], shape: Sequence[int], along: set[Label], out: set[Label]) -> list[Label | None]:
    """Return the labels of x; None for a dimension of 1 that is repeated, or summed over."""
    used: list[Label | None] = []
    for label, n in zip(labels, shape, strict=True):
        is_single = n == 1 and (label in along or label not in out)
        if not is_single and label not in along and label not in out:
            raise MeasureError("it sums over a dimension that the weight does not have")
        used.append(None if is_single else label)
    return used


def _axis(dims: Sequence[tuple[int, int, Label]], unit: int, start: int, length: int) -> _Axis:
    """Return a run of whole rows or columns; `dims` are stride, size and label by falling stride."""
    expected = unit
    for stride, n, _ in reversed(dims):
        if stride != expected:
            raise MeasureError("it is a part of a matrix with gaps")
        expected *= n
    size = expected // unit
    if start + size > length:
        raise MeasureError("it is a part of a matrix")
    return _Axis(tuple(label for _, _, label in dims), start, size)


def _matrix(
    x: Tensor, labels: Sequence[Label | None], at: dict[Label, int], tokens: Sequence[Label], side: _Axis, width: int
) -> Tensor:
    """Return x [T, width] at the places `at` of the stack; columns that the view leaves out are zero."""
    index = tuple(0 if label is None else at.get(label, slice(None)) for label in labels)
    left = [label for label in labels if label is not None and label not in at]
    ordered = x[index].permute([left.index(label) for label in (*tokens, *side.labels)])
    flat = ordered.reshape(-1, side.size)
    return flat if side.size == width else F.pad(flat, (side.start, width - side.start - side.size))


def labels_of_matmul(a: int, b: int) -> tuple[list[Label], list[Label], list[Label]]:
    """Return the labels of a, b and a @ b for so many dimensions of each; those of batches are counted from the right."""
    batch_a, batch_b = list(range(a - 2, 0, -1)), list(range(b - 2, 0, -1))
    labels_a: list[Label] = [*batch_a, "n", "k"] if a > 1 else ["k"]
    labels_b: list[Label] = [*batch_b, "k", "m"] if b > 1 else ["k"]
    longest = batch_a if len(batch_a) > len(batch_b) else batch_b
    return labels_a, labels_b, [*longest, *(["n"] if a > 1 else []), *(["m"] if b > 1 else [])]


def labels_of_einsum(equation: str, dims: Sequence[int]) -> tuple[list[list[Label]], list[Label]]:
    """Return the labels of each operand, and of the result, of an einsum's equation."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(dims):
        raise MeasureError("its equation has another number of operands")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    operands = [_spelled(term, n - len(term.replace("...", ""))) for term, n in zip(terms, dims, strict=True)]
    longest = max((n - len(t.replace("...", "")) for t, n in zip(terms, dims, strict=True) if "..." in t), default=0)
    return operands, _spelled(right, longest)


def _spelled(term: str, hidden: int) -> list[Label]:
    """Return the letters of a term; numbers, counted from the right, stand for the dimensions under its ellipsis."""
    before, dots, after = term.partition("...")
    return [*before, *(range(hidden, 0, -1) if dots else ()), *after]


class Convolution:
    """A convolution in one or two dimensions, as a product of patches with the matrix [O, I / groups · K] of its kernel."""

    def __init__(self, matrices: Matrices, dims: int, stride: object, padding: object, dilation: object, groups: int) -> None:
        self.matrices, self.groups, self.dims = matrices, groups, dims
        self.kernel = tuple(matrices.parameter.shape[2:])
        self.stride, self.dilation = (_each(value, dims) for value in (stride, dilation))
        self.padding = _padding(padding, self.kernel, self.dilation)

    def pairs(self, x: Tensor, g: Tensor) -> Iterator[Pair]:
        """Yield both sides of the matrix, for each group of channels."""
        rows, columns = self.matrices.shape
        batched = x if x.ndim == self.dims + 2 else x[None]
        padded = F.pad(batched, [n for sides in reversed(self.padding) for n in sides])
        flat = padded if self.dims == 2 else padded[:, :, None]
        ones = (1,) * (2 - self.dims)
        patches = F.unfold(flat, ones + self.kernel, dilation=ones + self.dilation, stride=ones + self.stride)  # [B, I·K, T]
        g_BOT = (g if g.ndim == self.dims + 2 else g[None]).flatten(2)
        for group in range(self.groups):
            mine = slice(group * columns, (group + 1) * columns)
            x_TI = patches[:, mine].transpose(1, 2).reshape(-1, columns)
            each = rows // self.groups
            g_TO = g_BOT[:, group * each : (group + 1) * each].transpose(1, 2).reshape(-1, each)
            yield Pair(0, x_TI, F.pad(g_TO, (group * each, rows - (group + 1) * each)), row_share=1 / self.groups)


def _each(value: object, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(int(n) for n in (values * dims if len(values) == 1 else values))


def _padding(padding: object, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return zeros before and after each dimension; of an odd number in `same` the later side has one more."""
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(n, n) for n in _each(padding, len(kernel))]
