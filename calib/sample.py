"""Text that the model writes itself: the default calibration data, which needs no data at all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 128


@torch.no_grad()  # not inference_mode: a table that the model builds now and keeps must serve backward later
def sample_sequences(
    model: nn.Module,
    count: int,
    length: int,
    *,
    bos_id: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sequences int64 [count, length] drawn from the model, each begun with BOS.

    A model with `new_cache(batch, length)` and `forward(ids, cache=...)` reads each token once; any other reads its whole
    prefix again for every token, which is slower by the length.

    Args:
        model: maps ids [B, T] to logits [B, T, V].
        temperature: logits are divided by it; 1 draws from the model as it is.
        seed: of the draws.
        progress: called with (tokens done, count · length).
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    ids_NT = torch.full((count, length), bos_id, dtype=torch.int64)
    for lo in range(0, count, BATCH):
        rows = ids_NT[lo : lo + BATCH]
        reader = _reader(model, len(rows), length)
        for t in range(1, length):
            logits_BV = reader(rows[:, :t].to(device)).float().cpu() / temperature
            rows[:, t] = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(1)
            if progress and t % 16 == 0:
                progress(lo * length + t * len(rows), count * length)
    model.train(was_training)
    return ids_NT


def _reader(model: nn.Module, batch: int, length: int) -> Callable[[Tensor], Tensor]:
    """A function from the prefix [B, t] so far to the logits [B, V] of its last position."""
    if not hasattr(model, "new_cache"):
        return lambda prefix: model(prefix)[:, -1]
    new_cache: Any = model.new_cache
    cache = new_cache(batch, length)
    return lambda prefix: model(prefix[:, -1:], cache=cache)[:, -1]
