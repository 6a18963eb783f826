"""Where a model runs, and the memory that this process has held."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from quantlab.errors import ConfigError
from quantlab.evaluation.scoring import device_of


def find_device(name: str | None) -> torch.device:
    """Return the device of a name, cpu or cuda; for None a GPU where there is one. ConfigError where there is none."""
    if name not in (None, "cpu", "cuda"):
        raise ConfigError(f"device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda is asked for, but torch finds no GPU", hint="leave out the device, or name cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep the model on `device` inside the block, and put it back after it."""
    home = device_of(model)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def memory_of_process() -> int:
    """Return the memory that this process holds now, in bytes; its largest so far where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_of_process()
    return pages * resource.getpagesize()


def peak_of_process() -> int:
    """Return the largest memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
