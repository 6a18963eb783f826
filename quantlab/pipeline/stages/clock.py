"""Seconds by stage against the seconds that are allowed."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantlab.pipeline.stages.options import ClockOptions


@dataclass(frozen=True, slots=True)
class StageTime:
    """What one stage took when its result was made, now or in an earlier run."""

    stage: str
    key: str
    is_new: bool
    """Made by this run."""
    seconds: float
    inside_seconds: float
    """Of these, what could count."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Clock:
    """The sum."""

    inside: dict[str, float]
    """Seconds by stage that count."""
    outside: dict[str, float]
    """Seconds by stage that do not."""
    max_seconds: float
    """0: no limit."""

    @property
    def inside_seconds(self) -> float:
        """What is held against the limit."""
        return sum(self.inside.values())

    @property
    def is_over(self) -> bool:
        """Whether the limit is passed."""
        return 0 < self.max_seconds < self.inside_seconds

    def problem(self) -> str:
        """One line: what was allowed, what was taken and by what."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.inside.items())
        over = self.inside_seconds - self.max_seconds
        return f"{self.inside_seconds:.1f} s inside the clock, {self.max_seconds:g} s allowed, over by {over:.1f} s ({parts})"


def clock_of(times: Sequence[StageTime], options: ClockOptions) -> Clock:
    """Sort the stages' seconds into inside and outside."""
    inside = {t.stage: t.inside_seconds for t in times if t.stage in options.inside}
    outside = {t.stage: round(t.seconds - inside.get(t.stage, 0.0), 3) for t in times}
    return Clock(inside, outside, options.max_seconds)
