"""The processes that train together: a single one, or those that torchrun started on one or several machines."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from quantlab.errors import ConfigError

CPU = torch.device("cpu")
TIMEOUT = timedelta(minutes=10)
"""Time after which a process stops waiting for another one."""

Finish = Callable[[], Tensor]
"""Waits for a collective operation and returns its result."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among all of them. Tensors are sent over NCCL between GPUs and over gloo between CPUs."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    control: dist.ProcessGroup | None = None
    """Group of gloo for numbers that decide what all processes do next."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Finish:
        """Begin to replace `tensor` by its sum over all processes; return a function that waits for the sum."""
        if self.size == 1:
            return lambda: tensor
        work = dist.all_reduce(tensor, async_op=True)
        return _after(work, tensor)

    def sum_slices(self, stack: Tensor) -> Finish:
        """Begin to sum `stack` [size * n, ...] over all processes; the result is this process' n slices."""
        if self.size == 1:
            return lambda: stack
        mine = slice(self.rank * len(stack) // self.size, (self.rank + 1) * len(stack) // self.size)
        if self.device.type != "cuda":  # gloo has no reduce_scatter
            return _after(dist.all_reduce(stack, async_op=True), stack[mine])
        part = torch.empty_like(stack[mine])
        return _after(dist.reduce_scatter_tensor(part, stack, async_op=True), part)

    def join_slices(self, part: Tensor) -> Finish:
        """Begin to gather the equal parts [n, ...] of all processes; the result is [size * n, ...] in order of rank."""
        if self.size == 1:
            return lambda: part
        whole = part.new_empty(self.size * len(part), *part.shape[1:])
        return _after(dist.all_gather_into_tensor(whole, part.contiguous(), async_op=True), whole)

    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors, all of one dtype, by those of rank 0."""
        if self.size == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        dist.broadcast(flat, src=0)
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def of_main(self, values: Sequence[float]) -> list[float]:
        """Return the numbers of rank 0, so that all processes continue with the same ones."""
        if self.size == 1:
            return [float(v) for v in values]
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0, group=self.control)
        return [float(v) for v in tensor]

    def from_main(self, value: Any) -> Any:
        """Return the value of rank 0 in all processes; it must be one that pickle takes. The other ranks' is not read."""
        if self.size == 1:
            return value
        values = [value if self.is_main else None]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.size > 1:
            dist.barrier(group=self.control)


def open_world(kind: str | None = None, *, patience: timedelta = TIMEOUT) -> World:
    """Return the processes that torchrun's environment describes, or a single process.

    Args:
        kind: cpu or cuda; None for a GPU if there is one.
        patience: time that the others wait for what rank 0 decides.
    Raises:
        ConfigError: there is no device of that kind, RANK and WORLD_SIZE contradict each other, or there are fewer GPUs than
            local ranks.
    """
    if kind not in (None, "cpu", "cuda"):
        raise ConfigError(f"device must be cpu or cuda, got {kind!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda is asked for, but torch finds no GPU", hint="leave out the device, or name cpu")
    is_cuda, local = kind != "cpu" and torch.cuda.is_available(), _number("LOCAL_RANK", 0)
    if is_cuda and local >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is {local}, but this machine has {torch.cuda.device_count()} GPUs",
            hint="start at most one process for each GPU",
        )
    device = torch.device("cuda", local) if is_cuda else CPU
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ("RANK" in os.environ) != ("WORLD_SIZE" in os.environ):
        raise ConfigError("of RANK and WORLD_SIZE only one is set", hint="start several processes with torchrun")
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < size:
        raise ConfigError(f"RANK must be 0 to WORLD_SIZE - 1 = {size - 1}, got {rank}")
    if size == 1:
        return World(device=device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return World(rank, size, device, dist.new_group(backend="gloo", timeout=patience))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name} must be a whole number, got {text!r}")
    return int(text)


def close_world(world: World) -> None:
    """End the communication with the other processes."""
    if world.size > 1:
        dist.destroy_process_group()


def _after(work: dist.Work | None, result: Tensor) -> Finish:
    def finish() -> Tensor:
        if work is not None:
            work.wait()
        return result

    return finish
