"""The order in which arrays are laid out as bytes, chosen for the codecs that follow."""

import numpy as np
from numpy.typing import NDArray


def codes_to_bytes(q_OI: NDArray[np.int8]) -> bytes:
    """Codes [O, I] as one byte each, column after column.

    Codes of one input channel share a scale of variation that neighbours in a row do not, so a codec's model fits better.
    """
    return np.ascontiguousarray(q_OI.T).tobytes()


def bytes_to_codes(raw: bytes, rows: int, columns: int) -> NDArray[np.int8]:
    """Inverse of `codes_to_bytes`: int8 [rows, columns] in row-major memory."""
    return np.ascontiguousarray(np.frombuffer(raw, np.int8).reshape(columns, rows).T)


def to_byte_planes(values: NDArray[np.generic]) -> bytes:
    """All lowest bytes, then all next ones, and so on (little-endian): exponents lie together, mantissas too."""
    flat = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).reshape(-1)
    return np.ascontiguousarray(flat.view(np.uint8).reshape(-1, values.dtype.itemsize).T).tobytes()


def from_byte_planes(raw: bytes, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Inverse of `to_byte_planes`: a flat array of `dtype`; len(raw) must be a multiple of its size."""
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype.newbyteorder("<")).astype(dtype, copy=False)
