"""A stage at work in its folder: what it was begun from, and how long it has been at it, over every kill."""

import json
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from quantlab.errors import ReportError
from quantlab.files import write_whole
from quantlab.pipeline.progress import Progress
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.record import PRODUCER, RECORD_NAME, Output, StageRecord
from quantlab.pipeline.stages.stage import Done, Stage
from quantlab.report.fields import read_fields, read_json

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
