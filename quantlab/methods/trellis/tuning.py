"""Tuning after rounding: learn the unquantized tensors (norms, gains, scales) so that they make up for the rounded ones.

The loss is the KL divergence of the rounded model's predictions from the float model's. Result and start are compared on
sequences that learning never saw, with the values as the file stores them.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_TOKENS = 4096
"""Tokens in a step of learning."""
PASS_TOKENS = 2048
"""Tokens that the models see at a time: two models and their logits take memory."""
RATE = 3e-3
"""Learning rate of Adam, in root mean squares of each tensor."""
WARMUP = 5
"""Steps in which the learning rate rises to its full value."""
HELD_OUT = 8
"""One sequence in this many is held out."""


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
        reference: the float model, in eval mode.
        rounded: rounded matrices by name of the parameter; they stay as they are.
        start: parameters to learn by name, as the file stores them.
        ids_NT: sequences, int64 [N, T].
        steps: batches.
        store: returns the value of a named tensor after it is written and read.
        progress: called with (steps done, steps).
    """
    model = copy.deepcopy(reference).requires_grad_(False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _set(parameters, rounded | start)
    held = torch.arange(len(ids_NT)) % HELD_OUT == HELD_OUT - 1
    before = _divergence(reference, model, ids_NT[held])
    learned = [parameters[name] for name in start]
    for parameter in learned:
        parameter.requires_grad_()
    _learn_(reference, model, learned, ids_NT[~held], steps, progress)
    after_values = {name: store(name, parameters[name].detach()) for name in start}
    _set(parameters, after_values)
    after = _divergence(reference, model, ids_NT[held])
    return Tuned(after_values if after < before else start, before, after)


def _learn_(
    reference: nn.Module,
    model: nn.Module,
    learned: Sequence[nn.Parameter],
    ids_NT: Tensor,
    steps: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    groups = [{"params": [p], "lr": 0.0, "size": float(p.detach().square().mean().sqrt())} for p in learned]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    count = max(1, BATCH_TOKENS // ids_NT.shape[1])
    for step in range(steps):
        rows = torch.arange(step * count, (step + 1) * count) % len(ids_NT)
        rate = RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"]
        optimizer.zero_grad()
        for part in _passes(ids_NT[rows]):
            (_kl(reference, model, part).sum() / ids_NT[rows].numel()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress:
            progress(step + 1, steps)


def _set(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _kl(reference: nn.Module, model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Return KL(reference ‖ model) of every prediction in nats, [B, T]; the ids follow the models' device."""
    ids_BT = ids_BT.to(next(reference.parameters()).device)
    with torch.no_grad():
        p = reference(ids_BT).float().log_softmax(-1)
    return F.kl_div(model(ids_BT).float().log_softmax(-1), p, reduction="none", log_target=True).sum(-1)


@torch.no_grad()
def _divergence(reference: nn.Module, model: nn.Module, ids_NT: Tensor) -> float:
    """Return the mean KL over all predictions."""
    return float(torch.cat([_kl(reference, model, part).double() for part in _passes(ids_NT)]).mean())


def _passes(ids_NT: Tensor) -> tuple[Tensor, ...]:
    """Split the sequences into parts of about PASS_TOKENS tokens."""
    return torch.split(ids_NT, max(1, PASS_TOKENS // ids_NT.shape[1]))
