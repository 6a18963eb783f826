"""What a user would pick instead of quantlab, by each peer's own code: state dict in, what its reader gets and all bytes out.

Every peer quantizes the matrices that quantlab would; the other tensors are float16 (NNCodec codes them itself).
"""

import contextlib
import importlib.abc
import importlib.machinery
import io
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor

from quantlab.models.weights import split_state

NNCODEC_QP = (-20, -26, -32, -38)
TORCHAO_BITS = (3, 4, 6, 8)
HQQ_BITS = (2, 3, 4, 8)
GROUP = 64

State = dict[str, Tensor]
Run = Callable[[State], tuple[State, bytes]]
Matrix = Callable[[str, Tensor], tuple[Tensor, list[bytes]]]
"""Of a name and a matrix float32 [O, I]: the matrix that a reader gets, and the arrays that are stored for it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer at one setting."""

    family: str
    setting: str
    run: Run


def peers(library: Path | None, importance: dict[str, Any]) -> Iterator[Peer]:
    """Yield every peer that is installed; name the others on stderr.

    Args:
        library: libggml-base.so, for the K-quants of llama.cpp.
        importance: mean square of each input by matrix, float32 [I].
    """
    yield Peer("int8 by row", "", partial(by_matrix, row_int8))
    makers: dict[str, Callable[[], Iterator[Peer]]] = {
        "gguf": partial(_gguf, library, importance),
        "hqq": lambda: (Peer("HQQ", f"{bits} bit", partial(by_matrix, hqq(bits))) for bits in HQQ_BITS),
        "torchao": lambda: (Peer("torchao int", f"{bits} bit", partial(by_matrix, torchao(bits))) for bits in TORCHAO_BITS),
        "nncodec": lambda: (Peer("NNCodec", f"qp {qp}", nncodec(qp)) for qp in NNCODEC_QP),
    }
    for package, make in makers.items():
        try:
            yield from make()
        except ImportError as error:
            print(f"{package} is left out: {error}", file=sys.stderr)


def by_matrix(quantizer: Matrix, state: State) -> tuple[State, bytes]:
    """Return the state dict that a reader gets, and all stored bytes: matrices by a peer, other tensors in float16."""
    split = split_state(state)
    found, stored = {}, []
    for name, w_OI in split.matrices.items():
        found[name], parts = quantizer(name, w_OI.float().contiguous())
        stored += parts
    for name, tensor in split.unquantized.items():
        found[name] = tensor.half().float()
        stored.append(tensor.half().numpy().tobytes())
    return found, b"".join(stored)


def row_int8(_: str, w_OI: Tensor) -> tuple[Tensor, list[bytes]]:
    """One scale a row, codes to ±127: what most tools do for 8 bits."""
    scale_O = (w_OI.abs().amax(1) / 127).clamp_min(1e-8).half()
    q_OI = (w_OI / scale_O.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return q_OI.float() * scale_O.float()[:, None], [q_OI.numpy().tobytes(), scale_O.numpy().tobytes()]


def _gguf(library: Path | None, importance: dict[str, Any]) -> Iterator[Peer]:
    from ggml import LIBRARY_TYPES, SIMPLE_TYPES, library_type, simple_type

    for name in SIMPLE_TYPES:
        yield Peer("GGUF", name, partial(by_matrix, simple_type(name)))
    if library is None:
        print("GGUF's K-quants are left out: the package gguf cannot write them; --ggml names libggml-base.so", file=sys.stderr)
        return
    for name in LIBRARY_TYPES:
        yield Peer("GGUF, importance matrix", name, partial(by_matrix, library_type(library, name, importance)))


def hqq(bits: int) -> Matrix:
    """Return half-quadratic quantization with groups of 64, its scales and zero points in float16."""
    from hqq.core.quantize import Quantizer

    def quantizer(_: str, w_OI: Tensor) -> tuple[Tensor, list[bytes]]:
        q, meta = Quantizer.quantize(
            w_OI, nbits=bits, group_size=GROUP, axis=1, device="cpu", compute_dtype=torch.float32, bitpack=True
        )
        meta |= {"scale": meta["scale"].half().float(), "zero": meta["zero"].half().float()}
        parts = [q, meta["scale"].half(), meta["zero"].half()]
        return Quantizer.dequantize(q, meta).float(), [part.contiguous().numpy().tobytes() for part in parts]

    return quantizer


def torchao(bits: int) -> Matrix:
    """Return torchao's weight-only integers with groups of 64 and scales chosen by HQQ, packed to their bits."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerGroup(GROUP),
        intx_choose_qparams_algorithm="hqq_scale_only",
    )

    def quantizer(_: str, w_OI: Tensor) -> tuple[Tensor, list[bytes]]:
        layer = torch.nn.Linear(w_OI.shape[1], w_OI.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(w_OI, requires_grad=False)
        quantize_(layer, config)
        weight: Any = layer.weight
        weight.scale = weight.scale.half().float()  # stored so
        planes = np.unpackbits(weight.qdata.numpy().view(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        return weight.dequantize().float(), [np.packbits(planes).tobytes(), weight.scale.half().numpy().tobytes()]

    return quantizer


def nncodec(qp: int) -> Run:
    """Return ISO 15938-17 on the whole state dict, with dependent quantization; its stream is entropy coded."""
    with _stand_ins():
        from nncodec import nnc

    def run(state: State) -> tuple[State, bytes]:
        arrays = {name: tensor.float().numpy() for name, tensor in state.items()}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = str(Path(folder, "m.nnc"))
            stream = nnc.compress(arrays, bitstream_path=path, qp=qp, use_dq=True, return_bitstream=True, verbose=False)
            back = nnc.decompress(path)
        return {name: torch.from_numpy(np.array(back[name])).view_as(state[name]) for name in state}, bytes(stream)

    return run


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages that are not installed and that a peer imports for data sets alone; they can be imported, no more."""

    NAMES = ("torchvision", "pandas", "cv2", "sklearn", "h5py", "flwr", "wandb", "timm")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = name.partition(".")[0] in self.NAMES
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return MagicMock(__path__=[], __spec__=spec, __name__=spec.name)  # type: ignore[return-value]

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: there is no code."""


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Let packages that are missing be imported inside the block; what is installed is found first."""
    finder, before = _Absent(), set(sys.modules)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in _Absent.NAMES and isinstance(sys.modules[name], MagicMock):
                del sys.modules[name]
