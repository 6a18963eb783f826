"""See every use of a model's matrices while it runs, forward and backward, and sum what the statistics need."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass
class Sums:
    """Sums over tokens for one use of a matrix [O, I], float64: see `calib.statistics.Statistics` for their meaning."""

    H_II: Tensor
    """[I, I] of a product, its diagonal [I] of a lookup."""
    g_O: Tensor


class Watcher:
    """Sums for the matrices of `model` whose parameter names are in `names`: `products`, and `lookups` of embeddings.

    Linear layers, also subclasses that cast their weight, are seen by module hooks; a tied head by the call of `F.linear` with
    an embedding's own weight. A matrix that is multiplied several times sums all its uses.
    """

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        self.model = model
        self.by_id: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in names:
                self.by_id.setdefault(id(parameter), []).append(name)
        self.products: dict[int, Sums] = {}
        self.lookups: dict[int, Sums] = {}
        self._last_gram: tuple[Tensor, Tensor] | None = None

    def named(self, sums: dict[int, Sums]) -> dict[str, Sums]:
        """`products` or `lookups` by parameter name; one that goes by several names is under each."""
        return {name: sums[key] for key, names in self.by_id.items() if key in sums for name in names}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch while the block runs. Activations carry gradients, parameters do not: their gradients are not needed."""
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        modules = [m for m in self.model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
        handles = [m.register_forward_hook(self._on_module) for m in modules]
        tables = {id(m.weight) for m in modules if isinstance(m, nn.Embedding)}
        try:
            self.model.requires_grad_(False)
            with _LinearCalls(tables, self._on_product):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            self._last_gram = None

    def _on_module(self, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if not out.requires_grad:
            out.requires_grad_()  # the first layer of the model: gradients start here
        if isinstance(module, nn.Linear):
            self._on_product(module.weight, inputs[0], out)
        elif isinstance(module, nn.Embedding):
            self._on_lookup(module.weight, inputs[0], out)

    def _on_product(self, weight: Tensor, x: Tensor, out: Tensor) -> None:
        if id(weight) not in self.by_id:
            return
        rows, columns = weight.shape
        zero = Sums(weight.new_zeros(columns, columns, dtype=torch.float64), weight.new_zeros(rows, dtype=torch.float64))
        sums = self.products.setdefault(id(weight), zero)
        sums.H_II += self._gram(x)

        def on_gradient(gradient: Tensor) -> None:
            sums.g_O += gradient.flatten(0, -2).float().square().sum(0)

        out.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def _on_lookup(self, weight: Tensor, ids: Tensor, out: Tensor) -> None:
        if id(weight) not in self.by_id:
            return
        rows, columns = weight.shape
        zero = Sums(weight.new_zeros(columns, dtype=torch.float64), weight.new_zeros(rows, dtype=torch.float64))
        sums = self.lookups.setdefault(id(weight), zero)
        sums.g_O += torch.bincount(ids.flatten(), minlength=weight.shape[0])

        def on_gradient(gradient: Tensor) -> None:
            sums.H_II += gradient.flatten(0, -2).float().square().sum(0)

        out.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def _gram(self, x: Tensor) -> Tensor:
        """Sum over tokens of x xᵀ: float32 within a batch, float64 across batches; shared by layers of the same input."""
        if self._last_gram is None or self._last_gram[0] is not x:
            x_TI = x.detach().flatten(0, -2).float()
            self._last_gram = (x, x_TI.T @ x_TI)
        return self._last_gram[1]


class _LinearCalls(TorchFunctionMode):
    """Report each `F.linear(x, weight)` whose weight is one of `tables`: a head tied to an embedding."""

    def __init__(self, tables: set[int], report: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.tables, self.report = tables, report

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear and len(args) >= 2 and id(args[1]) in self.tables:
            self.report(args[1], args[0], out)
        return out
