"""The self-check finds every kernel right here, and a wrong one wrong."""

import pytest
import torch
from exact_interpreter import exact_interpreter  # noqa: F401 - a fixture of all tests here

from quantlab.kernels import (
    check,
    dequant_matmul,
    fake_quant,
    gptq_block,
    rans_decode,
    softcap_cross_entropy,
    trellis_codes,
    unpack_weights,
)
from quantlab.kernels.check import check_kernels

CPU = torch.device("cpu")


def test_all_reference_implementations_pass():
    checks = check_kernels(CPU)
    assert {c.kernel.split()[0] for c in checks} == {
        "unpack", "dequant_matmul", "input_gradient", "fake_quant", "softcap_cross_entropy", "rans_decode", "trellis_codes",
        "gptq_block",
    }  # fmt: skip
    assert [c.kernel for c in checks if not c.ok] == [] and {c.runs_as for c in checks} == {"reference"}


def test_all_kernels_pass_under_the_interpreter(monkeypatch):
    """float32 becomes bfloat16 by truncation there, which the bound for bfloat16 allows."""
    modules = (dequant_matmul, fake_quant, gptq_block, rans_decode, softcap_cross_entropy, trellis_codes, unpack_weights)
    for module in (check, *modules):
        monkeypatch.setattr(module, "on_kernel", lambda *_: True)
    checks = check_kernels(CPU)
    assert [c for c in checks if not c.ok] == [] and {c.runs_as for c in checks} == {"kernel"}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("unpack", lambda f: lambda *a, **k: f(*a, **k) * (1 + 1e-5)),
        ("dequant_matmul", lambda f: lambda *a: f(*a) + 1),
        ("input_gradient", lambda f: lambda *a: f(*a) + 1),
        ("fake_quant", lambda f: lambda *a: f(*a) + 1),
        ("softcap_cross_entropy", lambda f: lambda *a: f(*a) * 1.001),
        ("rans_decode", lambda f: lambda *a: tuple(t + 1 for t in f(*a))),
        ("trellis_codes", lambda f: lambda *a: f(*a) + 1),
        ("gptq_block", lambda f: lambda *a: (f(*a)[0] + 1, None)),
    ],
)
def test_a_wrong_kernel_fails(monkeypatch, name, wrong):
    monkeypatch.setattr(check, name, wrong(getattr(check, name)))
    assert name in {c.kernel for c in check_kernels(CPU) if not c.ok}
