"""Work that a method hands out, so that several processes can share it: the main one packs, the others wait for tasks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from quantlab.calib.processes import Processes

T = TypeVar("T")
Result = TypeVar("Result", covariant=True)
StepProgress = Callable[[int, int], None]


class Task(Protocol[Result]):
    """A piece of work that all processes do together. It is sent from one to the others, so pickle must take it."""

    def run(self, model: "nn.Module", processes: "Processes", progress: StepProgress | None = None) -> Result:
        """Do the share of this process, and return what all have found."""


class Crew(Protocol):
    """The processes of a packing, of which this is the main one."""

    def run(self, task: Task[T], progress: StepProgress | None = None) -> T:
        """Run a task in all processes, and return its result."""
