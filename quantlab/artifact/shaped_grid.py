"""Weights of a trellis tensor from what its file stores: the steps of its grid, the coder's context, and the weights.

The step of weight (i, j) is 2**(level/64 + (a[i] + b[j])/4): `level` is the log-step index of the tensor, a and b are the units
of its row and column scales. Powers of two are exact; the 64 fractions between them stand here as float32 significands, rounded
once and for all, so every machine has the same bits.

O: rows, I: columns.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.manifest import TrellisTensor
from quantlab.coding.contexts import TensorContext, classes_of
from quantlab.format_rules import LOG_STEPS, SCALAR_CLASSES, SCALE_UNITS

Array = NDArray[Any]

# round(2**(m/LOG_STEPS) · 2**23) for m = 0 … 63: no machine computes these powers
_SIGNIFICANDS = np.array(
    [
        8388608, 8479954, 8572295, 8665641, 8760003, 8855394, 8951823, 9049301,
        9147842, 9247455, 9348154, 9449948, 9552851, 9656875, 9762032, 9868333,
        9975792, 10084422, 10194234, 10305242, 10417458, 10530897, 10645571, 10761494,
        10878679, 10997140, 11116891, 11237946, 11360319, 11484025, 11609078, 11735492,
        11863283, 11992466, 12123055, 12255067, 12388516, 12523418, 12659789, 12797645,
        12937002, 13077877, 13220286, 13364245, 13509772, 13656884, 13805598, 13955931,
        14107901, 14261526, 14416824, 14573813, 14732511, 14892937, 15055111, 15219050,
        15384775, 15552304, 15721658, 15892855, 16065917, 16240863, 16417715, 16596492,
    ],
    dtype=np.int32,
)  # fmt: skip


def grid_steps(level: int, a_O: NDArray[np.int8], b_I: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the step of every weight, float32 [O, I]: 2**(level/64 + (a[i] + b[j])/4).

    Args:
        level: log-step index of the whole tensor.
        a_O, b_I: units of row and column scales, quarters of a power of two.
    """
    steps: NDArray[np.float32] = step_table(level)[a_O.astype(np.int16)[:, None] + b_I.astype(np.int16)[None] + 256]
    return steps


def step_table(level: int) -> NDArray[np.float32]:
    """Return the steps of a log-step index for every sum of scale units a + b from -256 to 255, float32 [512]."""
    unit_sums = np.arange(-256, 256)
    exponents, fractions = np.divmod(level + LOG_STEPS // SCALE_UNITS * unit_sums, LOG_STEPS)
    with np.errstate(over="ignore", under="ignore"):
        table: NDArray[np.float32] = np.ldexp(_SIGNIFICANDS[fractions].astype(np.float32), (exponents - 23).astype(np.int32))
    return table


def context_of(tensor: TrellisTensor, a_O: Array, b_I: Array, rows_O: Array, columns_I: Array) -> TensorContext:
    """Return what the coder must know of one tensor. All arrays are int8.

    A scale class says how large weights are in steps, and most of that follows from the step itself: the file stores only the
    rest, rows_O and columns_I.
    """
    rows = tensor.classes + rows_O.astype(np.int16) - a_O
    columns = columns_I.astype(np.int16) - b_I
    shape = (tensor.shape[0], tensor.shape[1])
    return TensorContext(
        shape=shape, states=tensor.states, paths=tensor.paths, rows_O=rows, columns_I=columns, tables=tensor.tables
    )


def values_of(codes_OI: Array, context: TensorContext) -> NDArray[np.float32]:
    """Return weights in steps, float32 [O, I]: codes, less ½ where they are on a path of the trellis."""
    values = codes_OI.astype(np.float32)
    if context.states > 1:
        values -= np.float32(0.5) * (classes_of(context) >= SCALAR_CLASSES)
    return values


def weights_of(tensor: TrellisTensor, codes_OI: Array, context: TensorContext, a_O: Array, b_I: Array) -> NDArray[np.float32]:
    """Return weights, float32 [O, I], each by one IEEE multiplication of two exact float32 numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights: NDArray[np.float32] = values_of(codes_OI, context) * grid_steps(tensor.level, a_O, b_I)
    return weights
