"""Report on this machine: versions, processors, memory, GPU, a round trip of an artifact, and every kernel."""

import importlib.metadata
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from quantlab import __version__
from quantlab.artifact.decode import decode_artifact, digest, parse_artifact
from quantlab.artifact.verify import digest_in_fresh_process
from quantlab.artifact.writer import encode_artifact
from quantlab.calib.fisher import Use, predicted_kl
from quantlab.errors import QuantlabError
from quantlab.files import write_whole
from quantlab.kernels.check import check_kernels
from quantlab.methods.classic.meter import TensorMeter
from quantlab.methods.classic.row_grid import Setting


def examine() -> dict[str, Any]:
    """Versions, processors, memory, GPU, and the outcome of a round trip. None stands for something absent."""
    versions = {name: _version(name) for name in ("torch", "numpy", "sentencepiece", "brotli", "zstandard", "safetensors")}
    return {
        "quantlab": __version__,
        "python": platform.python_version(),
        **versions,
        "triton": _version("triton"),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "round_trip": _round_trip(),
        "kernels": _kernels(),
    }


def _kernels() -> list[dict[str, Any]]:
    """Return how each kernel runs here, and how far it is from float64 or from its reference implementation."""
    checks = check_kernels(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for check in checks:
        if not check.ok:
            wrong = f"kernel {check.kernel} differs from {check.against} by {check.error:.2g}, allowed is {check.allowed:.2g}"
            raise QuantlabError(f"{wrong}: this GPU or its Triton cannot be trusted", hint="evaluate with --decoded")
    return [check.to_dict() for check in checks]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _round_trip() -> str:
    """Pack one small matrix with GPTQ, write it, and have a fresh process decode it."""
    generator = torch.Generator().manual_seed(0)
    w_OI, x_TI = (torch.randn(shape, generator=generator) for shape in ((96, 64), (512, 64)))
    uses = (Use(x_TI.T @ x_TI / len(x_TI), torch.ones(96)),)
    meter = TensorMeter("matrix", w_OI, uses, (6,), feeds_back=True)
    setting = Setting(6, 12.0)
    data = encode_artifact([meter.payload(setting)]).data
    expected = digest(decode_artifact(*parse_artifact(data)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.qlab"
        write_whole(path, data)
        if digest_in_fresh_process(path) != expected:
            raise QuantlabError("a packed matrix came back changed: this machine cannot be trusted with artifacts")
    if not 0 < meter.point(setting).predicted_kl < predicted_kl(w_OI, uses):
        raise QuantlabError("rounding a matrix lost all of it: torch is broken on this machine")
    return f"ok ({len(data)} bytes for 96 x 64 weights)"
