"""The progress of a job, as the job reports it to its caller."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives the state of one stage at a time; the command line draws it on stderr."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units of `stage` are finished; the last call of a stage has done == total.

        `note` is a short text on the state of the work, such as the loss.
        """


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Show nothing: the default Progress."""


def stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    """Return `progress` with the name of one stage filled in, as a function of done and total."""
    return lambda done, total: progress(name, done, total)
