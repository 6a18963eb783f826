"""One stage of a pipeline: what decides its result, what it is called, how it is done."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.progress import Progress

KEY_DIGITS = 12
"""Of the key in a folder's name."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a stage at work knows of its place."""

    root: Path
    """The run folder."""
    folder: Path
    """The stage's own, with what a killed attempt at the very same work left."""
    progress: Progress
    lock: int
    """File descriptor of the run folder's lock: child processes that write hold on to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a stage has made."""

    outputs: Sequence[str]
    """Files in its folder that later stages read: their bits name the result."""
    logs: Sequence[str] = ()
    """Files for people, with times in them: kept, of no effect on later stages."""
    inside_seconds: float | None = None
    """Of its time, what the clock may count; None: all."""


Work = Callable[[Job], Done]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage with everything that decides its result."""

    name: str
    """data, train, calibrate, pack, evaluate or report."""
    inputs: Mapping[str, Any]
    """Options and content hashes, as JSON values."""
    after: tuple["Stage", ...]
    """The stages that it reads."""
    work: Work
    """Does it."""
    key: str = field(init=False)
    """64 hex digits that name all of the above."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", json.loads(json.dumps(self.inputs)))  # tuples become what a record gives back
        about = {
            "stage": self.name,
            "inputs": self.inputs,
            "after": {stage.name: stage.key for stage in self.after},
            "version": __version__,
        }
        text = json.dumps(about, sort_keys=True)
        object.__setattr__(self, "key", hashlib.sha256(text.encode()).hexdigest())

    @property
    def short_key(self) -> str:
        """The digits that people see."""
        return self.key[:KEY_DIGITS]

    def folder(self, root: Path) -> Path:
        """Its own in the run folder."""
        return root / f"{self.name}-{self.short_key}"
