"""Self-check of every kernel on small inputs, compared with float64 or with its reference implementation on a CPU.

`quantlab doctor` and the benchmark show the results.

Legend: O rows (outputs), I columns (inputs), M rows of x, N predictions, V vocabulary, B columns of a block.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quantlab.format_rules import LANE_GROUP, LOWEST, PATHS, SCALAR_CLASSES, TOTAL
from quantlab.kernels.dequant_matmul import dequant_matmul, input_gradient
from quantlab.kernels.fake_quant import fake_quant, fake_quant_ref
from quantlab.kernels.gptq_block import gptq_block, gptq_block_ref
from quantlab.kernels.launch import on_kernel
from quantlab.kernels.packed import Packed, pack
from quantlab.kernels.rans_decode import ENTRY_FREQUENCY, ENTRY_SYMBOL, rans_decode, rans_decode_ref
from quantlab.kernels.softcap_cross_entropy import softcap_cross_entropy
from quantlab.kernels.trellis_codes import trellis_codes, trellis_codes_ref
from quantlab.kernels.unpack_weights import unpack

ROUNDINGS = 2.0**-22  # float32: both scales and their product are rounded
SUMS = 1e-5  # float32 sums of some hundred terms, relative to the largest result
BF16 = 2.0**-7  # one rounding of the result, relative to the largest, and the roundings of its factors
TIES = 0.005  # share of codes that a sum in another order moves over a tie


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one kernel on one device."""

    kernel: str
    runs_as: str
    """"kernel", or "reference" where there is no GPU and the reference implementation runs."""
    against: str
    """Name of the values that the result is compared with: "float64", "reference" or "reference, bit for bit"."""
    error: float
    """Largest relative difference, or the share of integers that differ."""
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the error is at most the allowed one."""
        return self.error <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"ok": self.ok}


def check_kernels(device: torch.device) -> list[Check]:
    """Return the results of all kernels on `device`; on a CPU the reference implementations run."""
    runs_as = "kernel" if on_kernel(torch.empty(0, device=device)) else "reference"
    checks: list[tuple[str, str, Callable[[torch.device], float], float]] = [
        ("unpack", "float64", _unpack, ROUNDINGS),
        ("dequant_matmul", "float64", _matmul, SUMS),
        ("dequant_matmul bf16", "float64", _matmul_bf16, BF16),
        ("input_gradient", "float64", _input_gradient, SUMS),
        ("fake_quant", "reference, bit for bit", _fake_quant, 0.0),
        ("softcap_cross_entropy", "float64", _cross_entropy, SUMS),
        ("rans_decode", "reference", _rans_decode, 0.0),
        ("trellis_codes", "reference", _trellis_codes, 0.0),
        ("gptq_block", "float64", _gptq_block, TIES),
    ]
    return [Check(name, runs_as, against, measure(device), allowed) for name, against, measure, allowed in checks]


def sample(O: int, I: int, bits: int, device: torch.device) -> tuple[Packed, Tensor]:
    """Return a packed matrix with halves and a few outliers, and its weights in float64."""
    g = torch.Generator().manual_seed(O + I + bits)
    codes = (torch.randn(O, I, generator=g) * 2 ** (bits - 3)).round().to(torch.int16)
    codes[O // 2, I // 2] = 2000
    row, column = torch.rand(O, generator=g) + 0.5, torch.rand(I, generator=g) + 0.5
    rows, columns = (torch.randint(0, 8, (n,), generator=g, dtype=torch.int16) for n in (O, I))
    weight = (codes.double() - 0.5 * (rows[:, None] + columns >= SCALAR_CLASSES)) * row.double()[:, None] * column.double()
    packed = pack(codes, row, column, row_class_O=rows, column_class_I=columns, bits=bits)
    return packed.to(device), weight


def _unpack(device: torch.device) -> float:
    packed, weight = sample(37, 210, 5, device)
    return float(((unpack(packed).double().cpu() - weight).abs() / weight.abs().clamp(min=1e-30)).max())


def _matmul(device: torch.device) -> float:
    packed, weight = sample(130, 520, 6, device)
    x = torch.randn(5, 520, generator=torch.Generator().manual_seed(1))
    return _relative(dequant_matmul(x.to(device), packed), x.double() @ weight.T)


def _matmul_bf16(device: torch.device) -> float:
    packed, weight = sample(130, 520, 6, device)
    x = torch.randn(5, 520, generator=torch.Generator().manual_seed(1)).bfloat16()
    return _relative(dequant_matmul(x.to(device), packed), x.double() @ weight.T)


def _input_gradient(device: torch.device) -> float:
    packed, weight = sample(130, 520, 6, device)
    grad = torch.randn(5, 130, generator=torch.Generator().manual_seed(1))
    return _relative(input_gradient(grad.to(device), packed), grad.double() @ weight)


def _fake_quant(device: torch.device) -> float:
    g = torch.Generator().manual_seed(2)
    w, row, column = torch.randn(65, 130, generator=g), torch.rand(65, generator=g), torch.rand(130, generator=g)
    return _differing(fake_quant(w.to(device), row.to(device), column.to(device), 7), fake_quant_ref(w, row, column, 7))


def _cross_entropy(device: torch.device) -> float:
    g = torch.Generator().manual_seed(3)
    logits, targets = 20 * torch.randn(9, 1023, generator=g), torch.randint(0, 1023, (9,), generator=g)
    exact = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(30 * torch.tanh(exact / 30), targets, reduction="none")
    mine = logits.to(device).requires_grad_()
    losses = softcap_cross_entropy(mine, targets.to(device), 30.0)
    grads = [torch.autograd.grad(values.sum(), at)[0] for values, at in ((losses, mine), (wanted, exact))]
    return max(_relative(losses.detach(), wanted.detach()), _relative(grads[0], grads[1]))


def _rans_decode(device: torch.device) -> float:
    g = torch.Generator().manual_seed(4)
    lanes, symbols = 2 * LANE_GROUP, 1000
    slot, count = torch.arange(TOTAL), TOTAL // 256  # 256 symbols of 16 slots each
    entries = ((count - 1) << ENTRY_FREQUENCY | slot // count << ENTRY_SYMBOL | slot % count).to(torch.int32)
    stream = (
        torch.zeros(symbols, dtype=torch.int16),
        entries,
        torch.cat([torch.randint(-(2**15), 2**15, (symbols,), generator=g), torch.zeros(1)]).to(torch.int16),
        torch.tensor([0, symbols // 2]),
        torch.randint(LOWEST, 2**32, (lanes,), generator=g),
    )
    mine, wanted = rans_decode(*(t.to(device) for t in stream)), rans_decode_ref(*stream)
    return max(_differing(a, b) for a, b in zip(mine, wanted, strict=True))


def _trellis_codes(device: torch.device) -> float:
    g = torch.Generator().manual_seed(5)
    symbols = torch.randint(-20, 21, (65, 130), generator=g, dtype=torch.int16)
    rows, columns = (torch.randint(0, 12, (n,), generator=g, dtype=torch.int16) for n in symbols.shape)
    mine = [trellis_codes(symbols.to(device), rows.to(device), columns.to(device), 11, 4, paths) for paths in PATHS]
    wanted = [trellis_codes_ref(symbols, rows, columns, 11, 4, paths) for paths in PATHS]
    return max(_differing(a, b) for a, b in zip(mine, wanted, strict=True))


def _gptq_block(device: torch.device) -> float:
    g = torch.Generator().manual_seed(6)
    w, steps = torch.randn(32, 100, generator=g), torch.full((32, 100), 0.25)
    U = torch.triu(0.1 * torch.randn(32, 32, generator=g)) + torch.eye(32)
    codes, _ = gptq_block(w.to(device), steps.to(device), 63, U.to(device))
    return _differing(codes, gptq_block_ref(w.double(), steps.double(), 63, U.double())[0])


def _relative(got: Tensor, wanted: Tensor) -> float:
    error = (got.double().cpu() - wanted.double().cpu()).abs().max() / wanted.abs().max().double().cpu()
    return float(error)


def _differing(got: Tensor, wanted: Tensor) -> float:
    return float((got.cpu() != wanted.cpu()).double().mean())
