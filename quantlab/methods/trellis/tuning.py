"""Tuning after rounding: learn the unquantized tensors (norms, gains, scales) so that they make up for the rounded ones.

The loss is the KL divergence of the rounded model's predictions from the float model's. Result and start are compared on
sequences that learning never saw, with the values as the file stores them. What a run can learn is limited by the noise of its
gradients, so by the tokens that it sees: every step has tokens of its own, until all were used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantlab.methods.rounded_model import RoundedModel, passes_of

BATCH_TOKENS = 2048
"""Tokens in a step of learning."""
RATE = 0.02
"""Learning rate of Adam at a KL of 1 nat a token, in root mean squares of each tensor. It follows the square root of the KL, as
the errors of rounding do; a rate that does not learns noise where errors are small."""
LARGEST_RATE = 0.01
"""Most that the learning rate may be, where rounding has spoilt the model."""
WARMUP = 2
"""Steps in which the learning rate rises to its full value."""
HELD_OUT = 8
"""One sequence in this many is held out of learning."""
HELD_OUT_TOKENS = 4096
"""Most held-out tokens that are compared, but at least one sequence."""
STEP_PASSES = 3.2
"""Forward passes that a step takes the time of: the float model's, and the rounded one's forward and backward."""
COMPARE_PASSES = 3
"""Forward passes of a comparison: the float model, and the rounded one with both values."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """Unquantized tensors after learning, and their KL before and after."""

    tensors: dict[str, Tensor]
    """Values as the file stores them; those of the start where learning did not help."""
    kl_before: float
    """Nats per token on held-out sequences."""
    kl_after: float
    """Nats per token on held-out sequences after learning."""

    @property
    def is_better(self) -> bool:
        """Whether learning lowered the KL."""
        return self.kl_after < self.kl_before


def token_passes(steps: int) -> float:
    """Return how many tokens the model could read in the time that `steps` batches of tuning take."""
    return STEP_PASSES * steps * BATCH_TOKENS + COMPARE_PASSES * HELD_OUT_TOKENS


def tune(
    reference: nn.Module,
    rounded: dict[str, Tensor],
    start: dict[str, Tensor],
    ids_NT: Tensor,
    steps: int,
    store: Callable[[str, Tensor], Tensor],
    progress: Callable[[int, int], None] | None = None,
) -> Tuned:
    """Learn the parameters in `start` for `steps` batches, and return them if they are better than the start.

    Args:
        reference: the float model, in eval mode; it is left as it is.
        rounded: rounded matrices by name of the parameter; they stay as they are.
        start: parameters to learn by name, as the file stores them.
        ids_NT: sequences, int64 [N, T].
        steps: batches.
        store: returns the value of a named tensor after it is written and read.
        progress: called with (steps done, steps).
    Raises:
        CheckpointError: rounding changes no prediction, see `RoundedModel.mean_kl`.
    """
    model = RoundedModel(reference, rounded)
    learn_NT, held_NT = held_out(ids_NT)
    model.mean_kl(start, passes_of(ids_NT)[0])  # an error where rounding changes nothing
    learned = {name: value.clone().requires_grad_() for name, value in start.items()}
    _learn_(model, learned, learn_NT, steps, progress)
    after = {name: store(name, value.detach()) for name, value in learned.items()}
    kl_before, kl_after = _compare(model, [start, after], held_NT)
    return Tuned(after if kl_after < kl_before else start, kl_before, kl_after)


def _learn_(
    model: RoundedModel,
    learned: dict[str, Tensor],
    ids_NT: Tensor,
    steps: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    values = list(learned.values())
    groups = [{"params": [v], "lr": 0.0, "size": float(v.detach().square().mean().sqrt())} for v in values]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    count, first_kl = max(1, BATCH_TOKENS // ids_NT.shape[1]), 0.0
    for step in range(steps):
        rows = torch.arange(step * count, (step + 1) * count) % len(ids_NT)
        optimizer.zero_grad()
        for part in passes_of(ids_NT[rows]):
            loss = model.kl(model.float_prediction(part), learned, part).sum() / ids_NT[rows].numel()
            loss.backward(inputs=values)  # type: ignore[no-untyped-call]
            first_kl += float(loss.detach()) * (step == 0)
        rate = min(LARGEST_RATE, RATE * max(first_kl, 0.0) ** 0.5) * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"]
        optimizer.step()
        if progress:
            progress(step + 1, steps)


@torch.no_grad()
def _compare(model: RoundedModel, choices: Sequence[Mapping[str, Tensor]], ids_NT: Tensor) -> tuple[float, ...]:
    """Return the mean KL over the same predictions with each choice of values."""
    sums = [0.0] * len(choices)
    for part in passes_of(ids_NT):
        p_BTV = model.float_prediction(part)
        for n, values in enumerate(choices):
            sums[n] += float(model.kl(p_BTV, values, part).double().sum())
    return tuple(total / ids_NT.numel() for total in sums)


def held_out(ids_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sequences [N, T] that learning sees, and at most HELD_OUT_TOKENS of those that judge it."""
    is_held_N = torch.arange(len(ids_NT)) % HELD_OUT == HELD_OUT - 1
    return ids_NT[~is_held_N], ids_NT[is_held_N][: max(1, HELD_OUT_TOKENS // ids_NT.shape[1])]
