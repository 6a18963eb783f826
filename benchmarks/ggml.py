"""The quantizers of llama.cpp, by its own library libggml-base.so: K-quants and IQ types with an importance matrix.

    cmake -S ggml -B ggml/build && cmake --build ggml/build --target ggml-base     # github.com/ggml-org/ggml

The Python package gguf reads what the library wrote.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from torch import Tensor

SIMPLE_TYPES = ("Q4_0", "Q5_0", "Q8_0")
"""Types that the Python package writes by itself."""
LIBRARY_TYPES = ("Q2_K", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K")
SUPER_BLOCK = 256
FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL"}
FALLBACK |= {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Type that llama.cpp takes where rows are no multiple of 256 long (src/llama-quant.cpp)."""

Matrix = Callable[[str, Tensor], tuple[Tensor, list[bytes]]]
"""Of a name and a matrix float32 [O, I]: the matrix that a reader gets, and the arrays that are stored for it."""


def simple_type(name: str) -> Matrix:
    """Return the quantizer of a type that the package writes."""
    kind = GGMLQuantizationType[name]

    def quantizer(_: str, w_OI: Tensor) -> tuple[Tensor, list[bytes]]:
        blocks = quantize(w_OI.numpy(), kind)
        return torch.from_numpy(dequantize(blocks, kind).copy()), [blocks.tobytes()]

    return quantizer


def library_type(library: Path, name: str, importance: dict[str, NDArray[np.float32]]) -> Matrix:
    """Return the quantizer of a type that the library writes.

    Args:
        importance: mean square of each input by matrix, float32 [I]: llama.cpp's importance matrix.
    """
    lib = ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t

    def quantizer(matrix: str, w_OI: Tensor) -> tuple[Tensor, list[bytes]]:
        rows, columns = w_OI.shape
        kind = GGMLQuantizationType[name if columns % SUPER_BLOCK == 0 else FALLBACK[name]]
        block, size = GGML_QUANT_SIZES[kind]
        values, out = np.ascontiguousarray(w_OI.numpy(), np.float32), np.empty((rows, columns // block * size), np.uint8)
        weights = importance.get(matrix)
        pointer = weights.ctypes.data_as(ctypes.c_void_p) if weights is not None else None
        shape = [ctypes.c_int64(n) for n in (0, rows, columns)]
        written = lib.ggml_quantize_chunk(
            int(kind), values.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), *shape, pointer
        )
        assert written == out.nbytes, (name, matrix, written, out.nbytes)
        return torch.from_numpy(dequantize(out, kind).copy()), [out.tobytes()]

    return quantizer
