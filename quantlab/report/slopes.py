"""What one more byte would save: the slope of a tensor's measured rate-distortion curve at the point that was chosen.

A budget is spent best where all slopes are equal: then no byte would save more in another tensor.
"""

import math
from collections.abc import Sequence
from statistics import median

from quantlab.report.entry import TensorFacts

LEAST_APART = 0.03
"""Points closer to the chosen one, as a share of its bytes, are passed over: two roundings of one grid differ by 1 to 2 %."""


def slope_of(tensor: TensorFacts) -> float | None:
    """Nats per token that one more byte would save: log(distortion) is linear in bytes between the nearest measured points.

    None where the search measured nothing far enough from the chosen point, or a larger rounding cost more.
    """
    if not tensor.bytes or not tensor.distortion or tensor.distortion <= 0:
        return None
    size, cost = tensor.bytes, tensor.distortion
    below = max((p for p in tensor.points if p[0] <= (1 - LEAST_APART) * size and p[1] > 0), default=(size, cost))
    above = min((p for p in tensor.points if p[0] >= (1 + LEAST_APART) * size and p[1] > 0), default=(size, cost))
    if below[0] >= above[0] or below[1] <= above[1]:
        return None
    return cost * math.log(below[1] / above[1]) / (above[0] - below[0])


def chosen_slope(tensors: Sequence[TensorFacts]) -> float | None:
    """The median of the tensors' slopes: about the one slope that the search ended at; None where none is known."""
    slopes = [slope for t in tensors if (slope := slope_of(t)) is not None]
    return median(slopes) if slopes else None
