"""stage.json: what a finished stage was made from and what it made. Written last, so a folder without it is unfinished.

A stage at work in its folder: what it was begun from, and how long it has been at it, over every kill.

One process at a time in a run folder. The lock ends with its process, however that ends."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from quantlab import __version__
from quantlab.errors import ConfigError, QuantlabError, ReportError, StageError
from quantlab.fields import read_fields, read_json
from quantlab.files import write_whole
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.stage import Done, Stage
from quantlab.progress import Progress

RECORD_NAME = "stage.json"
PRODUCER = f"quantlab {__version__}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One file that a stage made."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """A finished stage."""

    stage: str
    key: str
    inputs: dict[str, Any]
    """Options and content hashes that, with the stages before it, make the key."""
    made_from: dict[str, str]
    """By stage before it: digest of what that had made then."""
    outputs: dict[str, Output]
    """By file name: what later stages read."""
    logs: dict[str, Output]
    """By file name: what people read."""
    seconds: float
    """Wall-clock time, killed attempts included as far as they noted it."""
    inside_seconds: float
    """Of these, what the clock counts."""
    attempts: int
    """1 unless it was killed or failed before."""
    finished: str
    """When, ISO 8601 in UTC."""
    producer: str
    python: str
    torch: str

    @property
    def digest(self) -> str:
        """Names the outputs, bit for bit."""
        text = json.dumps({name: asdict(output) for name, output in self.outputs.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Finish the stage in `folder`."""
        write_whole(folder / RECORD_NAME, (json.dumps(asdict(self), indent=2) + "\n").encode())


def read_record(folder: Path) -> StageRecord | None:
    """The record in a stage's folder; None if there is none. StageError if it is damaged."""
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    try:
        return read_fields(StageRecord, read_json(path), str(path))
    except ReportError as error:
        raise damaged(folder, str(error)) from error


def check_outputs(record: StageRecord, stage: Stage, folder: Path, hashes: FileHashes) -> None:
    """Raise StageError unless the record is this stage's and every file is there as it was made."""
    if (record.stage, record.key) != (stage.name, stage.key):
        raise damaged(folder, f"{folder / RECORD_NAME} is of stage {record.stage} with key {record.key[:12]}")
    for name, output in {**record.outputs, **record.logs}.items():
        path = folder / name
        try:
            is_same = path.stat().st_size == output.bytes and hashes.of(path, "stage") == output.sha256
        except (OSError, QuantlabError) as error:
            raise damaged(folder, f"{path} is missing") from error
        if not is_same:
            raise damaged(folder, f"{path} is not what the stage {stage.name} wrote")


def damaged(folder: Path, message: str) -> StageError:
    """The error for a folder that cannot be trusted."""
    return StageError(message, hint=f"remove the folder {folder}, or make it anew with --from {folder.name.partition('-')[0]}")


ATTEMPT_NAME = "attempt.json"
NOTE_SECONDS = 1.0
"""Between two notes of the time: a kill loses as much of the count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Note:
    """attempt.json."""

    key: str
    made_from: dict[str, str]
    attempts: int
    seconds: float


class Attempt:
    """One go at a stage. `fresh` begins with an empty folder, as does work left by a stage that began from something else."""

    def __init__(self, stage: Stage, folder: Path, made_from: dict[str, str], *, fresh: bool) -> None:
        self.stage, self.folder, self.made_from = stage, folder, made_from
        before = None if fresh else self._left()
        (folder / RECORD_NAME).unlink(missing_ok=True)  # first: what is removed below is no result any more
        if before is None:
            (folder / ATTEMPT_NAME).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
        remove_temporaries(folder)
        self._attempts = 1 + (before.attempts if before else 0)
        self._earlier = before.seconds if before else 0.0
        self._started = self._noted = time.monotonic()
        self._write()

    @property
    def seconds(self) -> float:
        """Of this attempt and, as far as they were noted, of those before."""
        return self._earlier + time.monotonic() - self._started

    def timed(self, progress: Progress) -> Progress:
        """`progress`, with the time noted as it goes."""

        def show(stage: str, done: int, total: int, note: str = "") -> None:
            if time.monotonic() - self._noted >= NOTE_SECONDS:
                self._noted = time.monotonic()
                self._write()
            progress(stage, done, total, note)

        return show

    def finish(self, done: Done, hashes: FileHashes) -> StageRecord:
        """Write the record that ends the stage."""
        outputs, logs = ({name: self._output(name, hashes) for name in names} for names in (done.outputs, done.logs))
        seconds = self.seconds
        inside = seconds if done.inside_seconds is None else min(done.inside_seconds, seconds)
        record = StageRecord(
            stage=self.stage.name,
            key=self.stage.key,
            inputs=dict(self.stage.inputs),
            made_from=self.made_from,
            outputs=outputs,
            logs=logs,
            seconds=round(seconds, 3),
            inside_seconds=round(inside, 3),
            attempts=self._attempts,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            producer=PRODUCER,
            python=platform.python_version(),
            torch=torch.__version__,
        )
        record.write(self.folder)
        (self.folder / ATTEMPT_NAME).unlink()
        return record

    def _output(self, name: str, hashes: FileHashes) -> Output:
        path = self.folder / name
        return Output(bytes=path.stat().st_size, sha256=hashes.of(path, "stage"))

    def _left(self) -> _Note | None:
        """What an earlier attempt noted, if it was at the same work."""
        try:
            note = read_fields(_Note, read_json(self.folder / ATTEMPT_NAME), ATTEMPT_NAME)
        except ReportError:
            return None
        return note if (note.key, note.made_from) == (self.stage.key, self.made_from) else None

    def _write(self) -> None:
        note = _Note(key=self.stage.key, made_from=self.made_from, attempts=self._attempts, seconds=round(self.seconds, 3))
        write_whole(self.folder / ATTEMPT_NAME, json.dumps(asdict(note)).encode())


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left of files that it was writing."""
    for path in folder.iterdir():
        if path.name.startswith(".") and path.is_file():
            path.unlink()


LOCK_NAME = "pipeline.lock"
"""Holds the process' id; a run folder is known by it."""
PATIENCE_SECONDS = 30.0
"""For child processes of a dead process, which hold its lock until they have ended."""


@contextmanager
def locked_folder(root: Path) -> Iterator[int]:
    """Make the run folder if it is absent, and hold its lock, whose file descriptor is given.

    Raises:
        ConfigError: another process works there, or the folder holds files and was made by something else.
        QuantlabError: it cannot be written.
    """
    check_is_ours(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise QuantlabError(f"cannot write {root}: {error.strerror}") from error
    try:
        _wait(lock, root)
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        remove_temporaries(root)  # of files that a killed process was writing
        yield lock
    finally:
        os.close(lock)


def check_is_ours(root: Path) -> None:
    """Raise ConfigError unless `root` is absent, empty or a run folder."""
    if root.exists() and not root.is_dir():
        raise ConfigError(f"run folder {root} is a file")
    if root.is_dir() and not (root / LOCK_NAME).exists() and (names := sorted(p.name for p in root.iterdir())):
        raise ConfigError(f"{root} is no run folder: it holds {names[0]}", hint="name another with --out")


def _wait(lock: int, root: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _try(lock):
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        if _is_alive(holder) or time.monotonic() > deadline:
            raise ConfigError(
                f"{root} is in use by process {holder or 'unknown'}", hint="wait for it, or name another with --out"
            )
        time.sleep(0.05)


def _try(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(holder: str) -> bool:
    """Whether the process runs here; one that just took the lock has not written its id yet and counts as alive."""
    if not holder.isdigit():
        return True
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
