"""The folder of one stage: its record when the stage is finished, its attempt as long as it is not.

stage.json is written last, so a folder without it is unfinished work. attempt.json says what the work began from, and how long
it has taken over every kill. A lock on the output directory lets one process at a time work there.
"""

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
from quantlab.fields import json_file, read_fields, read_json
from quantlab.files import hold_lock, refuse_odd_name, write_whole
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.stage import KEY_DIGITS, Stage, StageOutcome
from quantlab.progress import Progress

RECORD_NAME, ATTEMPT_NAME = "stage.json", "attempt.json"
LOCK_NAME = "pipeline.lock"
"""Holds the id of the process that works in an output directory, and tells that a folder is one."""
PRODUCER = f"quantlab {__version__}"
NOTE_SECONDS = 1.0
"""Seconds between two writes of attempt.json; a kill loses as much of the time that is counted."""
PATIENCE_SECONDS = 30.0
"""Seconds to wait for the child processes of a dead process, which hold its lock until they have ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFile:
    """One file that a stage made."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """A finished stage, as stage.json has it."""

    stage: str
    key: str
    inputs: dict[str, Any]
    """Options and content hashes that make the key, together with the stages before it."""
    made_from: dict[str, str]
    """For each stage before it, the digest of the result that was read."""
    outputs: dict[str, StageFile]
    """Files that later stages read, by name."""
    logs: dict[str, StageFile]
    """Files that people read, by name."""
    seconds: float
    """Wall-clock time, with that of killed attempts as far as they noted it."""
    inside_seconds: float
    """The part of it that the clock may count."""
    attempts: int
    """Number of attempts; above 1 if the stage was killed or failed before."""
    finished: str
    """Time of the end, ISO 8601 in UTC."""
    producer: str
    python: str
    torch: str

    @property
    def digest(self) -> str:
        """Hash of the outputs: results with the same digest are the same bit for bit."""
        text = json.dumps({name: asdict(output) for name, output in self.outputs.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_record(folder: Path) -> StageRecord | None:
    """Return the record in a stage's folder; None if there is none. StageError if it is damaged."""
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    try:
        return read_fields(StageRecord, read_json(path), str(path))
    except ReportError as error:
        raise _damaged(folder, str(error)) from error


def check_files(record: StageRecord, stage: Stage, folder: Path, hashes: FileHashes) -> None:
    """Raise StageError unless the record is this stage's and every file is there as it was made."""
    if (record.stage, record.key) != (stage.name, stage.key):
        found = f"stage {record.stage} with key {record.key[:KEY_DIGITS]}"
        raise _damaged(folder, f"{folder / RECORD_NAME} is of {found}")
    for name, file in {**record.outputs, **record.logs}.items():
        path = folder / name
        try:
            is_same = path.stat().st_size == file.bytes and hashes.of(path, "stage") == file.sha256
        except (OSError, QuantlabError) as error:
            raise _damaged(folder, f"{path} is missing") from error
        if not is_same:
            raise _damaged(folder, f"{path} is not what the stage {stage.name} wrote")


def _damaged(folder: Path, message: str) -> StageError:
    return StageError(message, hint=f"remove the folder {folder}, or make it anew with --from {folder.name.partition('-')[0]}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _AttemptNote:
    """The content of attempt.json."""

    key: str
    made_from: dict[str, str]
    attempts: int
    seconds: float


class Attempt:
    """One attempt at a stage, which goes on in what an earlier one left if that began from the same things.

    Otherwise, and if it is `fresh`, it begins with an empty folder.
    """

    def __init__(self, stage: Stage, folder: Path, made_from: dict[str, str], *, fresh: bool) -> None:
        self.stage, self.folder, self.made_from = stage, folder, made_from
        before = None if fresh else self._earlier_note()
        (folder / RECORD_NAME).unlink(missing_ok=True)  # first: the files below are no result any more
        if before is None:
            (folder / ATTEMPT_NAME).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
        remove_temporaries(folder)
        self._attempts = 1 + (before.attempts if before else 0)
        self._earlier_seconds = before.seconds if before else 0.0
        self._started = self._noted = time.monotonic()
        self._write_note()

    @property
    def seconds(self) -> float:
        """Seconds of this attempt and, as far as they were noted, of those before."""
        return self._earlier_seconds + time.monotonic() - self._started

    def timed(self, progress: Progress) -> Progress:
        """Return `progress`, which from now on also notes the time."""

        def show(stage: str, done: int, total: int, note: str = "") -> None:
            if time.monotonic() - self._noted >= NOTE_SECONDS:
                self._noted = time.monotonic()
                self._write_note()
            progress(stage, done, total, note)

        return show

    def finish(self, outcome: StageOutcome, hashes: FileHashes) -> StageRecord:
        """Write the record that ends the stage, and return it."""
        seconds = self.seconds
        inside = seconds if outcome.inside_seconds is None else min(outcome.inside_seconds, seconds)
        record = StageRecord(
            stage=self.stage.name,
            key=self.stage.key,
            inputs=dict(self.stage.inputs),
            made_from=self.made_from,
            outputs={name: self._file(name, hashes) for name in outcome.outputs},
            logs={name: self._file(name, hashes) for name in outcome.logs},
            seconds=round(seconds, 3),
            inside_seconds=round(inside, 3),
            attempts=self._attempts,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            producer=PRODUCER,
            python=platform.python_version(),
            torch=torch.__version__,
        )
        write_whole(self.folder / RECORD_NAME, json_file(record))
        (self.folder / ATTEMPT_NAME).unlink()
        return record

    def _file(self, name: str, hashes: FileHashes) -> StageFile:
        path = self.folder / name
        return StageFile(bytes=path.stat().st_size, sha256=hashes.of(path, "stage"))

    def _earlier_note(self) -> _AttemptNote | None:
        """Return what an earlier attempt noted; None if there is none, or it began from other things."""
        try:
            note = read_fields(_AttemptNote, read_json(self.folder / ATTEMPT_NAME), ATTEMPT_NAME)
        except ReportError:
            return None
        return note if (note.key, note.made_from) == (self.stage.key, self.made_from) else None

    def _write_note(self) -> None:
        seconds = round(self.seconds, 3)
        note = _AttemptNote(key=self.stage.key, made_from=self.made_from, attempts=self._attempts, seconds=seconds)
        write_whole(self.folder / ATTEMPT_NAME, json.dumps(asdict(note)).encode())


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files that a killed process left while it was writing."""
    for path in folder.iterdir():
        if path.name.startswith(".") and path.is_file():
            path.unlink()


@contextmanager
def locked_folder(root: Path) -> Iterator[int]:
    """Make the output directory if it is absent, and hold its lock; yield the lock's file descriptor.

    The lock ends with its process and the child processes that hold it, however they end.

    Raises:
        ConfigError: another process works there, or the folder holds files and was made by something else.
        QuantlabError: it cannot be written.
    """
    check_output_directory(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise QuantlabError(f"cannot write {root}: {error.strerror}") from error
    try:
        _wait_for(lock, root)
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        remove_temporaries(root)
        yield lock
    finally:
        os.close(lock)


def check_output_directory(root: Path) -> None:
    """Raise ConfigError unless `root` is absent, empty, or the output directory of a pipeline, and its name UTF-8."""
    refuse_odd_name(root)
    if root.exists() and not root.is_dir():
        raise ConfigError(f"output directory {root} is a file", hint="name another with --out")
    if root.is_dir() and not (root / LOCK_NAME).exists() and (names := sorted(p.name for p in root.iterdir())):
        raise ConfigError(
            f"{root} is not the output directory of a pipeline: it holds {names[0]}", hint="name another with --out"
        )


def _wait_for(lock: int, root: Path) -> None:
    """Take the lock; wait only for child processes of a process that has ended. ConfigError if another one works."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not hold_lock(lock):
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        if _is_alive(holder) or time.monotonic() > deadline:
            raise ConfigError(
                f"{root} is in use by process {holder or 'unknown'}", hint="wait for it, or name another with --out"
            )
        time.sleep(0.05)


def _is_alive(holder: str) -> bool:
    """Return whether the process runs here; one that just took the lock has not written its id yet and counts as alive."""
    if not holder.isdigit():
        return True
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
