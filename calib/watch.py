"""Watch a model while it runs forward and backward, and sum the statistics of its matrices over tokens.

Legend: B batch, T tokens, V vocabulary, O rows (outputs), I columns (inputs) of a matrix; x inputs, g output gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from quantlab.artifact.whole import part_name
from quantlab.calib.contraction import Linear, Matrices, Pair, Product, kernel_names
from quantlab.calib.direct_uses import DirectUses
from quantlab.calib.labels import Prediction, expected_squares, is_logits, token_slices
from quantlab.calib.slices import Slices
from quantlab.calib.triangle import GramSum, gram_blocks

S = TypeVar("S")


@dataclass
class Sums:
    """Sums over tokens for a product with a matrix [O, I], unweighted, float64."""

    H: GramSum | None
    """x xᵀ of the inputs, [I, I]; None where it is not wanted."""
    g_O: Tensor
    """Squared output gradients, [O]."""

    @property
    def flat(self) -> list[Tensor]:
        """All sums, to be added to those of other processes."""
        return [self.g_O] if self.H is None else [self.H.flat, self.g_O]


@dataclass
class LookupSums:
    """Sums over tokens for look-ups in an embedding [O, I], float64."""

    h_I: Tensor
    """Squared output gradients, [I]."""
    counts_O: Tensor
    """Number of times that each row was looked up, [O]."""

    @property
    def flat(self) -> list[Tensor]:
        """All sums, to be added to those of other processes."""
        return [self.h_I, self.counts_O]


@dataclass
class FisherSums:
    """Sums over tokens for one product, each token weighted by its squared length on the other side, float64."""

    H: GramSum
    """x xᵀ of the inputs, weighted by the squared length of the token's output gradient, [I, I]."""
    G: GramSum | Tensor
    """g gᵀ of the output gradients, weighted by the squared length of the token's input, [O, O]; or its diagonal [O]."""

    @property
    def flat(self) -> list[Tensor]:
        """All sums, to be added to those of other processes."""
        return [self.H.flat, self.G.flat if isinstance(self.G, GramSum) else self.G]


FULL_ROWS = 4096
"""Matrices with more rows, or with one, have only the diagonal of G; so have embeddings and heads, whose rows are tokens, few
of which are likely at the same place."""


class Watcher:
    """Sums statistics of a model's matrices: `products`, `fishers` of the same products, and `lookups` of embeddings.

    Linear layers, also subclasses that cast their weight, are seen by module hooks; all other uses by the functions of torch
    that take the weight, a view of it, or a copy in another dtype (direct_uses.py). Each matrix of a stack [E, O, I] has sums
    of its own, over the tokens that reach it. A matrix that is multiplied several times sums all its uses.
    """

    def __init__(self, model: nn.Module, names: set[str], *, plain: bool = True, scratch: Path | None = None) -> None:
        """Prepare sums for the parameters of `model` that `names` holds, and for matrices `name.k` of stacks.

        Args:
            plain: whether to sum H of `products`; without it they have g alone, which is much faster for wide layers.
            scratch: folder of nameless files that hold the large sums; None keeps them in memory.
        """
        self.model, self.plain, self.scratch = model, plain, scratch
        self._matrices: dict[int, Matrices] = {}
        self._names: dict[tuple[int, int], list[str]] = {}
        self._parameters: dict[int, str] = {}
        kernels = kernel_names(model)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            for number, part in _parts(name, parameter, names):
                self._matrices.setdefault(id(parameter), Matrices(parameter, name in kernels))
                self._names.setdefault((id(parameter), number), []).append(part)
                self._parameters.setdefault(id(parameter), name)
        self.products: dict[str, Sums] = {}
        self.lookups: dict[str, LookupSums] = {}
        self.fishers: dict[str, FisherSums] = {}
        self.slices = Slices()
        self._embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self.ids_BT = torch.zeros(0, 0, dtype=torch.int64)
        """Ids of the batch that runs, set by the caller."""
        self.prediction: Prediction | None = None
        """Prediction for that batch, set by the caller before gradients flow."""
        self._last_gram: tuple[Tensor, list[Tensor]] | None = None
        self._running: list[int] = []

    def named(self, sums: dict[str, S]) -> dict[str, S]:
        """Return `products`, `fishers` or `lookups` by name; a matrix with several names is under each."""
        return {name: sums[names[0]] for names in self._names.values() if names[0] in sums for name in names}

    def forget(self, names: set[str]) -> None:
        """Drop the sums of matrices, by any of their names."""
        for first, *others in self._names.values():
            if names & {first, *others}:
                self.products.pop(first, None)
                self.fishers.pop(first, None)

    def kinds(self) -> Tensor:
        """Return which sums there are, int64 [matrices, 3]: of products, with full G, of look-ups."""
        rows = []
        for name, *_ in self._names.values():
            fisher = self.fishers.get(name)
            rows.append([name in self.products, fisher is not None and isinstance(fisher.G, GramSum), name in self.lookups])
        return torch.tensor(rows, dtype=torch.int64).view(-1, 3)

    def complete_(self, kinds: Tensor) -> None:
        """Add sums of zero where another process has some: `kinds` is the sum of all processes' `kinds`."""
        rows = zip(self._names.items(), kinds.tolist(), strict=True)
        for ((key, _), (name, *_)), (has_product, is_full, has_lookup) in rows:
            matrices = self._matrices[key]
            if has_product:
                self._sums(name, matrices)
                self._fisher(name, matrices, bool(is_full))
            if has_lookup:
                self._lookup(name, matrices)

    def sums(self) -> Iterator[Sums | LookupSums | FisherSums]:
        """Yield all sums, in an order that is the same in every process that has the same."""
        for kind in (self.products, self.lookups, self.fishers):
            for name, *_ in self._names.values():
                if name in kind:
                    yield kind[name]  # type: ignore[index]

    @property
    def watched(self) -> set[int]:
        """Ids of the parameters that are watched."""
        return set(self._matrices)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch while the block runs. Activations have gradients then, parameters have none: theirs are not needed."""
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        layers = [m for m in self.model.modules() if isinstance(m, nn.Linear) and id(m.weight) in self._matrices]
        handles = [m.register_forward_pre_hook(self._before_layer) for m in layers]
        handles += [m.register_forward_hook(self._on_layer) for m in layers]
        try:
            self.model.requires_grad_(False)
            with DirectUses(self._parameters, self._matrices, self._is_running, self._on_product, self._on_lookup):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            self._last_gram = None
            self._running.clear()

    def _is_running(self, weight: Tensor) -> bool:
        """Return whether the linear layer with this weight runs, whose hook sees the product."""
        return id(weight) in self._running

    def _before_layer(self, module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        self._running.append(id(module.weight))

    def _on_layer(self, module: nn.Linear, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        self._running.remove(id(module.weight))
        return self._on_product(self._matrices[id(module.weight)], Linear(), inputs[0], out)

    def _on_product(self, matrices: Matrices, product: Product, x: Tensor, out: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return out  # it runs again during backward (recompute.py)
        started = _start_of_gradients(out)
        shared = x if isinstance(product, Linear) else None  # layers that share an input share its Gram matrix

        def on_gradient(g: Tensor) -> None:
            for pair in product.pairs(x.detach(), g):
                names = self._names.get((id(matrices.parameter), pair.number))
                whole = self.slices.join(names[0], pair) if names and len(pair.rows_TO) else None
                if names and whole is not None:
                    self._add_product(names[0], matrices, whole, shared)

        (out if started is None else started).register_hook(on_gradient)  # type: ignore[no-untyped-call]
        return out if started is None else started.clone()  # the model may change its copy in place, a leaf it may not

    def end_batch(self) -> None:
        """Count the products with parts of matrices whose other parts were not met."""
        by_name = {names[0]: self._matrices[key] for (key, _), names in self._names.items()}
        for name, pair in self.slices.left():
            self._add_product(name, by_name[name], pair, None)

    def _sums(self, name: str, matrices: Matrices) -> Sums:
        if name not in self.products:
            (rows, columns), device = matrices.shape, matrices.parameter.device
            H = GramSum(columns, device, self.scratch) if self.plain else None
            self.products[name] = Sums(H, torch.zeros(rows, dtype=torch.float64, device=device))
        return self.products[name]

    def _add_product(self, name: str, matrices: Matrices, pair: Pair, shared: Tensor | None) -> None:
        """Add a batch: products in float32 within it, float64 across batches."""
        columns_TI, g_TO, rows = pair.columns_TI, pair.rows_TO, matrices.shape[0]
        prediction = self.prediction if is_logits(g_TO, self.prediction) else None
        is_full = 1 < rows <= FULL_ROWS and prediction is None and id(matrices.parameter) not in self._embeddings
        sums, fisher = self._sums(name, matrices), self._fisher(name, matrices, is_full)
        if sums.H is not None:
            sums.H.add_blocks(self._gram(columns_TI, shared, pair.row_share), len(columns_TI))
        x2_T = torch.cat([columns_TI[part].float().square().sum(1) for part in token_slices(*columns_TI.shape)])
        g2_T = torch.empty_like(x2_T)
        for part in token_slices(*g_TO.shape):
            g_part = g_TO[part]
            squares_TO = expected_squares(g_part, prediction, part) if prediction else g_part.float().square()
            g2_T[part] = squares_TO.sum(1)
            sums.g_O += squares_TO.sum(0) * pair.column_share
            if not isinstance(fisher.G, GramSum):
                fisher.G += x2_T[part] @ squares_TO
        fisher.H.add(columns_TI.float() * g2_T.sqrt()[:, None])
        if isinstance(fisher.G, GramSum):
            fisher.G.add(g_TO.float() * x2_T.sqrt()[:, None])

    def _fisher(self, name: str, matrices: Matrices, is_full: bool) -> FisherSums:
        if name not in self.fishers:
            (rows, columns), device = matrices.shape, matrices.parameter.device
            H = GramSum(columns, device, self.scratch)
            zeros = torch.zeros(0 if is_full else rows, dtype=torch.float64, device=device)
            self.fishers[name] = FisherSums(H, GramSum(rows, device, self.scratch) if is_full else zeros)
        return self.fishers[name]

    def _lookup(self, name: str, matrices: Matrices) -> LookupSums:
        if name not in self.lookups:
            (rows, columns), device = matrices.shape, matrices.parameter.device
            h_I, counts_O = (torch.zeros(n, dtype=torch.float64, device=device) for n in (columns, rows))
            self.lookups[name] = LookupSums(h_I, counts_O)
        return self.lookups[name]

    def _on_lookup(self, matrices: Matrices, number: int, ids: Tensor, out: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return out
        started = _start_of_gradients(out)
        names = self._names.get((id(matrices.parameter), number))
        if names:
            sums, rows = self._lookup(names[0], matrices), matrices.shape[0]

            def on_gradient(gradient: Tensor) -> None:
                sums.h_I += gradient.flatten(0, -2).float().square().sum(0)
                sums.counts_O += self._counts(ids, rows)

            (out if started is None else started).register_hook(on_gradient)  # type: ignore[no-untyped-call]
        return out if started is None else started.clone()

    def _counts(self, ids: Tensor, rows: int) -> Tensor:
        """Return how often each row was looked up, [O].

        For tokens it is the mean of that and of how often the model expected the token next, which has half the noise.
        """
        # positions are looked up once for the whole batch: each lookup then serves several tokens
        count_O = torch.bincount(ids.flatten(), minlength=rows) * (self.ids_BT.numel() / ids.numel())
        are_tokens = torch.equal(ids.flatten(), self.ids_BT.flatten())
        if self.prediction is None or len(self.prediction.expected_V) != rows or not are_tokens:
            return count_O
        return (count_O + self.prediction.expected_V) / 2

    def _gram(self, x_TI: Tensor, shared: Tensor | None, share: float) -> list[Tensor]:
        """Return the blocks of the sum over the batch's tokens of x xᵀ, times `share`; those of the last `shared` are kept."""
        if shared is None:
            return [block * share for block in gram_blocks(x_TI.float())]
        if self._last_gram is None or self._last_gram[0] is not shared:
            self._last_gram = (shared, list(gram_blocks(x_TI.float())))
        return self._last_gram[1]


def _parts(name: str, parameter: Tensor, names: set[str]) -> Iterator[tuple[int, str]]:
    """Yield number and name of each matrix of a parameter that is in `names`."""
    if name in names:
        yield 0, name
    elif parameter.ndim > 2:
        for number in range(prod(parameter.shape[:-2])):
            if (part := part_name(name, number)) in names:
                yield number, part


def _start_of_gradients(out: Tensor) -> Tensor | None:
    """Return a leaf with the values of `out` if gradients have not started before it, as in a model's first layer."""
    return None if out.requires_grad else out.detach().requires_grad_()
