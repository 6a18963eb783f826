"""The progress of a job, as the job reports it to its caller, and the words for its units, rates and times."""

from collections.abc import Callable
from typing import Protocol

UNITS = {
    "prepare text": "steps",
    "sample calibration text": "tokens",
    "measure statistics": "sequences",
    "round": "weights",
    "settle the size": "tries",
    "fill the budget": "tries",
    "search grids": "matrices",
    "tune unquantized tensors": "steps",
    "sample held-out text": "tokens",
    "measure KL": "sequences",
}
"""What the stages count, by their name up to a comma; a stage that is not named here counts without a unit."""


class Progress(Protocol):
    """Receives the state of one stage at a time; the command line draws it on stderr."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units of `stage` are finished.

        The total of a stage stays. Its last call has done == total, or less where the rest turned out to be unnecessary.
        `note` is a short text on the state of the work, such as the loss.
        """


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Show nothing: the default Progress."""


def stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    """Return `progress` with the name of one stage filled in, as a function of done and total."""
    return lambda done, total: progress(name, done, total)


def unit_of(stage: str) -> str:
    """Return what a stage counts; empty where that has no name."""
    return UNITS.get(stage.partition(",")[0], "")


def duration_text(seconds: float) -> str:
    """Return a duration in the two largest units that matter.

    >>> duration_text(3.21), duration_text(47.4), duration_text(200), duration_text(3900)
    ('3.2 s', '47 s', '3 min 20 s', '1 h 5 min')
    """
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rate_text(rate: float) -> str:
    """Return a rate with two digits.

    >>> rate_text(0.6), rate_text(2.0), rate_text(350.0), rate_text(1440.0), rate_text(12.1e6)
    ('0.60', '2.0', '350', '1.4k', '12M')
    """
    digits = float(f"{rate:.1e}")
    size, letter = next(((s, name) for s, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if digits >= s), (1.0, ""))
    digits /= size
    return f"{rate:#.2g}" if digits < 1 else f"{digits:.{int(digits < 10)}f}{letter}"
