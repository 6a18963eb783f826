"""The trials of a search on disk: one folder a trial, so that searches can share them and a killed one goes on.

A trial's number is the name of its folder, which one process alone can make. trial.json is whole at every moment. A trial whose
search has ended while it was at work is dead; whoever finds it first begins it again.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, ReportError
from quantlab.fields import read_fields, read_json
from quantlab.files import write_whole
from quantlab.pipeline.search_space import Values
from quantlab.runs.origin import is_gone
from quantlab.runs.run_record import Process

RUNNING, DONE, FAILED, PRUNED = STATES = ("running", "done", "failed", "pruned")
TRIALS, RECORD_NAME, LOCK_NAME, KEY_NAME = "trials", "trial.json", "search.lock", "search.key"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trial, as trial.json has it."""

    number: int
    values: dict[str, Any]
    state: str = RUNNING
    process: Process
    attempts: int = 1
    proposer: str = ""
    bpb: float | None = None
    """Bits per byte after the round trip; None unless it is valid."""
    total_bytes: int | None = None
    problem: str = ""
    """Why it failed, or was ended."""
    seconds: float = 0.0
    """Of all attempts."""
    run: str = ""
    """Name of the recorded run."""
    curve: tuple[tuple[int, float], ...] = ()
    """Step and bits per byte of each validation during training."""

    @property
    def is_scored(self) -> bool:
        """Whether it has a score that counts."""
        return self.state == DONE and self.bpb is not None

    def for_programs(self) -> dict[str, Any]:
        """Return what a program that proposes may see."""
        found = asdict(self)
        del found["process"]
        return found


@dataclass(slots=True)
class TrialStore:
    """The trials in one folder."""

    folder: Path
    broken: list[str] = field(default_factory=list)
    """A line for each trial that could not be read last time."""

    @classmethod
    def open_(cls, folder: Path, key: str) -> "TrialStore":
        """Return the store in a folder, which is made; `key` is that of the space.

        Raises:
            ConfigError: the folder holds trials of another space, or something else.
        """
        known = folder / KEY_NAME
        if folder.is_dir() and not known.exists() and any(path.name != TRIALS for path in folder.iterdir()):
            raise ConfigError(f"{folder} is not the folder of a search", hint="name another with --out")
        (folder / TRIALS).mkdir(parents=True, exist_ok=True)
        if not known.exists():
            write_whole(known, (key + "\n").encode())
        if (found := known.read_text().strip()) != key:
            hint = "the pipeline or the space has changed: name another with --out"
            raise ConfigError(f"{folder} holds trials of another search ({found}, this one is {key})", hint=hint)
        return cls(folder)

    def all(self) -> list[Trial]:
        """Return every trial that can be read, by number."""
        self.broken = []
        found = []
        for path in sorted((self.folder / TRIALS).iterdir()) if (self.folder / TRIALS).is_dir() else ():
            if not path.name.isdigit():
                continue
            try:
                found.append(_read(path / RECORD_NAME))
            except ReportError as error:
                self.broken.append(str(error))
        return found

    def place(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.folder / TRIALS / f"{number:06d}"

    def add(self, values: Values, process: Process, proposer: str) -> Trial:
        """Make the next trial; nobody else gets its number."""
        number = len(self.all())
        while True:
            trial = Trial(number=number, values=dict(values), process=process, proposer=proposer)
            try:
                self.place(number).mkdir()
            except FileExistsError:
                number += 1
                continue
            self.write(trial)
            return trial

    def write(self, trial: Trial) -> None:
        """Write a trial whole."""
        data = (json.dumps(asdict(trial), indent=2, allow_nan=False) + "\n").encode()
        write_whole(self.place(trial.number) / RECORD_NAME, data)

    def take_dead(self, process: Process, attempts: int) -> Trial | None:
        """Return a trial whose search has ended, taken over by `process`; one that had all its attempts becomes failed."""
        for trial in self.all():
            if trial.state != RUNNING or not is_gone(trial.process):
                continue
            if trial.attempts < attempts:
                taken = replace(trial, process=process, attempts=trial.attempts + 1)
                self.write(taken)
                return taken
            self.write(replace(trial, state=FAILED, problem=f"its process ended {trial.attempts} times"))
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock, for the moment in which a trial is proposed and added."""
        descriptor = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read(path: Path) -> Trial:
    trial = read_fields(Trial, read_json(path), str(path))
    if trial.state not in STATES:
        raise ReportError(f"{path}: state must be one of {', '.join(STATES)}, got {trial.state!r}")
    return trial


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of lowest bits per byte; None if none is scored."""
    return min((t for t in trials if t.is_scored), key=lambda t: (t.bpb, t.total_bytes), default=None)


def frontier_of(trials: Sequence[Trial]) -> list[Trial]:
    """Return the scored trials that no other beats in both bits per byte and bytes, smallest first."""
    found: list[Trial] = []
    scored = [t for t in trials if t.is_scored]
    for trial in sorted(scored, key=lambda t: (t.total_bytes or 0, t.bpb or 0.0)):
        if not found or (trial.bpb or 0.0) < (found[-1].bpb or 0.0):
            found.append(trial)
    return found
