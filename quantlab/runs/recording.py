"""A copy of config and results for an experiment tracker, sent when a run has ended: trackio or Weights & Biases.

Write a run's folder while the run happens: `with recorder.run(kind, options) as run: ... run.result(...)`.

run.json is whole at every moment. It is written when the run begins, after each result, and at the end, so that a killed run
leaves what it had.
"""

import importlib
import importlib.util
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, QuantlabError, first_line
from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.files import hash_file, write_whole
from quantlab.runs.origin import git_state, relevant, this_process, versions
from quantlab.runs.run_record import (
    DONE,
    FAILED,
    INTERRUPTED,
    RECORD_NAME,
    RUNNING,
    Checkpoint,
    FileRef,
    Packing,
    RunRecord,
    plain,
)
from quantlab.runs.store import new_run_folder

TRACKERS = ("trackio", "wandb")
"""Packages; both have the same init, log and finish."""
PROJECT = "quantlab"


@dataclass(frozen=True, slots=True)
class Mirror:
    """One tracker's project."""

    tracker: str
    project: str = PROJECT

    def send(self, name: str, record: RunRecord) -> None:
        """Make a run `name` with the record's options as its config and its numbers as its results."""
        module = importlib.import_module(self.tracker)
        module.init(project=self.project, name=name, config=config_of(record))
        module.log(results_of(record))
        module.finish()


def open_mirror(text: str) -> Mirror:
    """The mirror of `trackio`, `wandb`, or one of them with :PROJECT. ConfigError if it is another or not installed."""
    tracker, _, project = text.partition(":")
    if tracker not in TRACKERS:
        raise ConfigError(f"mirror must be one of {', '.join(TRACKERS)}, got {text!r}")
    if importlib.util.find_spec(tracker) is None:
        raise ConfigError(f"mirror {tracker}: the package {tracker} is not installed", hint=f"pip install {tracker}")
    return Mirror(tracker, project or PROJECT)


def config_of(record: RunRecord) -> dict[str, Any]:
    """What went in."""
    names = ("kind", "status", "options", "seeds", "versions", "environment", "git", "checkpoint")
    config: dict[str, Any] = plain({name: getattr(record, name) for name in names})
    return config


def results_of(record: RunRecord) -> dict[str, float]:
    """The numbers that came out."""
    found: dict[str, Any] = {"seconds": record.seconds, **record.metrics}
    if record.packing:
        found |= {"total_bytes": record.packing.total_bytes, "budget_bytes": record.packing.budget_bytes}
        found |= {"bpw": record.packing.bpw, "predicted_kl": record.packing.predicted_kl}
    for evaluation in record.evaluations:
        found |= {"val_bpb": evaluation.val_bpb, "val_loss": evaluation.val_loss}
    return {key: value for key, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)}


MOST_COPIED_BYTES = 1 << 24
"""Larger files are named by path and hash, not copied."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorder:
    """Where the runs of one command go, and what is the same for all of them."""

    folder: Path | None = None
    """The folder of runs; None: nothing is recorded."""
    is_required: bool = False
    """Whether a folder that cannot be written is an error; otherwise it is a warning and the run goes unrecorded."""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    mirror: Mirror | None = None

    @contextmanager
    def run(self, kind: str, options: Any, *, seeds: Mapping[str, int] | None = None) -> Iterator["RunWriter"]:
        """Record the block as one run: done, failed with its error line, or interrupted.

        Args:
            kind: train, pack, eval or run.
            options: all that decides the run, as resolved; dataclasses, mappings and paths are turned into JSON.
        Raises:
            ConfigError: the folder cannot be written, and was asked for.
        """
        writer = RunWriter(self._begin(kind, options, seeds or {}), self)
        writer.open_()
        try:
            yield writer
        except BaseException as error:
            writer.close_(error)
            raise
        writer.close_(None)

    def _begin(self, kind: str, options: Any, seeds: Mapping[str, int]) -> RunRecord:
        known: dict[str, Any] = {}
        if self.folder is not None:  # what takes time
            known = {"git": git_state(Path.cwd()), "versions": versions(), "environment": relevant(self.environment)}
        return RunRecord(
            kind=kind,
            status=RUNNING,
            started=_now(),
            process=this_process(),
            command=self.command,
            directory=str(Path.cwd()),
            options=plain(options),
            seeds=dict(seeds),
            **known,
        )


class RunWriter:
    """One run on its way; without a folder it takes every result and writes none."""

    def __init__(self, record: RunRecord, recorder: Recorder) -> None:
        self.record = record
        self.folder: Path | None = None
        self._recorder = recorder
        self._started = time.monotonic()

    @property
    def is_recorded(self) -> bool:
        """Whether results are kept: what they cost can be saved if not."""
        return self.folder is not None

    def open_(self) -> None:
        """Make the folder, if one is wanted and possible."""
        wanted = self._recorder.folder
        if wanted is None:
            return
        try:
            self.folder = new_run_folder(wanted, self.record)
        except QuantlabError as error:
            if self._recorder.is_required:
                raise ConfigError(str(error), hint="name another folder with --runs, or pass --no-run") from error
            _log.warning("warning: this run is not recorded: %s", error)

    def result(
        self,
        *,
        checkpoint: Checkpoint | None = None,
        artifact: Path | None = None,
        packing: Packing | None = None,
        evaluation: EvaluationRecord | None = None,
        metrics: Mapping[str, Any] | None = None,
        problems: Iterable[str] = (),
        files: Iterable[Path] = (),
    ) -> None:
        """Add results: checkpoint, artifact and packing replace an earlier one, the others are added to what there is.

        Args:
            artifact: the file that was made or scored; it is named by size and hash.
            problems: why the result does not count, where the command knows.
            files: reports and logs; small ones are copied into the run folder. One that does not exist is passed over.
        """
        if self.folder is None:
            return
        old, folder = self.record, self.folder
        try:
            self.record = replace(
                old,
                checkpoint=checkpoint or old.checkpoint,
                artifact=_named(artifact) if artifact else old.artifact,
                packing=packing or old.packing,
                evaluations=(*old.evaluations, *([evaluation] if evaluation else [])),
                metrics=old.metrics | plain(metrics or {}),
                problems=(*old.problems, *problems),
                files=(*old.files, *(_kept(path, folder) for path in files if path.is_file())),
            )
            self._write(folder)
        except (QuantlabError, OSError) as failure:  # hours of work do not fail with their record
            _log.warning("warning: a result of this run is not recorded: %s", first_line(failure))

    def close_(self, error: BaseException | None) -> None:
        """The end: how it went, and how long it took."""
        if self.folder is None:
            return
        status, line, code = _outcome(error)
        seconds = round(time.monotonic() - self._started, 3)
        self.record = replace(self.record, status=status, error=line, exit_code=code, ended=_now(), seconds=seconds)
        try:
            self._write(self.folder)
        except QuantlabError as failure:
            _log.warning("warning: the end of this run is not recorded: %s", failure)
            return
        if error is None:
            _log.info("run %s", self.folder)
        self._send(self.folder.name)

    def _send(self, name: str) -> None:
        mirror = self._recorder.mirror
        if mirror is None:
            return
        try:
            mirror.send(name, self.record)
        except Exception as failure:  # another's code, after the work is done: never a reason to fail
            _log.warning("warning: mirror %s failed: %s", mirror.tracker, first_line(failure))

    def _write(self, folder: Path) -> None:
        write_whole(folder / RECORD_NAME, self.record.to_json())


def _named(path: Path) -> FileRef:
    size, digest = hash_file(path)
    return FileRef(path=str(path), bytes=size, sha256=digest)


def _kept(path: Path, folder: Path) -> FileRef:
    """The file by name and hash, copied into `folder` if it is small."""
    named = _named(path)
    if named.bytes > MOST_COPIED_BYTES:
        return named
    write_whole(folder / path.name, path.read_bytes())
    return replace(named, copy=path.name)


def _outcome(error: BaseException | None) -> tuple[str, str, int]:
    """Status, error line and exit code."""
    if error is None:
        return DONE, "", 0
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted", 1
    line = " ".join(str(error).split()) if isinstance(error, QuantlabError) else first_line(error)
    return FAILED, line, int(getattr(error, "exit_code", 1) or 0)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
