"""How the coder's context and the weights of a trellis tensor follow from what its file stores."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.manifest import TrellisTensor
from quantlab.artifact.steps import shaped_steps
from quantlab.coding.classes import SCALAR_CLASSES, Plane, classes_of

Array = NDArray[Any]


def plane_of(tensor: TrellisTensor, a_O: Array, b_I: Array, rows_O: Array, columns_I: Array) -> Plane:
    """What the coder must know of one tensor. All arrays are int8.

    A class says how large weights are in steps, and most of that is the step itself: stored is only what it does not tell.
    """
    rows = tensor.classes + rows_O.astype(np.int16) - a_O
    columns = columns_I.astype(np.int16) - b_I
    shape = (tensor.shape[0], tensor.shape[1])
    return Plane(shape=shape, states=tensor.states, rows_O=rows, columns_I=columns, tables=tensor.tables)


def values_of(codes_OI: Array, plane: Plane) -> NDArray[np.float32]:
    """Weights in steps, float32 [O, I]: codes, less ½ where they are on a trellis's path."""
    values = codes_OI.astype(np.float32)
    if plane.states > 1:
        values -= np.float32(0.5) * (classes_of(plane) >= SCALAR_CLASSES)
    return values


def weights_of(tensor: TrellisTensor, codes_OI: Array, plane: Plane, a_O: Array, b_I: Array) -> NDArray[np.float32]:
    """Weights, float32 [O, I]: one IEEE multiplication of two exact float32 numbers each."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights: NDArray[np.float32] = values_of(codes_OI, plane) * shaped_steps(tensor.level, a_O, b_I)
    return weights
