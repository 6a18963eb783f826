"""The memory that this process may still take: what is free on the machine, and what its limits leave."""

import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from quantlab.calib.collect import BATCH_TOKENS, GPU_BATCH_TOKENS
from quantlab.calib.passes import groups_of
from quantlab.calib.recompute import blocks_of
from quantlab.evaluation.scoring import device_of

SHARE = 0.6
"""Share of what is free that sums of statistics may take: copies of one matrix need some, and other programs."""
LOGITS_COPIES = 4
"""Float copies of a batch's logits that statistics hold at once."""
ACTIVATION_COPIES = 2
"""Float copies of the inputs and outputs of every matrix that a pass holds: the values, and what autograd keeps of others."""
CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""A limit from this number of bytes on is none: cgroups write nearly 2**63 for it."""


def free_bytes(device: torch.device | None = None) -> int | None:
    """Return the bytes that this process may still take on a device, the CPU by default; None where nothing says.

    On the CPU it is the least of what is free on the machine, what its control group leaves, and what `ulimit -v` leaves.
    """
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min((left for left in _left() if left is not None), default=None)


Shapes = Mapping[str, tuple[int, ...]]


def passes_of(model: nn.Module, shapes: Shapes, vocab_size: int, *, plain: bool) -> list[dict[str, tuple[int, ...]]]:
    """Return the matrices that each pass of a calibration measures: all of them in one, where their sums fit into memory.

    Otherwise activations are not kept on a CPU (calib.recompute), which leaves more room for sums.

    Args:
        shapes: [O, I] of every matrix that is measured.
        plain: whether sums have the products that GPTQ and RTN need.
    """
    room = room_for_sums(model, pass_bytes(shapes, vocab_size, _tokens(model)))
    groups = groups_of(model, shapes, plain=plain, most_bytes=room)
    if len(groups) > 1 and device_of(model).type == "cpu":
        blocks = max(1, len(blocks_of(model)))
        room = room_for_sums(model, pass_bytes(shapes, vocab_size, _tokens(model), blocks))
        groups = groups_of(model, shapes, plain=plain, most_bytes=room)
    return groups


def _tokens(model: nn.Module) -> int:
    return BATCH_TOKENS if device_of(model).type == "cpu" else GPU_BATCH_TOKENS


def room_for_sums(model: nn.Module, pass_bytes: int) -> int:
    """Return the bytes of sums that statistics may hold at once, beside those of a pass; at least 1."""
    free = free_bytes(device_of(model))
    return _UNLIMITED if free is None else max(1, int(SHARE * (free - pass_bytes)))


def pass_bytes(shapes: Shapes, vocab_size: int, tokens: int = BATCH_TOKENS, blocks: int = 1) -> int:
    """Return the bytes that a pass over a batch takes besides the sums: logits, and the inputs and outputs of matrices.

    Args:
        blocks: number of the model's blocks of which one at a time keeps its activations.
    """
    widths = sum(O + I for O, I in shapes.values() if vocab_size != O)
    return 4 * tokens * (LOGITS_COPIES * vocab_size + ACTIVATION_COPIES * widths // blocks)


def _left() -> Iterator[int | None]:
    yield _machine()
    yield _address_space()
    yield _control_group("memory.max", "memory.current", "")
    yield _control_group("memory.limit_in_bytes", "memory.usage_in_bytes", "memory")


def _machine() -> int | None:
    """Return what the machine can give without paging anything out."""
    found = _fields(Path("/proc/meminfo")).get("MemAvailable")
    if found is None and sys.platform == "darwin":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found


def _address_space() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _fields(Path("/proc/self/status")).get("VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else max(0, limit - used)


def _control_group(limit: str, usage: str, folder: str) -> int | None:
    """Return what the process's control group leaves; None where it has no limit."""
    limit_bytes, used_bytes = (_number(CGROUP / folder / name) for name in (limit, usage))
    if limit_bytes is None or used_bytes is None or limit_bytes >= _UNLIMITED:
        return None
    return max(0, limit_bytes - used_bytes)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or the word max
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return the fields of a file of /proc that are in kB, in bytes; none where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[2:] == ["kB"]}
