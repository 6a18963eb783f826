"""Progressive rounding: groups of matrices are rounded in turn, and what is still float learns to make up for their errors.

After each group the matrices that are not rounded yet take natural-gradient steps on the KL divergence from the float model:

    W <- W - rate · G⁻¹ M H⁻¹        M: running mean of the gradient

with the damped Kronecker factors of the Fisher information that rounding uses (K-FAC, Martens and Grosse 2015, arXiv
1503.05671). A stage is kept only if it lowers the KL on sequences that no step saw; the next group is then rounded from
where its weights are. The file and its readers do not change: targets move, grids and tables stay.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from quantlab.calib.fisher import Use, column_hessian
from quantlab.methods.method import Memo
from quantlab.methods.rounded_model import RoundedModel, Whole, passes_of
from quantlab.methods.trellis.factors import COLUMN_DAMPING, ROW_DAMPING, damped, row_sensitivity
from quantlab.methods.trellis.tuning import HELD_OUT_TOKENS, STEP_PASSES, held_out
from quantlab.progress import Progress

GROUPS = 8
"""Most groups of matrices; there is a stage of learning after each but the last."""
RATE = 0.005
"""Share of a Newton step that a step takes at the start of a stage; it falls to zero over the stage."""
MOMENTUM = 0.9
STEP_TOKENS = 4096
"""Tokens in a step."""
UNSTABLE = 1.4
"""A stage ends where the KL of a batch exceeds that of its first two by this factor."""
SMALLER = 3.0
"""What the rate is divided by after a stage that did not help."""
UNDONE = "undone"
"""What a memo keeps of a stage that did not help, for it keeps at least one tensor."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage of learning bought."""

    rounded: int
    """Number of matrices that were rounded before it."""
    kl_before: float
    """Nats per token on held-out sequences."""
    kl_after: float
    """Nats per token on held-out sequences after learning, also where it was undone."""

    @property
    def is_better(self) -> bool:
        """Whether learning lowered the KL."""
        return self.kl_after < self.kl_before


@dataclass(frozen=True, slots=True)
class Inverse:
    """Inverse of the damped Fisher information of one matrix, in Kronecker factors."""

    rows: Tensor
    """G⁻¹ [O, O], or its diagonal [O]; float32."""
    columns_II: Tensor
    """H⁻¹, float32."""

    @classmethod
    def of(cls, uses: tuple[Use, ...]) -> "Inverse":
        """Return the inverse for a matrix with these uses."""
        columns_II = torch.linalg.inv(damped(column_hessian(uses), COLUMN_DAMPING)).float()
        if len(uses) == 1 and uses[0].g_O.ndim == 2:
            return cls(torch.linalg.inv(damped(uses[0].g_O.double(), ROW_DAMPING)).float(), columns_II)
        return cls(row_sensitivity(uses).reciprocal().float(), columns_II)

    def of_gradient(self, gradient_OI: Tensor) -> Tensor:
        """Return G⁻¹ M H⁻¹ of a gradient M [O, I]: the Newton step."""
        rows = self.rows if self.rows.ndim == 2 else None
        return (rows @ gradient_OI if rows is not None else self.rows[:, None] * gradient_OI) @ self.columns_II


def groups_of(sizes: Mapping[str, int], most: int = GROUPS) -> list[list[str]]:
    """Return the names in order, in at most `most` groups of about equal size.

    >>> groups_of({"a": 5, "b": 1, "c": 4, "d": 2}, most=2)
    [['a', 'b'], ['c', 'd']]
    """
    total, before, groups = sum(sizes.values()), 0, dict[int, list[str]]()
    for name, size in sizes.items():
        groups.setdefault(min(most - 1, int(most * (before + size / 2) / total)), []).append(name)
        before += size
    return list(groups.values())


def refinement_passes(steps: int) -> float:
    """Return how many tokens the model could read in the time that refinement takes, with `steps` batches a stage."""
    return (GROUPS - 1) * (STEP_PASSES * steps * STEP_TOKENS + 2 * 2 * HELD_OUT_TOKENS)


class Refinement:
    """Progressive rounding of one model.

    Args:
        module: the float model, in eval mode; it is left as it is.
        inverse: returns the inverse Fisher information of a matrix; called once for each that learns.
        fixed: unquantized tensors by name, as the file stores them.
        ids_NT: sequences, int64 [N, T]; one in `HELD_OUT` of them judges the stages.
        steps: batches of a stage.
        whole: makes parameters of matrices, see `RoundedModel`.
    """

    def __init__(
        self,
        module: nn.Module,
        inverse: Callable[[str], Inverse],
        fixed: dict[str, Tensor],
        ids_NT: Tensor,
        steps: int,
        whole: Whole = dict,
    ) -> None:
        self._model = RoundedModel(module, fixed, whole)
        self._inverse, self._steps = inverse, steps
        self._inverses: dict[str, Inverse] = {}
        self._learn_NT, self._held_NT = held_out(ids_NT)
        self._rate = RATE

    def run(
        self,
        weights: Mapping[str, Tensor],
        round_group: Callable[[dict[str, Tensor], Collection[str]], dict[str, Tensor]],
        progress: Progress,
        memo: Memo,
    ) -> list[Stage]:
        """Round all matrices, group by group.

        Args:
            weights: float32 [O, I], by name in the order of the model.
            round_group: returns what a reader gets for matrices that are to be near targets, and remembers their codes; its
                second argument names the matrices that are left after them.
            memo: keeps what each stage learned.
        """
        values, stages = dict(weights), list[Stage]()
        groups = groups_of({name: w.numel() for name, w in weights.items()})
        for number, group in enumerate(groups):
            left = [name for later in groups[number + 1 :] for name in later]
            values |= round_group({name: values[name] for name in group}, left)
            if left:
                shown = partial(progress, f"refine, stage {number + 1} of {len(groups) - 1}")
                stages.append(self._stage(number, values, left, shown, memo))
        return stages

    def _stage(
        self, number: int, values: dict[str, Tensor], names: Sequence[str], progress: Callable[[int, int], None], memo: Memo
    ) -> Stage:
        """Let the named matrices in `values` learn, unless the KL on held-out sequences does not fall by that."""
        rate, place = self._rate, number * self._steps

        def compute() -> tuple[dict[str, Tensor], dict[str, str]]:
            before = self._model.mean_kl(values, self._held_NT)
            learned = self._learn(values, names, rate, place, progress)
            after = self._model.mean_kl(values | learned, self._held_NT)
            return learned if after < before else {UNDONE: torch.zeros(1)}, {"kl_before": repr(before), "kl_after": repr(after)}

        learned, about = memo.tensors(f"refined-{number}", compute)
        if UNDONE in learned:
            self._rate /= SMALLER
        else:
            values |= learned
        return Stage(len(values) - len(names), float(about["kl_before"]), float(about["kl_after"]))

    def _learn(
        self, values: dict[str, Tensor], names: Sequence[str], rate: float, place: int, progress: Callable[[int, int], None]
    ) -> dict[str, Tensor]:
        """Return the named matrices after a stage of steps; it ends early where the KL of the batches rises.

        Args:
            rate: at the first step.
            place: number of the first batch.
        """
        self._inverses = {name: self._inverses.get(name) or self._inverse(name) for name in names}
        learned = {name: values[name].clone().requires_grad_() for name in names}
        means = {name: torch.zeros_like(values[name]) for name in names}
        first: list[float] = []
        for step in range(self._steps):
            kl = self._backward(values | learned, learned, self._batch(place + step))
            first += [kl] * (step < 2)
            if kl > UNSTABLE * max(first):
                break
            with torch.no_grad():
                for name, weight in learned.items():
                    means[name].mul_(MOMENTUM)
                    if weight.grad is not None:  # an expert may have no token in a batch
                        means[name].add_(weight.grad)
                    share = rate * (1 - MOMENTUM) * (1 - step / self._steps)
                    weight.sub_(share * self._inverses[name].of_gradient(means[name]))
                    weight.grad = None
            progress(step + 1, self._steps)
        return {name: weight.detach() for name, weight in learned.items()}

    def _batch(self, number: int) -> Tensor:
        count = max(1, STEP_TOKENS // self._learn_NT.shape[1])
        return self._learn_NT[torch.arange(number * count, (number + 1) * count) % len(self._learn_NT)]

    def _backward(self, values: Mapping[str, Tensor], learned: Mapping[str, Tensor], ids_NT: Tensor) -> float:
        """Add the gradients of the mean KL of a batch, and return it in nats per token."""
        total = 0.0
        for part in passes_of(ids_NT):
            loss = self._model.kl(self._model.float_prediction(part), values, part).sum() / ids_NT.numel()
            loss.backward(inputs=list(learned.values()))  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total
