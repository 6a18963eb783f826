"""Blocks of a model whose activations are computed again during backward instead of kept (Chen et al. 2016, arXiv 1604.06174).

Of each block, memory holds the input alone; the block that runs backward has its activations besides. Values and gradients are
the same to the last bit, since the same operations run again. A block with several inputs that have gradients is left as it is.
"""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the parts of the list of modules that has the most parameters: the layers of a transformer, for example.

    Lists of single layers do not count: of these there is nothing to compute again.
    """
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and all(map(_has_parts, part))]
    sizes = [sum(p.numel() for p in part.parameters()) for part in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


@contextmanager
def recomputed(model: nn.Module, watched: Set[int]) -> Iterator[None]:
    """Keep the inputs of the model's blocks alone while the block runs. A model without blocks runs as it does.

    Blocks before the first that holds a watched parameter run without gradients.

    Args:
        watched: ids of the parameters whose gradients are wanted.
    """
    blocks = blocks_of(model)
    try:
        for block in blocks:
            is_watched = any(id(parameter) in watched for parameter in block.parameters())
            block.forward = partial(_forward, block.forward, is_watched)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)  # what the class has shows again


def _forward(plain: Callable[..., Any], is_watched: bool, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return plain(*args, **kwargs)
    values, spec = tree_flatten((args, kwargs))
    with_gradients = sum(isinstance(value, Tensor) and value.requires_grad for value in values)
    if with_gradients > 1:  # what several blocks share would have its gradients added up in another order
        return plain(*args, **kwargs)
    if not with_gradients:
        first = next((n for n, value in enumerate(values) if isinstance(value, Tensor) and value.is_floating_point()), None)
        if not is_watched or first is None:
            with torch.no_grad():
                return plain(*args, **kwargs)
        values[first] = values[first].detach().requires_grad_()  # gradients begin here

    def run(*values: Any) -> Any:
        args, kwargs = tree_unflatten(values, spec)
        return plain(*args, **kwargs)

    return checkpoint(run, *values, use_reentrant=True, preserve_rng_state=False)
