"""How often each code occurs in an artifact."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.artifact.container import Section
from quantlab.artifact.decode import decode_planes, decode_row_grids
from quantlab.artifact.manifest import Manifest

CODE_LIMIT = 64
"""Codes beyond it are counted together with it."""


def code_counts(manifest: Manifest, sections: list[Section]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Name of each quantized tensor, and how many of its codes are -CODE_LIMIT to CODE_LIMIT, int64 [2 · CODE_LIMIT + 1].

    Raises:
        FormatError: damaged streams, or codes beyond their width.
    """
    for grid, codes_OI, _ in decode_row_grids(manifest, sections):
        yield grid.name, _tally(codes_OI)
    for trellis, codes_OI, *_ in decode_planes(manifest, sections):
        yield trellis.name, _tally(codes_OI)


def _tally(codes_OI: NDArray[Any]) -> NDArray[np.int64]:
    clipped = codes_OI.clip(-CODE_LIMIT, CODE_LIMIT).astype(np.int64)
    tally: NDArray[np.int64] = np.bincount((clipped + CODE_LIMIT).ravel(), minlength=2 * CODE_LIMIT + 1)
    return tally
