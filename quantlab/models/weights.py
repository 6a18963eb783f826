"""Which tensors are matrices to quantize and which are kept as they are."""

import re

import torch
from torch import Tensor

MIN_MATRIX_ELEMENTS = 4096
"""Below this a matrix saves less than its scales and table entry cost."""

_CONTROL = re.compile(
    r"(^|[._])(norm\d*|ln_?\w*|bias|gains?|gates?|mix(es)?|scales?|skips?|skip_weights?|lambdas?)(\.weight|\.bias)?$"
)
"""Names of per-channel controls: the challenge keeps these in full precision, and so do we."""

CONTROL_MAX_ROWS = 32
"""A control has a row for each head, layer or stream; a larger matrix of such a name is a layer (a router, an MLP's gate)."""


def is_matrix(name: str, tensor: Tensor) -> bool:
    """True for a floating matrix [O, I] of at least 4096 weights that is no control: few rows and a name like gain or mix."""
    if tensor.ndim != 2 or tensor.numel() < MIN_MATRIX_ELEMENTS or not tensor.is_floating_point():
        return False
    return min(tensor.shape) > CONTROL_MAX_ROWS or not _CONTROL.search(name)


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(matrices as float32, kept tensors), each in order of name. A tensor that is another one's alias counts as its own."""
    matrices = {n: t.to(torch.float32) for n, t in sorted(state.items()) if is_matrix(n, t)}
    kept = {n: t for n, t in sorted(state.items()) if n not in matrices}
    return matrices, kept
