"""Uses of a model's weights outside linear layers, as the functions of torch report them while the model runs.

Views of a weight (slices of a stack, transposed, reshaped) and copies of it in another dtype are followed to the product in
which they end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from quantlab.calib.contraction import (
    Contraction,
    Convolution,
    Grouped,
    Label,
    Matrices,
    MeasureError,
    Product,
    labels_of_einsum,
    labels_of_matmul,
)
from quantlab.errors import StatisticsError

_COPIES = (
    Tensor.to,
    Tensor.float,
    Tensor.half,
    Tensor.bfloat16,
    Tensor.double,
    Tensor.type_as,
    Tensor.contiguous,
    Tensor.clone,
)
_MATMULS = (
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv),
    Tensor.__rmatmul__,
)
_ADDED = (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm)
_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2}
_GROUPED = ("grouped_mm", "_grouped_mm", "grouped_mm_fallback")
"""Names of a grouped product in torch, and of its replacement in transformers."""
_SELECTIONS = (torch.index_select, Tensor.index_select)
_OPERANDS = ("input", "mat1", "batch1", "other", "mat2", "batch2", "vec", "weight")
"""Names of operands, in the order in which each function takes those that it has."""
_HINT = (
    "multiply by it with nn.Linear, F.linear, @, matmul, bmm, addmm or einsum, look it up with F.embedding, or --keep it "
    "unquantized"
)

ReportProduct = Callable[[Matrices, Product, Tensor, Tensor], Tensor]
"""Takes a parameter, the product, the other operand and the result; returns what takes the result's place."""
ReportLookup = Callable[[Matrices, int, Tensor, Tensor], Tensor]
"""Takes a parameter, the number of its matrix, ids and the rows that were looked up; returns what takes their place."""


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor made of a weight: its own memory, or a copy."""

    matrices: Matrices
    view: Tensor
    """A view of the parameter's own memory, with the dimensions of the tensor."""


class DirectUses(TorchFunctionMode):
    """Reports each product with a weight, and each look-up in one.

    Any other operation on a weight that gives a matrix would escape the statistics, so it is an error that names it.

    Args:
        names: of each parameter, for errors.
        watched: parameters by their id.
        is_seen: whether the layer that runs now reports the uses of this parameter itself.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        watched: Mapping[int, Matrices],
        is_seen: Callable[[Tensor], bool],
        report_product: ReportProduct,
        report_lookup: ReportLookup,
    ) -> None:
        super().__init__()
        self.names, self.watched, self.is_seen = names, watched, is_seen
        self.report_product, self.report_lookup = report_product, report_lookup
        self._views: Any = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        found = self._found(args, kwargs)
        if not found or all(self.is_seen(view.matrices.parameter) for view in found.values()):
            return out
        view = next(iter(found.values()))
        if self._follows(func, args, kwargs, out) or not isinstance(out, Tensor):
            return out
        try:
            replaced = self._product(func, args, kwargs, out, found) if len(found) == 1 else None
            problem = "" if len(found) == 1 else ": it joins two weights"
        except MeasureError as error:
            replaced, problem = None, f": {error}"
        if replaced is None and out.is_floating_point() and out.ndim > 1:
            name = self.names[id(view.matrices.parameter)]
            use = getattr(func, "__name__", func)
            raise StatisticsError(f"tensor {name}: its use in {use} cannot be measured{problem}", hint=_HINT)
        return out if replaced is None else replaced

    def _found(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int, _View]:
        """Return the weights among the arguments, by the argument's id."""
        return {id(tensor): view for tensor in _tensors((*args, *kwargs.values())) if (view := self._view(tensor)) is not None}

    def _view(self, tensor: Tensor) -> _View | None:
        if id(tensor) in self.watched:
            return _View(self.watched[id(tensor)], tensor)
        found: _View | None = self._views.get(tensor) if self._views else None
        return found

    def _follows(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> bool:
        """Remember the results that are views or copies of the weight that the function takes first; whether there are any."""
        source = args[0] if args and isinstance(args[0], Tensor) else None
        view = None if source is None else self._view(source)
        results = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, tuple | list) else []
        if source is None or view is None or not results or not all(isinstance(result, Tensor) for result in results):
            return False
        if all(_memory(result) == _memory(source) for result in results):
            is_copy = _memory(source) != _memory(view.matrices.parameter)
            views = func(view.view, *args[1:], **kwargs) if is_copy else out
            views = [views] if isinstance(views, Tensor) else list(views)
        elif func in _COPIES:
            views = [view.view]
        else:
            return False
        for result, place in zip(results, views, strict=True):
            if id(result) not in self.watched:
                self._views[result] = _View(view.matrices, place)
        return True

    def _product(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor, found: Mapping[int, _View]
    ) -> Tensor | None:
        """Report a look-up or a product and return what takes the result's place; None for any other function."""
        (view,) = found.values()
        operands = [*args, *(kwargs[name] for name in _OPERANDS if name in kwargs)]
        if func is F.embedding:
            return self._lookup(view, operands[0], out)
        if (ids := _selected(func, operands, kwargs)) is not None:
            return self._lookup(view, ids, out)
        if func in _CONVOLUTIONS:
            return self._convolution(func, args, kwargs, out, view)
        if getattr(func, "__name__", "") in _GROUPED and id(operands[1]) in found:
            ends_E = kwargs["offs"] if "offs" in kwargs else operands[2]
            product: Product = Grouped(view.matrices, view.view, operands[0], ends_E)
            return self.report_product(view.matrices, product, operands[0], out)
        if func is torch.einsum and isinstance(operands[0], str):
            tensors = list(_tensors(operands[1:]))
            (labels_a, labels_b), labels_out = _two(*labels_of_einsum(operands[0], [tensor.ndim for tensor in tensors]))
        elif func is F.linear or func in _MATMULS or func in _ADDED:
            tensors = operands[1:3] if func in _ADDED else operands[:2]
            tensors = tensors[::-1] if func is Tensor.__rmatmul__ else tensors
            labels_a, labels_b, labels_out = _labels(func, *tensors)
        else:
            return None
        if id(tensors[0]) in found:
            tensors, labels_a, labels_b = tensors[::-1], labels_b, labels_a
        x, weight = tensors
        if id(weight) not in found:
            return None
        product = Contraction(view.matrices, view.view, x, labels_a, labels_b, labels_out)
        return self.report_product(view.matrices, product, x * kwargs.get("alpha", 1) if func in _ADDED else x, out)

    def _lookup(self, view: _View, ids: Tensor, out: Tensor) -> Tensor:
        rows, columns = shape = view.matrices.shape
        offset = int(view.view.storage_offset() - view.matrices.parameter.storage_offset())
        number, rest = divmod(offset, rows * columns)
        if tuple(view.view.shape) != shape or rest or view.view.stride() != (columns, 1):
            raise MeasureError("it looks up rows of a part of the parameter")
        return self.report_lookup(view.matrices, number, ids, out)

    def _convolution(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor, view: _View) -> Tensor:
        if not view.matrices.is_kernel or view.view.shape != view.matrices.parameter.shape:
            raise MeasureError("it is not the kernel of a layer nn.Conv1d or nn.Conv2d")
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        stride, padding, dilation, groups = (given.get(name, default) for name, default in defaults.items())
        product = Convolution(view.matrices, _CONVOLUTIONS[func], stride, padding, dilation, groups)
        return self.report_product(view.matrices, product, given["input"], out)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from (item for item in value if isinstance(item, Tensor))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _selected(func: Any, operands: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the ids of rows that w[ids] or index_select along the rows takes; None for any other function."""
    ids: Any = None
    if func is Tensor.__getitem__:
        ids = operands[1]
    elif func in _SELECTIONS and (operands[1] if len(operands) > 1 else kwargs.get("dim")) == 0:
        ids = operands[2] if len(operands) > 2 else kwargs.get("index")
    is_ids = isinstance(ids, Tensor) and ids.dtype in (torch.int64, torch.int32) and ids.ndim > 0
    return ids if is_ids else None


def _labels(func: Any, a: Tensor, b: Tensor) -> tuple[list[Label], list[Label], list[Label]]:
    if func is not F.linear:
        return labels_of_matmul(a.ndim, b.ndim)
    before: list[Label] = list(range(a.ndim - 1))
    rows: list[Label] = ["o"] if b.ndim > 1 else []
    return [*before, "i"], [*rows, "i"], [*before, *rows]


def _two(operands: list[list[Label]], out: list[Label]) -> tuple[tuple[list[Label], list[Label]], list[Label]]:
    if len(operands) != 2:
        raise MeasureError(f"it has {len(operands)} operands, two are measured")
    return (operands[0], operands[1]), out
