"""From an artifact to a model that computes with its codes, which are never decoded to floats as a whole.

O: rows, I: columns.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.container import Section
from quantlab.artifact.decode import decode_kept, decode_planes, decode_row_grids
from quantlab.artifact.manifest import Manifest, RawTensor, TrellisTensor
from quantlab.artifact.steps import LEVELS, SHAPES
from quantlab.coding import rans, rans_device
from quantlab.coding.classes import Plane
from quantlab.kernels.packed import Packed, pack
from quantlab.trainer.from_state_dict import check_state_dict
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig
from quantlab.trainer.packed import pack_modules_

Array = NDArray[Any]


def packed_gpt(manifest: Manifest, sections: list[Section], device: torch.device) -> GPT:
    """The built-in model in eval mode on `device`, its matrices packed; the other tensors are float32.

    Codes are those of the file; weights differ from decoded ones by at most 2 units in the last place of float32.

    Raises:
        FormatError: damaged sections.
        CheckpointError: the tensors are not those of the manifest's model.
    """
    config = GPTConfig.from_dict(manifest.model)
    check_state_dict(_outline(manifest), config)
    matrices = dict(packed_matrices(manifest, sections, device))
    model = GPT(config)
    pack_modules_(model, matrices)
    kept = {name: torch.from_numpy(array).float() for name, array in decode_kept(manifest, sections).items()}
    model.load_state_dict({name: kept[name] for name in model.state_dict()})
    return model.eval().to(device)


def _outline(manifest: Manifest) -> dict[str, Tensor]:
    """Tensors without memory, of the shapes and kinds that decoded ones have."""
    dtypes = {t.name: getattr(torch, t.dtype) if isinstance(t, RawTensor) else torch.float32 for t in manifest.tensors}
    return {t.name: torch.empty(t.shape, dtype=dtypes[t.name], device="meta") for t in manifest.tensors}


def packed_matrices(manifest: Manifest, sections: list[Section], device: torch.device) -> Iterator[tuple[str, Packed]]:
    """Each quantized matrix under its name, on `device`; a GPU also reads the code stream."""
    decode = rans.decode if device.type == "cpu" else partial(rans_device.decode, device=device)
    for tensor, codes_OI, plane, a_O, b_I in decode_planes(manifest, sections, decode):
        codes = codes_OI if isinstance(codes_OI, Tensor) else torch.from_numpy(codes_OI)
        yield tensor.name, _on_trellis(tensor, codes.to(device), plane, a_O, b_I)
    for grid, codes_OI, step_O in decode_row_grids(manifest, sections):
        ones_I = torch.ones(grid.shape[1], device=device)
        yield grid.name, pack(torch.from_numpy(codes_OI).to(device), torch.from_numpy(step_O).to(device), ones_I)


def _on_trellis(tensor: TrellisTensor, codes_OI: Tensor, plane: Plane, a_O: Array, b_I: Array) -> Packed:
    """step[i, j] = 2**((level + 16 a[i]) / 64) · 2**(b[j] / 4)."""
    device = codes_OI.device
    row_O = np.exp2((tensor.level + LEVELS // SHAPES * a_O.astype(np.float64)) / LEVELS).astype(np.float32)
    column_I = np.exp2(b_I.astype(np.float64) / SHAPES).astype(np.float32)
    row, column, row_class, column_class = (
        torch.from_numpy(side).to(device) for side in (row_O, column_I, plane.rows_O, plane.columns_I)
    )
    if plane.states == 1:
        return pack(codes_OI, row, column)
    return pack(codes_OI, row, column, row_class_O=row_class, column_class_I=column_class)
