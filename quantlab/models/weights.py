"""Tell the matrices of a state dict that are quantized from the tensors that stay unquantized."""

import re

import torch
from torch import Tensor

MIN_MATRIX_ELEMENTS = 4096
"""A smaller matrix would save less than its scales and its entry in the manifest cost."""

_CONTROL = re.compile(
    r"(^|[._])(norm\d*|ln_?\w*|bias|gains?|gates?|mix(es)?|scales?|skips?|skip_weights?|lambdas?|A_log)(\.weight|\.bias)?$"
)
"""Names of per-channel controls, which the challenge stores in full precision; quantlab does the same."""

CONTROL_MAX_ROWS = 32
"""A control has a row for each head, layer or stream. A larger matrix of such a name is a layer (a router, an MLP's gate)."""


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a floating matrix [O, I] of at least 4,096 weights, and no control by its rows and name."""
    if tensor.ndim != 2 or tensor.numel() < MIN_MATRIX_ELEMENTS or not tensor.is_floating_point():
        return False
    return min(tensor.shape) > CONTROL_MAX_ROWS or not _CONTROL.search(name)


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (matrices as float32, unquantized tensors), each in order of name. Tied tensors count once for each name."""
    matrices = {n: t.to(torch.float32) for n, t in sorted(state.items()) if is_matrix(n, t)}
    unquantized = {n: t for n, t in sorted(state.items()) if n not in matrices}
    return matrices, unquantized
