"""A fixture for all tests of kernels: Triton's interpreter made exact, and memory in which a missed cell shows."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from quantlab.kernels.launch import tl


@pytest.fixture(scope="module", autouse=True)
def exact_interpreter() -> Iterator[None]:
    """New memory is NaN (of integers, the largest), and bfloat16 is as on a GPU: Triton's interpreter truncates to it, and its
    tl.dot multiplies the bits."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(x, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(x, source, target, mode)
        return torch.from_numpy(np.array(x)).bfloat16().view(torch.int16).numpy().view(np.uint16)

    def widened_dot(self, a, b, *rest):
        wide = [interpreter.TensorHandle(widened(t.data), tl.float32) if t.dtype == tl.bfloat16 else t for t in (a, b)]
        return dot(self, *wide, *rest)

    def widened(data):
        return (data.astype(np.uint32) << 16).view(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", rounded)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", widened_dot)
        torch.use_deterministic_algorithms(True)
        assert torch.empty(3).isnan().all()
        yield
        torch.use_deterministic_algorithms(False)
