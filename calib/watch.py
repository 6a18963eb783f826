"""Watch a model while it runs forward and backward, and sum the statistics of its matrices over tokens.

Labels are drawn from the model's own predictions, so gradients are those of the true Fisher information. At the logits the
gradient of a label y is u · (p - e_y), so there the mean of its square over labels is known and needs no draw.

Legend: B batch, T tokens, V vocabulary, O rows (outputs), I columns (inputs) of a matrix; x inputs, g output gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantlab.errors import StatisticsError

TINY = 1e-20  # least probability that is divided by: where float32 probabilities underflow to 0, gradients are 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's prediction after each token of a batch, and a label drawn from it."""

    p_TV: Tensor
    """Probabilities, float32 [T, V]."""
    labels_T: Tensor
    """One draw from each row, int64 [T]."""


def sample_labels(logits_BTV: Tensor, generator: torch.Generator) -> tuple[Prediction, Tensor]:
    """Return the model's predictions with a label drawn from each, and the cross entropy summed over tokens."""
    logits_TV = logits_BTV.flatten(0, -2).float()
    probabilities = logits_TV.detach().softmax(-1).cpu()
    labels_T = torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(logits_TV.device)
    loss = F.cross_entropy(logits_TV, labels_T, reduction="sum")
    return Prediction(probabilities.to(logits_TV.device), labels_T), loss


def is_logits(g_TO: Tensor, prediction: Prediction | None) -> bool:
    """Whether g [T, O] is the loss's gradient at the logits, or before an increasing function of each logit by itself.

    Such functions are a scale, a bias or a softcap. The gradient there is u · (p - e_y) with u >= 0, and the signs show it.
    """
    if prediction is None or g_TO.shape != prediction.p_TV.shape:
        return False
    g_T = g_TO.gather(1, prediction.labels_T[:, None]).squeeze(1)
    negative_T = (g_TO < 0).sum(1) - (g_T < 0).int()
    return not bool(negative_T.any()) and not bool((g_T > 0).any())


def expected_squares(g_TO: Tensor, prediction: Prediction) -> Tensor:
    """Return the mean over labels of the square of a gradient u · (p - e_y) at logits: u² p (1 - p), [T, O].

    Each token counts by its probability, whether it was drawn or not.
    """
    p_TO = prediction.p_TV.clamp(TINY, 1 - torch.finfo(torch.float32).eps)
    odds_TO = p_TO / (1 - p_TO)
    labels_T1 = prediction.labels_T[:, None]
    return g_TO.square() * (1 / odds_TO).scatter(1, labels_T1, odds_TO.gather(1, labels_T1))


S = TypeVar("S")


@dataclass
class Sums:
    """Sums over tokens for one use of a matrix [O, I], float64: see `calib.statistics.Statistics` for their meaning."""

    H_II: Tensor
    """[I, I] for a product ([0, 0] where it is not wanted), the diagonal [I] for a lookup."""
    g_O: Tensor
    """Squared output gradients of a product, counts of a lookup, [O]."""


@dataclass
class FisherSums:
    """Sums over tokens for one product, each token weighted by its squared length on the other side, float64."""

    H_II: Tensor
    """x xᵀ of the inputs, weighted by the squared length of the token's output gradient, [I, I]."""
    G: Tensor
    """g gᵀ of the output gradients, weighted by the squared length of the token's input, [O, O] or its diagonal [O]."""


FULL_ROWS = 4096
"""Matrices with more rows have only the diagonal of G; so have embeddings and heads, whose rows are tokens, few of which are
likely at the same place."""


class Watcher:
    """Sums statistics of a model's matrices: `products`, `fishers` of the same products, and `lookups` of embeddings.

    Linear layers, also subclasses that cast their weight, are seen by module hooks; a tied head by the call of `F.linear` with
    an embedding's own weight. A matrix that is multiplied several times sums all its uses.
    """

    def __init__(self, model: nn.Module, names: set[str], *, plain: bool = True) -> None:
        """Prepare sums for the parameters of `model` that `names` holds.

        Args:
            plain: whether to sum H of `products`; without it they have g alone, which is much faster for wide layers.
        """
        self.model, self.plain = model, plain
        self.by_id: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in names:
                self.by_id.setdefault(id(parameter), []).append(name)
        self.products: dict[int, Sums] = {}
        self.lookups: dict[int, Sums] = {}
        self.fishers: dict[int, FisherSums] = {}
        self._embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self.ids_BT = torch.zeros(0, 0, dtype=torch.int64)
        """Ids of the batch that runs, set by the caller."""
        self.prediction: Prediction | None = None
        """Prediction for that batch, set by the caller before gradients flow."""
        self._last_gram: tuple[Tensor, Tensor] | None = None

    def named(self, sums: dict[int, S]) -> dict[str, S]:
        """Return `products`, `fishers` or `lookups` by parameter name; a parameter with several names is under each."""
        return {name: sums[key] for key, names in self.by_id.items() if key in sums for name in names}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch while the block runs. Activations have gradients then, parameters have none: theirs are not needed."""
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        modules = [m for m in self.model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
        handles = [m.register_forward_hook(self._on_module) for m in modules]
        in_layers = {id(m.weight) for m in modules if isinstance(m, nn.Linear)}  # their hooks see these
        try:
            self.model.requires_grad_(False)
            with _DirectUses({key: names[0] for key, names in self.by_id.items() if key not in in_layers}, self._on_product):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            self._last_gram = None

    def _on_module(self, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        is_first = not out.requires_grad  # of the model's layers: gradients start here
        if is_first:
            out = out.detach().requires_grad_()
        if isinstance(module, nn.Linear):
            self._on_product(module.weight, inputs[0], out)
        elif isinstance(module, nn.Embedding):
            self._on_lookup(module.weight, inputs[0], out)
        return out.clone() if is_first else None  # the model may change its copy in place, a leaf it may not

    def _on_product(self, weight: Tensor, x: Tensor, out: Tensor) -> None:
        if id(weight) not in self.by_id:
            return
        rows, columns = weight.shape
        zero_II = weight.new_zeros((columns, columns) if self.plain else (0, 0), dtype=torch.float64)
        sums = self.products.setdefault(id(weight), Sums(zero_II, weight.new_zeros(rows, dtype=torch.float64)))
        if self.plain:
            sums.H_II += self._gram(x)
        x_TI = x.detach().flatten(0, -2).float()

        def on_gradient(gradient: Tensor) -> None:
            g_TO = gradient.flatten(0, -2).float()
            of_tokens = is_logits(g_TO, self.prediction)
            squares_TO = expected_squares(g_TO, self.prediction) if of_tokens and self.prediction else g_TO.square()
            sums.g_O += squares_TO.sum(0)
            fisher = self._fisher_of(weight, of_tokens=of_tokens or id(weight) in self._embeddings)
            _add_fisher(fisher, x_TI, g_TO, squares_TO)

        out.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def _fisher_of(self, weight: Tensor, *, of_tokens: bool) -> FisherSums:
        rows, columns = weight.shape
        is_full = rows <= FULL_ROWS and not of_tokens
        G = weight.new_zeros((rows, rows) if is_full else (rows,), dtype=torch.float64)
        return self.fishers.setdefault(id(weight), FisherSums(weight.new_zeros(columns, columns, dtype=torch.float64), G))

    def _on_lookup(self, weight: Tensor, ids: Tensor, out: Tensor) -> None:
        if id(weight) not in self.by_id:
            return
        rows, columns = weight.shape
        zero = Sums(weight.new_zeros(columns, dtype=torch.float64), weight.new_zeros(rows, dtype=torch.float64))
        sums = self.lookups.setdefault(id(weight), zero)

        def on_gradient(gradient: Tensor) -> None:
            sums.H_II += gradient.flatten(0, -2).float().square().sum(0)
            sums.g_O += self._counts(ids, rows)

        out.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def _counts(self, ids: Tensor, rows: int) -> Tensor:
        """Return how often each row was looked up, [O].

        For tokens it is the mean of that and of how often the model expected the token next, which has half the noise.
        """
        # positions are looked up once for the whole batch: each lookup then serves several tokens
        count_O = torch.bincount(ids.flatten(), minlength=rows) * (self.ids_BT.numel() / ids.numel())
        if self.prediction is None or self.prediction.p_TV.shape[1] != rows or not torch.equal(ids, self.ids_BT):
            return count_O
        return (count_O + self.prediction.p_TV.sum(0)) / 2

    def _gram(self, x: Tensor) -> Tensor:
        """Return the sum over the batch's tokens of x xᵀ, float32; layers that share an input share the result."""
        if self._last_gram is None or self._last_gram[0] is not x:
            x_TI = x.detach().flatten(0, -2).float()
            self._last_gram = (x, x_TI.T @ x_TI)
        return self._last_gram[1]


def _add_fisher(sums: FisherSums, x_TI: Tensor, g_TO: Tensor, squares_TO: Tensor) -> None:
    """Add a batch: products in float32 within it, float64 across batches; `squares_TO` is g² or its mean over labels."""
    sums.H_II += (x_TI * squares_TO.sum(1, keepdim=True)).T @ x_TI
    x2_T1 = x_TI.square().sum(1, keepdim=True)
    sums.G += (g_TO * x2_T1).T @ g_TO if sums.G.ndim == 2 else (squares_TO * x2_T1).sum(0)


_CASTS = (Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type_as, Tensor.contiguous, Tensor.detach)


class _DirectUses(TorchFunctionMode):
    """Reports each `F.linear` with a watched weight that is in no linear layer, also through a cast: a tied head.

    Any other operation on such a weight (x @ W.T, an einsum) would escape the statistics, so it is an error that names it.
    """

    def __init__(self, names: dict[int, str], report: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.names, self.report = names, report
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}  # id of a cast: the cast, kept alive, and its weight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for position, argument in enumerate((*args, *kwargs.values())):
            weight = self._weight(argument)
            if weight is None or not isinstance(out, Tensor) or func is F.embedding:
                continue
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
