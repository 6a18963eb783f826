"""Banks of the challenge's later records: all layers' matrices of a kind in one tensor, split into the baseline's matrices.

Letters: L layers, O rows, I columns.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantlab.errors import CheckpointError

BANKS = {
    "qo_bank": ("attn.c_q.weight", "attn.proj.weight"),
    "kv_bank": ("attn.c_k.weight", "attn.c_v.weight"),
    "mlp_up_bank": ("mlp.fc.weight",),
    "mlp_down_bank": ("mlp.proj.weight",),
}
"""Names, within a block, of a bank's matrices: a bank [2 L, O, I] has those of the first name, then those of the second."""
RENAMED = {"smear_gate.weight": "smear.gate.weight", "smear_lambda": "smear.scale"}
"""Names of a banked checkpoint and of the built-in model for the same tensor."""


def is_banked(state: Mapping[str, Tensor]) -> bool:
    """Return whether any tensor is a bank."""
    return bool(BANKS.keys() & state.keys())


def without_banks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with the baseline's names: banks as matrices of their layers, which share the banks' memory.

    Raises:
        CheckpointError: a bank is missing, is not floating [n, O, I], has another number of layers, or one of its matrices is
            there twice.
    """
    out = {RENAMED.get(name, name): tensor for name, tensor in state.items() if name not in BANKS}
    layers = _layers(state)
    for bank, names in BANKS.items():
        for at, matrix in enumerate(state[bank]):
            name = f"blocks.{at % layers}.{names[at // layers]}"
            if name in out:
                raise CheckpointError(f"no model matches: {name} is there beside {bank}")
            out[name] = matrix
    return out


def _layers(state: Mapping[str, Tensor]) -> int:
    """Return the number of layers, the same for all banks."""
    counts = {}
    for bank, names in BANKS.items():
        if bank not in state:
            raise CheckpointError(
                f"no model matches: {bank} is missing beside {', '.join(sorted(BANKS.keys() & state.keys()))}"
            )
        tensor = state[bank]
        if tensor.ndim != 3 or not torch.is_floating_point(tensor):
            raise CheckpointError(
                f"no model matches: {bank} is {tensor.dtype} {list(tensor.shape)}, expected floating [n, O, I]"
            )
        layers, rest = divmod(len(tensor), len(names))
        if rest or not layers:
            raise CheckpointError(f"no model matches: {bank} has {len(tensor)} matrices, expected {len(names)} for each layer")
        counts[bank] = layers
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{bank} of {layers}" for bank, layers in counts.items())
        raise CheckpointError(f"no model matches: the banks have different numbers of layers: {listed}")
    return next(iter(counts.values()))
