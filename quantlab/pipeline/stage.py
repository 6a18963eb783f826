"""One stage of a pipeline: its name, everything that decides its result, and the function that does its work."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.progress import Progress

KEY_DIGITS = 12
"""Hex digits of the key in the name of a stage's folder."""


@dataclass(frozen=True, slots=True)
class StageJob:
    """The place of a stage at work."""

    root: Path
    """The pipeline's output directory."""
    folder: Path
    """The stage's own folder; it holds what a killed attempt at the very same work left."""
    progress: Progress
    lock: int
    """File descriptor of the output directory's lock; child processes that write hold it too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOutcome:
    """The files that a stage has made."""

    outputs: Sequence[str]
    """Names of the files in the stage's folder that later stages read; their hashes name the result."""
    logs: Sequence[str] = ()
    """Names of files for people, which hold times: they are kept, and have no effect on later stages."""
    inside_seconds: float | None = None
    """The seconds that the clock may count; None if it may count all of them."""


Work = Callable[[StageJob], StageOutcome]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage with everything that decides its result."""

    name: str
    """data, train, calibrate, pack, evaluate or report."""
    inputs: Mapping[str, Any]
    """Options and content hashes, as JSON values."""
    after: tuple["Stage", ...]
    """The stages whose results it reads."""
    work: Work
    """Makes the result."""
    key: str = field(init=False)
    """64 hex digits: SHA-256 of the name, the inputs, the keys of the stages before it, and quantlab's version."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", json.loads(json.dumps(self.inputs)))  # as a record will give them back
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
        """The first digits of the key, which people see."""
        return self.key[:KEY_DIGITS]

    def folder(self, root: Path) -> Path:
        """Return the stage's folder in the output directory `root`."""
        return root / f"{self.name}-{self.short_key}"
