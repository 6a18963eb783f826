"""A folder of recorded runs: reading and making run folders, and which of their results are valid.

Run folders are all there is. There is no index, so copying run folders into one folder merges them. Packings and scores belong
together by the SHA-256 of the artifact, never by its name: a score that one run has counts for the packing of another.
"""

import errno
import re
import secrets
import shutil
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError, ReportError, first_line
from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.files import hash_file, write_whole
from quantlab.runs.origin import is_gone
from quantlab.runs.run_record import DONE, FAILED, INTERRUPTED, RECORD_NAME, RUNNING, FileRef, Packing, RunRecord, read_record

MOST_HASHED_BYTES = 1 << 28
"""Larger files are compared by size alone."""
MOST_FILES = 1000
"""Files and folders in a folder that is compared."""
PACKED_SUFFIX = ".qlab"
UNKNOWN_PACKING = "no packing of this artifact is recorded"
RUN_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[a-z]+-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder that was read."""

    name: str
    folder: Path
    record: RunRecord

    @property
    def status(self) -> str:
        """The recorded status, but interrupted if the run has no end and its process has ended."""
        status = self.record.status
        return INTERRUPTED if status == RUNNING and is_gone(self.record.process) else status


@dataclass(frozen=True, slots=True)
class Store:
    """All runs of one folder."""

    runs: list[Run]
    """Sorted by name, which is the order in which they began."""
    broken: list[str]
    """One line for each folder that looks like a run folder and cannot be read."""


def read_store(folder: Path) -> Store:
    """Return every run in `folder`. A folder without a run.json is ignored unless it has the name of a run folder.

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
        if not path.name.startswith(".") and (
            (path / RECORD_NAME).exists() or (RUN_NAME.fullmatch(path.name) and path.is_dir())
        ):
            yield path


def find_run(runs: list[Run], text: str) -> Run:
    """Return the run with this name, the only one whose name begins or ends with it, or the newest that made or scored a file.

    Of the runs of a file those that packed it come first. A file that is not there any more is found by its path.

    Raises:
        ConfigError: there is no such run, or several names begin or end so.
    """
    exact = [run for run in runs if run.name == text]
    found = exact or [run for run in runs if text and (run.name.startswith(text) or run.name.endswith(text))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{len(found)} runs begin or end with {text!r}: {found[0].name}, {found[1].name}, ...")
    if of_file := _runs_of_file(runs, text):
        return max(of_file, key=lambda run: (run.record.packing is not None, run.record.started))
    if _is_file(Path(text)):
        raise ConfigError(f"no run made or scored the file {text}", hint="see quantlab runs list --all")
    near = get_close_matches(text, [run.name for run in runs], n=1)
    raise ConfigError(
        f"no run begins or ends with {text!r}", hint=f"did you mean {near[0]}?" if near else "see quantlab runs list --all"
    )


def _runs_of_file(runs: Iterable[Run], text: str) -> list[Run]:
    """Return the runs that made or scored a file: by its content where it is there, else by its path."""
    path = Path(text)
    sha256 = hash_file(path)[1] if _is_file(path) else ""
    of = [(run, run.record.artifact) for run in runs if run.record.artifact]
    return [run for run, file in of if (file.sha256 == sha256 if sha256 else bool(text) and Path(file.path) == path)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False


def whereabouts(run: Run, file: FileRef) -> str:
    """Return in words whether a file that a run names is unchanged; a large file or folder is compared by size alone.

    A record may name anything: no device is read, and no folder beyond `MOST_FILES` is walked.
    """
    if file.copy:
        return f"copied as {file.copy}"
    try:
        place = Path(file.path).expanduser()
        if not place.is_absolute() and not run.record.directory:
            return "its folder is not recorded"
        place = run.folder / run.record.directory / place
        size = _size_of(place)
        if size is None or size != file.bytes:
            return "not a file" if size is None else "changed since"
        if size > MOST_HASHED_BYTES:
            return "same size"
        return "unchanged" if hash_file(place) == (file.bytes, file.sha256) else "changed since"
    except FileNotFoundError:
        return "not here"
    except (OSError, ValueError, RuntimeError, QuantlabError) as error:  # RuntimeError: a home that is not known
        return f"not readable: {first_line(error)}"


def _size_of(place: Path) -> int | None:
    """Return the bytes of a file, or of the files in a folder; None for a device or a folder beyond MOST_FILES."""
    mode = place.stat().st_mode
    if stat.S_ISREG(mode):
        return place.stat().st_size
    if not stat.S_ISDIR(mode):
        return None
    parts = list(islice(place.rglob("*"), MOST_FILES + 1))
    return sum(part.stat().st_size for part in parts if part.is_file()) if len(parts) <= MOST_FILES else None


def new_run_folder(folder: Path, record: RunRecord) -> Path:
    """Make and return the folder of a run that begins; run.json is in it from the first moment on.

    Raises:
        QuantlabError: `folder` cannot be written.
    """
    while True:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{record.kind}-{secrets.token_hex(4)}"
        hidden = folder / f".{name}"
        try:
            hidden.mkdir(parents=True)
            write_whole(hidden / RECORD_NAME, record.to_json())
            return hidden.rename(folder / name)  # fails if a folder of that name has files, which every run folder has
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise QuantlabError(f"cannot write {folder}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class JoinedRun:
    """A run with the packing and the score of its artifact, from this run or another one."""

    run: Run
    status: str
    packing: Packing | None
    evaluation: EvaluationRecord | None
    problems: tuple[str, ...]
    """Reasons why the run is not valid; empty if it is."""

    @property
    def is_valid(self) -> bool:
        """Whether the run is done, and its artifact fits the budget, decodes to the measured tensors and is the file scored.

        And the score, if there is one, has no problem of its own (`EvaluationRecord.problems`).
        """
        return not self.problems


@dataclass(frozen=True, slots=True)
class Known:
    """Packings and scores of all runs, by SHA-256 of the artifact, newest last."""

    packings: dict[str, list[tuple[Run, Packing]]]
    scores: dict[str, list[tuple[Run, EvaluationRecord]]]

    def packing_of(self, sha256: str) -> tuple[Packing | None, list[str]]:
        """Return the newest packing of an artifact without a problem, else the newest one and its problems."""
        found = [(packing, run_problems(run) + packing_problems(run.record)) for run, packing in self.packings[sha256]]
        if not found:
            return None, [UNKNOWN_PACKING]
        return next((known for known in reversed(found) if not known[1]), found[-1])


def join(runs: Iterable[Run]) -> list[JoinedRun]:
    """Return every run with the packing and the score of its artifact, in the same order."""
    runs = list(runs)
    known = know(runs)
    return [_joined(run, known) for run in runs]


def know(runs: Iterable[Run]) -> Known:
    """Return all packings, and the scores of runs that are done and whose file was the same before and after it was scored."""
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
    """Return the scores that are of the run's artifact, by its SHA-256."""
    return [e for e in record.evaluations if record.artifact and e.target_sha256 == record.artifact.sha256]


def newest_score(scores: Sequence[EvaluationRecord]) -> EvaluationRecord | None:
    """Return the last score without a problem, else the last one; None if there is none."""
    return next((score for score in reversed(scores) if not score.problems), scores[-1] if scores else None)


def is_packed(record: RunRecord) -> bool:
    """Whether the run's artifact is a packed file, to which a budget applies."""
    return record.packing is not None or (record.artifact is not None and record.artifact.path.endswith(PACKED_SUFFIX))


def run_problems(run: Run) -> list[str]:
    """Return the problems of a run itself: how it ended, and what its command found."""
    status, record = run.status, run.record
    ended = [] if status == DONE else [record.error if status == FAILED and record.error else status]
    return [*ended, *record.problems]


def packing_problems(record: RunRecord) -> list[str]:
    """Return the problems of the packing of a run; none if it packed nothing."""
    packing, problems = record.packing, []
    if packing is None:
        return []
    if (over := packing.total_bytes - packing.budget_bytes) > 0:
        problems.append(f"{over:,} bytes over the budget")
    if not packing.is_decoded_equal:
        problems.append("the file was not decoded to the measured tensors")
    if record.artifact and record.artifact.sha256 != packing.artifact_sha256:
        problems.append("the artifact is not the file that was decoded")
    elif record.artifact and record.artifact.bytes != packing.artifact_bytes:
        problems.append(f"the artifact has {record.artifact.bytes:,} bytes, its packing says {packing.artifact_bytes:,}")
    return problems


def score_problems(record: RunRecord) -> list[str]:
    """Return the problem of a run whose own score is not of its artifact."""
    own = own_scores(record)
    if record.evaluations and not own:
        return ["the score is of another file than the artifact"]
    if record.artifact and any(score.target_bytes != record.artifact.bytes for score in own):
        return [f"the artifact has {record.artifact.bytes:,} bytes, its score names another number"]
    return []


def _joined(run: Run, known: Known) -> JoinedRun:
    record = run.record
    own = own_scores(record) or list(record.evaluations)
    packing, packing_lines = record.packing, packing_problems(record)
    if packing is None and record.artifact:
        packing, packing_lines = known.packing_of(record.artifact.sha256)
        if not is_packed(record) and packing is None:
            packing_lines = []  # float weights: no budget applies
    others = [score for _, score in known.scores[packing.artifact_sha256]] if packing else []
    evaluation = own[-1] if own else newest_score(others)
    scored = evaluation.problems if evaluation else ()
    problems = [*run_problems(run), *packing_lines, *score_problems(record), *scored]
    return JoinedRun(run, run.status, packing, evaluation, tuple(problems))
