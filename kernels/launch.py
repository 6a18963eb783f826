"""Triton for every kernel: the module itself, the decision whether a kernel runs, and all launch configurations in one table.

Kernels run on CUDA tensors. Elsewhere, and where Triton is not installed, their reference implementations in torch run, and a
line of the log says so once. Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported) runs the kernels themselves on
a CPU, for tests.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheel for this system: the kernels stay plain functions that nobody calls

    class tl:  # type: ignore[no-redef]  # noqa: N801
        """Stand-in for the names that occur in the signatures of kernels."""

        constexpr = Any

    triton = None

__all__ = ["configs", "jit", "on_kernel", "tl", "triton", "tuned"]

_TABLE: dict[str, list[dict[str, int]]] = {
    "dequant_matmul": [
        {"BLOCK_O": 64, "num_warps": 4, "num_stages": 2},
        {"BLOCK_O": 64, "num_warps": 4, "num_stages": 1},
        {"BLOCK_O": 64, "num_warps": 4, "num_stages": 3},
        {"BLOCK_O": 128, "num_warps": 8, "num_stages": 1},
        {"BLOCK_O": 128, "num_warps": 8, "num_stages": 2},
        {"BLOCK_O": 128, "num_warps": 8, "num_stages": 3},
    ],
    "dequant_matmul_finish": [{"BLOCK_O": 64, "CHUNK": 16, "num_warps": 4}],
    "fake_quant": [{"BLOCK_O": 8, "BLOCK_I": 256, "num_warps": 4}],
    "fake_quant_grad": [{"BLOCK_O": 32, "BLOCK_I": 128, "num_warps": 4}],
    "gptq_block": [{"BLOCK_O": 16, "num_warps": 4}],
    "softcap_cross_entropy": [{"BLOCK_V": 4096, "num_warps": 8}],
    "unpack": [{"BLOCK_N": 32, "num_warps": 4}],
    "unpack_outliers": [{"BLOCK_N": 32, "CHUNK": 16, "num_warps": 4}],
}
"""Launch configurations by kernel: meta-parameters, and num_warps and num_stages where Triton's defaults are not used."""


def jit(function: Callable[..., Any]) -> Any:
    """Apply `triton.jit`, or return the function itself where there is no Triton."""
    return function if triton is None else triton.jit(function)


def configs(kernel: str) -> list[dict[str, int]]:
    """Return the launch configurations of a kernel: all, to be timed, or the first under the interpreter, which cannot time."""
    return _TABLE[kernel][:1] if os.environ.get("TRITON_INTERPRET") == "1" else _TABLE[kernel]


def tuned(kernel: str, key: list[str]) -> Callable[[Any], Any]:
    """Return a decorator above `jit` that takes the fastest configuration, timed once for each value of the arguments `key`."""
    if triton is None:
        return lambda function: function
    special = ("num_warps", "num_stages")
    choices = [
        triton.Config({k: v for k, v in c.items() if k not in special}, **{k: v for k, v in c.items() if k in special})
        for c in configs(kernel)
    ]
    return triton.autotune(configs=choices, key=key)  # type: ignore[no-any-return]


def on_kernel(*tensors: Tensor) -> bool:
    """Whether the kernel takes these tensors; if not, the reference implementation does, and the log says why, once."""
    reason = _reason_for_reference(all(tensor.is_cuda for tensor in tensors))
    if reason:
        _say_once(reason)
    return not reason


def _reason_for_reference(is_cuda: bool) -> str:
    if not is_cuda:
        return "tensors are not on a GPU"
    return "" if triton is not None else "Triton is not installed"


@functools.cache
def _say_once(reason: str) -> None:
    logging.getLogger(__name__).info("kernels run as their reference implementations in torch: %s", reason)
