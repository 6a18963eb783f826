"""Tuning after rounding: learn the unquantized tensors (norms, gains, scales) so that they make up for the rounded ones.

The loss is the KL divergence of the rounded model's predictions from the float model's. Result and start are compared on
sequences that learning never saw, with the values as the file stores them. What a run can learn is limited by the noise of its
gradients, so by the tokens that it sees: every step has tokens of its own, until all were used.

Several processes share the sequences of every step, and add up their gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantlab.calib.processes import Alone, Processes
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """The task of tuning, which several processes can share (methods.method.Task); the fields are arguments of `tune`."""

    rounded: dict[str, Tensor]
    start: dict[str, Tensor]
    ids_NT: Tensor
    steps: int
    store: Callable[[str, Tensor], Tensor]

    def run(self, model: nn.Module, processes: Processes, progress: Callable[[int, int], None] | None = None) -> Tuned:
        """Do the share of this process, and return what all have found."""
        return tune(model, self.rounded, self.start, self.ids_NT, self.steps, self.store, progress, processes)


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
    processes: Processes | None = None,
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
        processes: those that share the work; all are given the same arguments.
    Raises:
        CheckpointError: rounding changes no prediction, see `RoundedModel.mean_kl`.
    """
    processes = processes or Alone()
    model = RoundedModel(reference, rounded)
    learn_NT, held_NT = held_out(ids_NT)
    model.mean_kl(start, passes_of(ids_NT)[0])  # an error where rounding changes nothing
    learned = {name: value.clone().requires_grad_() for name, value in start.items()}
    _learn_(model, learned, learn_NT, steps, processes, progress)
    after = {name: store(name, value.detach()) for name, value in learned.items()}
    kl_before, kl_after = _compare(model, [start, after], held_NT, processes)
    return Tuned(after if kl_after < kl_before else start, kl_before, kl_after)


def _learn_(
    model: RoundedModel,
    learned: dict[str, Tensor],
    ids_NT: Tensor,
    steps: int,
    processes: Processes,
    progress: Callable[[int, int], None] | None,
) -> None:
    values = list(learned.values())
    groups = [{"params": [v], "lr": 0.0, "size": float(v.detach().square().mean().sqrt())} for v in values]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    count, first_kl = max(1, BATCH_TOKENS // ids_NT.shape[1]), 0.0
    for step in range(steps):
        rows = torch.arange(step * count, (step + 1) * count) % len(ids_NT)
        kl = _descend(model, learned, ids_NT[rows], processes)
        first_kl = kl if step == 0 else first_kl
        rate = min(LARGEST_RATE, RATE * max(first_kl, 0.0) ** 0.5) * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"]
        optimizer.step()
        if progress:
            progress(step + 1, steps)


def _descend(model: RoundedModel, learned: dict[str, Tensor], ids_BT: Tensor, processes: Processes) -> float:
    """Set the gradients of a batch's mean KL, to which each process adds that of its sequences; return the KL."""
    values, kl = list(learned.values()), torch.zeros((), dtype=torch.float64)
    for value in values:
        value.grad = torch.zeros_like(value)
    for part in passes_of(ids_BT[processes.rank :: processes.size]):
        loss = model.kl(model.float_prediction(part), learned, part).sum() / ids_BT.numel()
        loss.backward(inputs=values)  # type: ignore[no-untyped-call]
        kl += loss.detach().cpu()
    for value in values:
        assert value.grad is not None
        _sum_over(processes, value.grad, model)
    return float(_sum_over(processes, kl, model))


def _sum_over(processes: Processes, tensor: Tensor, model: RoundedModel) -> Tensor:
    """Replace a tensor by its sum over all processes, on the model's device; return it."""
    if processes.size > 1:
        tensor.copy_(processes.sum_(model.on_device(tensor))())
    return tensor


@torch.no_grad()
def _compare(
    model: RoundedModel, choices: Sequence[Mapping[str, Tensor]], ids_NT: Tensor, processes: Processes
) -> tuple[float, ...]:
    """Return the mean KL over the same predictions with each choice of values."""
    sums = torch.zeros(len(choices), dtype=torch.float64)
    for part in passes_of(ids_NT[processes.rank :: processes.size]):
        p_BTV = model.float_prediction(part)
        for n, values in enumerate(choices):
            sums[n] += model.kl(p_BTV, values, part).double().sum().cpu()
    return tuple(float(total) / ids_NT.numel() for total in _sum_over(processes, sums, model))


def held_out(ids_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sequences [N, T] that learning sees, and at most HELD_OUT_TOKENS of those that judge it."""
    is_held_N = torch.arange(len(ids_NT)) % HELD_OUT == HELD_OUT - 1
    return ids_NT[~is_held_N], ids_NT[is_held_N][: max(1, HELD_OUT_TOKENS // ids_NT.shape[1])]
