"""Watch a model while it runs forward and backward, and sum the statistics of its matrices over tokens.

Legend: B batch, T tokens, V vocabulary, O rows (outputs), I columns (inputs) of a matrix; x inputs, g output gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantlab.calib.labels import Prediction, expected_squares, is_logits, token_slices
from quantlab.calib.triangle import GramSum, gram_blocks
from quantlab.errors import StatisticsError

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

    Linear layers, also subclasses that cast their weight, are seen by module hooks; embeddings by the call of `F.embedding`,
    whatever their module is given or does with the rows; a tied head by the call of `F.linear` with an embedding's own weight.
    A matrix that is multiplied several times sums all its uses.
    """

    def __init__(self, model: nn.Module, names: set[str], *, plain: bool = True, scratch: Path | None = None) -> None:
        """Prepare sums for the parameters of `model` that `names` holds.

        Args:
            plain: whether to sum H of `products`; without it they have g alone, which is much faster for wide layers.
            scratch: folder of nameless files that hold the large sums; None keeps them in memory.
        """
        self.model, self.plain, self.scratch = model, plain, scratch
        self.by_id: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in names:
                self.by_id.setdefault(id(parameter), []).append(name)
        self.products: dict[int, Sums] = {}
        self.lookups: dict[int, LookupSums] = {}
        self.fishers: dict[int, FisherSums] = {}
        self._embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self.ids_BT = torch.zeros(0, 0, dtype=torch.int64)
        """Ids of the batch that runs, set by the caller."""
        self.prediction: Prediction | None = None
        """Prediction for that batch, set by the caller before gradients flow."""
        self._last_gram: tuple[Tensor, list[Tensor]] | None = None

    def named(self, sums: dict[int, S]) -> dict[str, S]:
        """Return `products`, `fishers` or `lookups` by parameter name; a parameter with several names is under each."""
        return {name: sums[key] for key, names in self.by_id.items() if key in sums for name in names}

    def sums(self) -> Iterator[Sums | LookupSums | FisherSums]:
        """Yield all sums, in an order that is the same in every process."""
        yield from self.products.values()
        yield from self.lookups.values()
        yield from self.fishers.values()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch while the block runs. Activations have gradients then, parameters have none: theirs are not needed."""
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        layers = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        handles = [m.register_forward_hook(self._on_layer) for m in layers]
        names, in_layers = {key: names[0] for key, names in self.by_id.items()}, {id(m.weight) for m in layers}
        try:
            self.model.requires_grad_(False)
            with _DirectUses(names, in_layers, self._on_product, self._on_embedding):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            self._last_gram = None

    def _on_layer(self, module: nn.Linear, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        started = _start_of_gradients(out)
        self._on_product(module.weight, inputs[0], out if started is None else started)
        return None if started is None else started.clone()  # the model may change its copy in place, a leaf it may not

    def _on_embedding(self, weight: Tensor, ids: Tensor, out: Tensor) -> Tensor:
        started = _start_of_gradients(out)
        self._on_lookup(weight, ids, out if started is None else started)
        return out if started is None else started.clone()

    def _on_product(self, weight: Tensor, x: Tensor, out: Tensor) -> None:
        if id(weight) not in self.by_id:
            return
        sums = self.products.get(id(weight)) or self._new_sums(weight)
        if sums.H is not None:
            sums.H.add_blocks(self._gram(x), x.numel() // x.shape[-1])
        x_TI = x.detach().flatten(0, -2)
        out.register_hook(lambda g: self._add_product(weight, sums, x_TI, g.flatten(0, -2)))  # type: ignore[no-untyped-call]

    def _new_sums(self, weight: Tensor) -> Sums:
        rows, columns = weight.shape
        H = GramSum(columns, weight.device, self.scratch) if self.plain else None
        self.products[id(weight)] = Sums(H, weight.new_zeros(rows, dtype=torch.float64))
        return self.products[id(weight)]

    def _add_product(self, weight: Tensor, sums: Sums, x_TI: Tensor, g_TO: Tensor) -> None:
        """Add a batch: products in float32 within it, float64 across batches."""
        prediction = self.prediction if is_logits(g_TO, self.prediction) else None
        is_full = 1 < len(weight) <= FULL_ROWS and prediction is None and id(weight) not in self._embeddings
        fisher = self.fishers.get(id(weight)) or self._new_fisher(weight, is_full)
        x2_T = torch.cat([x_TI[part].float().square().sum(1) for part in token_slices(*x_TI.shape)])
        g2_T = torch.empty_like(x2_T)
        for part in token_slices(*g_TO.shape):
            g_part = g_TO[part]
            squares_TO = expected_squares(g_part, prediction, part) if prediction else g_part.float().square()
            g2_T[part] = squares_TO.sum(1)
            sums.g_O += squares_TO.sum(0)
            if not isinstance(fisher.G, GramSum):
                fisher.G += x2_T[part] @ squares_TO
        fisher.H.add(x_TI * g2_T.sqrt()[:, None])
        if isinstance(fisher.G, GramSum):
            fisher.G.add(g_TO * x2_T.sqrt()[:, None])

    def _new_fisher(self, weight: Tensor, is_full: bool) -> FisherSums:
        rows, columns = weight.shape
        H = GramSum(columns, weight.device, self.scratch)
        G = GramSum(rows, weight.device, self.scratch) if is_full else weight.new_zeros(rows, dtype=torch.float64)
        self.fishers[id(weight)] = FisherSums(H, G)
        return self.fishers[id(weight)]

    def _on_lookup(self, weight: Tensor, ids: Tensor, out: Tensor) -> None:
        if id(weight) not in self.by_id:
            return
        rows, columns = weight.shape
        zero = LookupSums(weight.new_zeros(columns, dtype=torch.float64), weight.new_zeros(rows, dtype=torch.float64))
        sums = self.lookups.setdefault(id(weight), zero)

        def on_gradient(gradient: Tensor) -> None:
            sums.h_I += gradient.flatten(0, -2).float().square().sum(0)
            sums.counts_O += self._counts(ids, rows)

        out.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def _counts(self, ids: Tensor, rows: int) -> Tensor:
        """Return how often each row was looked up, [O].

        For tokens it is the mean of that and of how often the model expected the token next, which has half the noise.
        """
        # positions are looked up once for the whole batch: each lookup then serves several tokens
        count_O = torch.bincount(ids.flatten(), minlength=rows) * (self.ids_BT.numel() / ids.numel())
        if self.prediction is None or len(self.prediction.expected_V) != rows or not torch.equal(ids, self.ids_BT):
            return count_O
        return (count_O + self.prediction.expected_V) / 2

    def _gram(self, x: Tensor) -> list[Tensor]:
        """Return the blocks of the sum over the batch's tokens of x xᵀ; layers that share an input share the result."""
        if self._last_gram is None or self._last_gram[0] is not x:
            self._last_gram = (x, list(gram_blocks(x.detach().flatten(0, -2).float())))
        return self._last_gram[1]


def _start_of_gradients(out: Tensor) -> Tensor | None:
    """Return a leaf with the values of `out` if gradients have not started before it, as in a model's first layer."""
    return None if out.requires_grad else out.detach().requires_grad_()


_CASTS = (Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type_as, Tensor.contiguous, Tensor.detach)


class _DirectUses(TorchFunctionMode):
    """Reports each `F.embedding` with a watched weight, and each `F.linear` with one that is in no linear layer: a tied head.

    Both are seen through casts too. The embedding's report returns the tensor that takes the place of the looked-up rows.

    Any other operation on such a weight (x @ W.T, an einsum) would escape the statistics, so it is an error that names it.
    """

    def __init__(
        self,
        names: dict[int, str],
        in_layers: set[int],
        report: Callable[[Tensor, Tensor, Tensor], None],
        report_lookup: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.names, self.in_layers, self.report, self.report_lookup = names, in_layers, report, report_lookup
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}  # id of a cast: the cast, kept alive, and its weight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for position, argument in enumerate((*args, *kwargs.values())):
            weight = self._weight(argument)
            if weight is None or not isinstance(out, Tensor):
                continue
            if func is F.embedding:
                return self.report_lookup(weight, args[0] if args else kwargs["input"], out)
            if id(weight) in self.in_layers:
                continue  # the layers' hooks see it
            if func in _CASTS and position == 0:
                self.casts[id(out)] = (out, weight)
            elif func is F.linear and (position == 1 or kwargs.get("weight") is argument):
                self.report(weight, args[0] if args else kwargs["input"], out)
            elif out.is_floating_point() and out.ndim > 1:
                raise StatisticsError(
                    f"tensor {self.names[id(weight)]}: its use in {getattr(func, '__name__', func)} cannot be measured",
                    hint="multiply by it with nn.Linear or torch.nn.functional.linear",
                )
        return out

    def _weight(self, argument: Any) -> Tensor | None:
        if not isinstance(argument, Tensor):
            return None
        return argument if id(argument) in self.names else self.casts.get(id(argument), (None, None))[1]
