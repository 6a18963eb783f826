"""How a job tells its caller how far it is."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives the state of one stage at a time; the command line draws it on stderr."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of `stage` are finished; the last call of a stage has done == total. `note`: how it goes."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """A Progress that shows nothing."""


def stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    """`progress` with the stage's name filled in."""
    return lambda done, total: progress(name, done, total)
