"""Bits per byte against bytes: candidates that are scored on the same data, the best of them, and their lower envelope."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantlab.errors import BudgetError, ConfigError, QuantlabError
from quantlab.evaluation.evaluation_record import EvaluationData, EvaluationRecord
from quantlab.runs.store import (
    UNKNOWN_PACKING,
    Run,
    is_packed,
    know,
    newest_score,
    own_scores,
    packing_problems,
    run_problems,
    score_problems,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An artifact with its size and one score."""

    run: str
    """Name of the run that packed the artifact, else of the run that scored it."""
    artifact: str
    total_bytes: int
    """Bytes of artifact and counted code."""
    budget_bytes: int | None
    """None if no packing is recorded."""
    evaluation: EvaluationRecord
    problems: tuple[str, ...] = ()
    method: str = ""
    """Method of the packing; empty where none is recorded."""
    started: str = ""
    """Time in UTC at which the run began."""

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        bpb = self.evaluation.val_bpb
        assert bpb is not None  # candidates() leaves out the others
        return bpb

    def to_dict(self) -> dict[str, Any]:
        """Return the candidate as plain JSON types."""
        mine = {"run": self.run, "bpb": self.bpb, "bytes": self.total_bytes, "budget": self.budget_bytes}
        return mine | {"artifact": self.artifact, "data": data_id(self.evaluation.data), "problems": list(self.problems)}


def candidates(runs: Iterable[Run]) -> list[Candidate]:
    """Return every packing with its newest score on each evaluation data, and every score of an artifact without a packing.

    Scores without bits per byte, of tokens whose bytes could not be counted, are left out.
    """
    runs = list(runs)
    known = know(runs)
    found = [c for run in runs if run.record.packing for c in _packed(run, known.scores[run.record.packing.artifact_sha256])]
    found += [c for run in runs for c in _unpacked(run, known.packings)]
    return [c for c in found if c.evaluation.val_bpb is not None]


def _packed(run: Run, scores: Sequence[tuple[Run, EvaluationRecord]]) -> list[Candidate]:
    packing = run.record.packing
    assert packing is not None
    by_data: dict[EvaluationData, list[EvaluationRecord]] = {}
    for _, evaluation in scores:
        by_data.setdefault(evaluation.data, []).append(evaluation)
    newest = [score for score in map(newest_score, by_data.values()) if score]
    problems = (*run_problems(run), *packing_problems(run.record))
    return [
        Candidate(
            run=run.name,
            artifact=run.record.artifact.path if run.record.artifact else evaluation.target,
            total_bytes=packing.total_bytes,
            budget_bytes=packing.budget_bytes,
            evaluation=evaluation,
            problems=(*problems, *evaluation.problems),
            method=packing.method,
            started=run.record.started,
        )
        for evaluation in newest
    ]


def _unpacked(run: Run, packings: Mapping[str, Any]) -> list[Candidate]:
    """Return scores that are not valid: of a packed file without a recorded packing, or of another file than the run's."""
    record, own = run.record, own_scores(run.record)
    if not is_packed(record):
        return []
    without = [e for e in own if not packings.get(e.target_sha256)] if own else record.evaluations
    return [
        Candidate(
            run=run.name,
            artifact=evaluation.target,
            total_bytes=evaluation.target_bytes,
            budget_bytes=None,
            evaluation=evaluation,
            problems=(*run_problems(run), *(score_problems(record) or [UNKNOWN_PACKING]), *evaluation.problems),
            started=record.started,
        )
        for evaluation in without
    ]


def data_id(data: EvaluationData) -> str:
    """Return eight hex digits that name the data and how it is scored."""
    return hashlib.sha256(json.dumps(asdict(data), sort_keys=True).encode()).hexdigest()[:8]


def describe_data(data: EvaluationData) -> str:
    """Return the data in a few words."""
    stride = "" if data.mode == "chunked" else f", stride {data.stride}"
    return f"{data_id(data)}: {data.tokens:,} tokens, {data.bytes:,} bytes, {data.mode}, sequences of {data.seq_len}{stride}"


def by_data(found: Iterable[Candidate]) -> dict[EvaluationData, list[Candidate]]:
    """Return the candidates by evaluation data, the largest group first: only scores in one group can be compared."""
    groups: dict[EvaluationData, list[Candidate]] = {}
    for candidate in found:
        groups.setdefault(candidate.evaluation.data, []).append(candidate)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), data_id(item[0]))))


def one_group(groups: dict[EvaluationData, list[Candidate]], wanted: str | None) -> tuple[EvaluationData, list[Candidate]]:
    """Return the group whose id begins with `wanted`, or without `wanted` the only group.

    Raises:
        QuantlabError: there is no group.
        ConfigError: there are several groups, or none with that id.
    """
    if not groups:
        raise QuantlabError("no run has the score of a packed model", hint="score one with quantlab eval")
    found = [data for data in groups if data_id(data).startswith(wanted or "")]
    if len(found) == 1:
        return found[0], groups[found[0]]
    known = ", ".join(f"{data_id(data)} ({len(group)})" for data, group in groups.items())
    if wanted is None:
        raise ConfigError(f"scores on {len(groups)} evaluation data cannot be mixed: {known}", hint="choose one with --data")
    raise ConfigError(f"--data must name one of {known}, got {wanted!r}")


def best_of(found: Sequence[Candidate], budget_bytes: int | None) -> list[tuple[Candidate, int]]:
    """Return for each evaluation data the valid candidate of lowest bits per byte, and the number of candidates.

    Of equal scores the smaller file is chosen.

    Raises:
        QuantlabError: no candidate is valid.
        BudgetError: no valid candidate has at most `budget_bytes`.
    """
    valid = [c for c in found if not c.problems]
    if not valid:
        raise QuantlabError("no valid run has a score", hint="score one with quantlab eval; see quantlab runs list --all")
    fitting = [c for c in valid if budget_bytes is None or c.total_bytes <= budget_bytes]
    if not fitting and budget_bytes is not None:
        least = min(c.total_bytes for c in valid)
        raise BudgetError(f"no valid run fits {budget_bytes:,} bytes, the smallest has {least:,}", smallest_bytes=least)
    groups = by_data(fitting).values()
    return [(min(group, key=lambda c: (c.bpb, c.total_bytes, c.run)), len(group)) for group in groups]


def lower_envelope(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the undominated points (size, score), by size; of equal points the first is returned.

    A point is dominated if another one is no larger and scores no worse.

    >>> lower_envelope([(3, 1.0), (1, 2.0), (2, 2.5), (2, 1.5)])
    [1, 3, 0]
    """
    envelope: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        if not envelope or points[index][1] < points[envelope[-1]][1]:
            envelope.append(index)
    return envelope
