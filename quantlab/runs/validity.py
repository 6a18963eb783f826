"""Which results count, and what runs say about each other's artifacts.

Packings and scores are joined by the artifact's sha256, never by its name.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from quantlab.report.evaluation import EvaluationRecord
from quantlab.runs.record import DONE, FAILED, Packing, RunRecord
from quantlab.runs.store import Run

PACKED_SUFFIX = ".qlab"
UNKNOWN_PACKING = "no packing of this artifact is recorded"


@dataclass(frozen=True, slots=True)
class Entry:
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


def join(runs: Iterable[Run]) -> list[Entry]:
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


def _entry(run: Run, known: Known) -> Entry:
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
    return Entry(run, run.status, packing, evaluation, tuple(problems))
