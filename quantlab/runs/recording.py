"""Recording a run while it happens: `with recorder.run(kind, options) as run: ... run.result(...)`.

run.json is a whole file at every moment. It is written when the run begins, after each result, and at the end, so that a killed
run leaves the results that it had. A mirror sends config and results to an experiment tracker when the run has ended.
"""

import importlib
import importlib.util
import json
import logging
import os
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
from quantlab.progress import Progress
from quantlab.runs.origin import git_state, this_process, versions
from quantlab.runs.private import Cleaner, allowed, cleaner
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

MOST_COPIED_BYTES = 1 << 24
"""Larger files are named by path and hash, not copied."""
TRACKERS = ("trackio", "wandb")
"""Packages of trackers; both have the same functions init, log and finish."""
PROJECT = "quantlab"
PROGRESS_NAME = "progress.json"
"""File in a run folder that says how far the work is; it is there while the run is at work."""
WATCH_SECONDS = 1.0
"""Least time between two states of one stage on disk."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mirror:
    """One project of an experiment tracker, trackio or Weights & Biases."""

    tracker: str
    project: str = PROJECT

    def send(self, name: str, record: RunRecord) -> None:
        """Create a run `name` in the tracker: the record's inputs are its config, the record's numbers its results."""
        module = importlib.import_module(self.tracker)
        module.init(project=self.project, name=name, config=_inputs(record))
        module.log(_numbers(record))
        module.finish()


def open_mirror(text: str) -> Mirror:
    """Return the mirror for `trackio` or `wandb`, with or without :PROJECT. ConfigError if it is unknown or not installed."""
    tracker, _, project = text.partition(":")
    if tracker not in TRACKERS:
        raise ConfigError(f"mirror must be one of {', '.join(TRACKERS)}, got {text!r}")
    if importlib.util.find_spec(tracker) is None:
        raise ConfigError(f"mirror {tracker}: the package {tracker} is not installed", hint=f"pip install {tracker}")
    return Mirror(tracker, project or PROJECT)


def _inputs(record: RunRecord) -> dict[str, Any]:
    """Return the inputs and options of a run."""
    names = ("kind", "status", "options", "seeds", "versions", "environment", "git", "checkpoint")
    config: dict[str, Any] = plain({name: getattr(record, name) for name in names})
    return config


def _numbers(record: RunRecord) -> dict[str, float]:
    """Return the numbers among the results of a run."""
    found: dict[str, Any] = {"seconds": record.seconds, **record.metrics}
    if record.packing:
        found |= {"total_bytes": record.packing.total_bytes, "budget_bytes": record.packing.budget_bytes}
        found |= {"bpw": record.packing.bpw, "predicted_kl": record.packing.predicted_kl}
    for evaluation in record.evaluations:
        found |= {"val_bpb": evaluation.val_bpb, "val_loss": evaluation.val_loss}
    return {key: value for key, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorder:
    """Records the runs of one command into a folder of runs."""

    folder: Path | None = None
    """Folder of runs; with None nothing is recorded."""
    is_required: bool = False
    """Whether a folder that cannot be written is an error; otherwise it is a warning and the run is not recorded."""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    mirror: Mirror | None = None

    @contextmanager
    def run(self, kind: str, options: Any, *, seeds: Mapping[str, int] | None = None) -> Iterator["RunWriter"]:
        """Record the block as one run: done, failed with its error line, or interrupted.

        Args:
            kind: train, pack, eval or run.
            options: all options as resolved; dataclasses, mappings and paths are turned into JSON types.
        Raises:
            ConfigError: the folder cannot be written, and `is_required` is set.
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
        clean = cleaner()
        if self.folder is not None:  # these take time
            known = {"git": git_state(Path.cwd()), "versions": versions(), "environment": allowed(self.environment)}
            known |= {"directory": _directory_from(self.folder, clean)}
        return RunRecord(
            kind=kind,
            status=RUNNING,
            started=_now(),
            process=this_process(),
            command=clean.command(self.command),
            options=clean.value(plain(options)),
            seeds=dict(seeds),
            **known,
        )


class RunWriter:
    """Writes one run while it happens; without a folder it accepts every result and writes nothing."""

    def __init__(self, record: RunRecord, recorder: Recorder) -> None:
        self.record = record
        self.folder: Path | None = None
        self._recorder, self._clean = recorder, cleaner()
        self._started = time.monotonic()

    @property
    def is_recorded(self) -> bool:
        """Whether results are written; if not, a caller need not compute what is only recorded."""
        return self.folder is not None

    def open_(self) -> None:
        """Make the run folder, if the recorder has a folder of runs that can be written."""
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
        seeds: Mapping[str, int] | None = None,
        problems: Iterable[str] = (),
        files: Iterable[Path] = (),
    ) -> None:
        """Add results: a checkpoint, artifact or packing replaces an earlier one, the others are added to those before.

        Args:
            artifact: the file that was made or scored; it is named by size and hash.
            problems: reasons why the result is not valid, if the command found any.
            files: reports and logs; small ones are copied into the run folder. A file that does not exist is ignored.
        """
        if self.folder is None:
            return
        old, folder, clean = self.record, self.folder, self._clean
        try:
            self.record = replace(
                old,
                checkpoint=replace(checkpoint, path=clean.text(checkpoint.path)) if checkpoint else old.checkpoint,
                artifact=_named(artifact, clean) if artifact else old.artifact,
                packing=packing or old.packing,
                evaluations=(*old.evaluations, *([evaluation] if evaluation else [])),
                metrics=old.metrics | clean.value(plain(metrics or {})),
                seeds=old.seeds | dict(seeds or {}),
                problems=(*old.problems, *map(clean.text, problems)),
                files=(*old.files, *(_copied(path, folder, clean) for path in files if path.is_file())),
            )
            self._write(folder)
        except (QuantlabError, OSError) as failure:  # hours of work must not fail with their record
            _log.warning("warning: a result of this run is not recorded: %s", first_line(failure))

    def watched(self, show: Progress) -> Progress:
        """Return a progress that shows what `show` does, and keeps the state of the work in the run folder until it ends."""
        return show if self.folder is None else _Watched(show, self.folder / PROGRESS_NAME, self._clean)

    def close_(self, error: BaseException | None) -> None:
        """Write the end of the run: its status, error line, exit code and seconds."""
        if self.folder is None:
            return
        status, line, code = _outcome(error)
        line = self._clean.text(line)
        seconds = round(time.monotonic() - self._started, 3)
        self.record = replace(self.record, status=status, error=line, exit_code=code, ended=_now(), seconds=seconds)
        try:
            (self.folder / PROGRESS_NAME).unlink(missing_ok=True)
            self._write(self.folder)
        except (QuantlabError, OSError) as failure:
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
        except Exception as failure:  # foreign code, after the work is done: never a reason to fail
            _log.warning("warning: mirror %s failed: %s", mirror.tracker, first_line(failure))

    def _write(self, folder: Path) -> None:
        write_whole(folder / RECORD_NAME, self.record.to_json())


class _Watched:
    """A progress that writes the state of the work to a file, once in WATCH_SECONDS and at the begin and end of a stage."""

    def __init__(self, show: Progress, path: Path, clean: Cleaner) -> None:
        self._show, self._path, self._clean = show, path, clean
        self._stage, self._began, self._first, self._written = "", 0.0, 0, 0.0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show and write that `done` of `total` units of `stage` are finished."""
        self._show(stage, done, total, note)
        now = time.time()
        is_new = stage != self._stage
        if is_new:
            self._stage, self._began, self._first = stage, now, done
        if not is_new and done < total and now - self._written < WATCH_SECONDS:
            return
        self._written = now
        state = {"stage": stage, "done": done, "total": total, "note": self._clean.text(note)}
        state |= {"began": self._began, "first": self._first, "now": now}
        try:
            write_whole(self._path, json.dumps(state).encode())
        except (QuantlabError, OSError) as failure:  # the work matters more than its progress
            _log.debug("progress of the run: %s", first_line(failure))


def _directory_from(runs: Path, clean: Cleaner) -> str:
    """Return the working directory as a run folder in `runs` sees it; empty where that has a private name."""
    found = os.path.relpath(Path.cwd(), runs.absolute() / "run")
    return found if clean.text(found) == found else ""


def _named(path: Path, clean: Cleaner) -> FileRef:
    size, digest = hash_file(path)
    return FileRef(path=clean.text(str(path)), bytes=size, sha256=digest)


def _copied(path: Path, folder: Path, clean: Cleaner) -> FileRef:
    """Copy a file into `folder` if it is small; return its path, size and hash."""
    named = _named(path, clean)
    if named.bytes > MOST_COPIED_BYTES:
        return named
    write_whole(folder / path.name, path.read_bytes())
    return replace(named, copy=path.name)


def _outcome(error: BaseException | None) -> tuple[str, str, int]:
    """Return status, error line and exit code."""
    if error is None:
        return DONE, "", 0
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted", 1
    line = " ".join(str(error).split()) if isinstance(error, QuantlabError) else first_line(error)
    return FAILED, line, int(getattr(error, "exit_code", 1) or 0)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
