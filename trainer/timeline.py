"""Where a run's seconds went: inside the clock that the challenge limits, and outside it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timeline:
    """Seconds by what they were spent on."""

    inside: dict[str, float] = field(default_factory=dict)
    """Within the training time."""
    beside: dict[str, float] = field(default_factory=dict)
    """Not counted: compiling, validation, checkpoints, loading."""

    def add(self, what: str, seconds: float, *, inside: bool) -> None:
        """Count seconds under a name."""
        kept = self.inside if inside else self.beside
        kept[what] = kept.get(what, 0.0) + seconds

    @contextmanager
    def outside(self, what: str) -> Iterator[None]:
        """Count the block, which is not training time."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(what, time.monotonic() - started, inside=False)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """For JSON, to the millisecond."""
        return {"inside": _rounded(self.inside), "outside": _rounded(self.beside)}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {what: round(value, 3) for what, value in seconds.items()}
