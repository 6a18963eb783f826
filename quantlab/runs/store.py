"""Folders of runs on disk: the only truth about them. There is no index; copying folders together merges them.

Which results count, and what runs say about each other's artifacts.

Packings and scores are joined by the artifact's sha256, never by its name.
"""

import errno
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError, ReportError
from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.files import hash_file, write_whole
from quantlab.runs.origin import is_gone
from quantlab.runs.run_record import DONE, FAILED, INTERRUPTED, RECORD_NAME, RUNNING, FileRef, Packing, RunRecord, read_record

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


PACKED_SUFFIX = ".qlab"
UNKNOWN_PACKING = "no packing of this artifact is recorded"


@dataclass(frozen=True, slots=True)
class JoinedRun:
    """A run, and what it or another run says about its artifact."""

    run: Run
    status: str
    packing: Packing | None
    evaluation: EvaluationRecord | None
    problems: tuple[str, ...]
    """Why the run does not count; empty if it is valid."""

    @property
    def is_valid(self) -> bool:
        """Done; artifact and code within the budget and decoded again equal; the score is of that artifact."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Known:
    """What all runs together know of artifacts, newest last."""

    packings: dict[str, list[tuple[Run, Packing]]]
    scores: dict[str, list[tuple[Run, EvaluationRecord]]]

    def packing_of(self, sha256: str) -> tuple[Packing | None, list[str]]:
        """The newest packing of an artifact that has no problem, else the newest with its problems."""
        found = [(packing, run_problems(run) + packing_problems(run.record)) for run, packing in self.packings[sha256]]
        if not found:
            return None, [UNKNOWN_PACKING]
        return next((known for known in reversed(found) if not known[1]), found[-1])


def join(runs: Iterable[Run]) -> list[JoinedRun]:
    """One entry for each run, in the same order."""
    runs = list(runs)
    known = know(runs)
    return [_entry(run, known) for run in runs]


def know(runs: Iterable[Run]) -> Known:
    """Packings, and scores of runs that are done and whose file was the same before and after it was scored."""
    known = Known(defaultdict(list), defaultdict(list))
    for run in sorted(runs, key=lambda run: run.record.started):
        record = run.record
        if record.packing:
            known.packings[record.packing.artifact_sha256].append((run, record.packing))
        if record.status == DONE:
            for evaluation in own_scores(record):
                known.scores[evaluation.target_sha256].append((run, evaluation))
    return known


def own_scores(record: RunRecord) -> list[EvaluationRecord]:
    """The scores that belong to the bytes of the run's artifact."""
    return [e for e in record.evaluations if record.artifact and e.target_sha256 == record.artifact.sha256]


def is_packed(record: RunRecord) -> bool:
    """Whether the run's artifact is a packed file, so that a budget applies to it."""
    return record.packing is not None or (record.artifact is not None and record.artifact.path.endswith(PACKED_SUFFIX))


def run_problems(run: Run) -> list[str]:
    """Why a run is not valid whatever it made: how it ended, and what it says itself."""
    status, record = run.status, run.record
    ended = [] if status == DONE else [record.error if status == FAILED and record.error else status]
    return [*ended, *record.problems]


def packing_problems(record: RunRecord) -> list[str]:
    """Why what a run packed is not valid; nothing if it packed nothing."""
    packing, problems = record.packing, []
    if packing is None:
        return []
    if (over := packing.total_bytes - packing.budget_bytes) > 0:
        problems.append(f"{over:,} bytes over the budget")
    if not packing.is_decoded_equal:
        problems.append("not decoded again equal")
    if record.artifact and record.artifact.sha256 != packing.artifact_sha256:
        problems.append("the file is not the one that was decoded again")
    return problems


def score_problems(record: RunRecord) -> list[str]:
    """Why a run's own score is not one of its artifact."""
    if not record.evaluations or own_scores(record):
        return []
    return ["the score is of another file than the artifact"]


def _entry(run: Run, known: Known) -> JoinedRun:
    record = run.record
    own = own_scores(record) or list(record.evaluations)
    packing, joined = record.packing, packing_problems(record)
    if packing is None and record.artifact:
        packing, joined = known.packing_of(record.artifact.sha256)
        if not is_packed(record) and packing is None:
            joined = []  # float weights: no budget applies
    others = known.scores[packing.artifact_sha256] if packing else []
    evaluation = own[-1] if own else (others[-1][1] if others else None)
    problems = [*run_problems(run), *joined, *score_problems(record)]
    return JoinedRun(run, run.status, packing, evaluation, tuple(problems))
