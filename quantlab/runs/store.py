"""Folders of runs on disk: the only truth about them. There is no index; copying folders together merges them."""

import errno
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError, ReportError
from quantlab.files import hash_file, write_whole
from quantlab.runs.origin import is_gone
from quantlab.runs.record import INTERRUPTED, RECORD_NAME, RUNNING, FileRef, RunRecord, read_record

MOST_HASHED_BYTES = 1 << 28
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[a-z]+-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder that could be read."""

    name: str
    folder: Path
    record: RunRecord

    @property
    def status(self) -> str:
        """As recorded, but interrupted where the run has no end and its process is gone."""
        status = self.record.status
        return INTERRUPTED if status == RUNNING and is_gone(self.record.process) else status


@dataclass(frozen=True, slots=True)
class Store:
    """All runs of one folder."""

    runs: list[Run]
    """In order of their names, which is the order in which they began."""
    broken: list[str]
    """One line for each folder that looks like a run and cannot be read."""


def read_store(folder: Path) -> Store:
    """Every run in `folder`. Folders without a run.json are passed over unless they are named as runs are.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"folder of runs {folder} {kind}", hint="quantlab train, pack, eval and run write it; or pass --runs")
    store = Store([], [])
    for path in _candidates(folder):
        try:
            store.runs.append(Run(path.name, path, read_record(path / RECORD_NAME)))
        except ReportError as error:
            store.broken.append(str(error))
    return store


def _candidates(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and ((path / RECORD_NAME).exists() or (_NAME.fullmatch(path.name) and path.is_dir())):
            yield path


def find_run(runs: list[Run], text: str) -> Run:
    """The run with this name, or the only one whose name begins or ends with it. ConfigError where there is none or several."""
    exact = [run for run in runs if run.name == text]
    found = exact or [run for run in runs if text and (run.name.startswith(text) or run.name.endswith(text))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{len(found)} runs begin or end with {text!r}: {found[0].name}, {found[1].name}, ...")
    near = get_close_matches(text, [run.name for run in runs], n=1)
    raise ConfigError(
        f"no run begins or ends with {text!r}", hint=f"did you mean {near[0]}?" if near else "see quantlab runs list --all"
    )


def whereabouts(run: Run, file: FileRef) -> str:
    """Whether a file that a run names is still what it was; large ones are held against their size alone."""
    if file.copy:
        return f"copied as {file.copy}"
    place = Path(run.record.directory) / file.path
    if not place.exists():
        return "not here"
    if place.is_file() and place.stat().st_size == file.bytes > MOST_HASHED_BYTES:
        return "same size"
    return "unchanged" if hash_file(place) == (file.bytes, file.sha256) else "changed since"


def new_run_folder(folder: Path, record: RunRecord) -> Path:
    """Make the folder of a run that begins, with its run.json in it from the first moment on.

    Raises:
        QuantlabError: `folder` cannot be written.
    """
    while True:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{record.kind}-{secrets.token_hex(4)}"
        hidden = folder / f".{name}"
        try:
            hidden.mkdir(parents=True)
            write_whole(hidden / RECORD_NAME, record.to_json())
            return hidden.rename(folder / name)  # refused where a folder of that name has files, as every run's has
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise QuantlabError(f"cannot write {folder}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
