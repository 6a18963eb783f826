"""Seconds by stage against the seconds that are allowed.

What a cell came to: the artifact under a plain name, its bytes, its scores, its time, and whether it counts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.errors import BudgetError
from quantlab.evaluation.evaluation_record import EvaluationRecord, read_evaluation
from quantlab.files import write_whole
from quantlab.jobs.train import TOKENIZER_NAME
from quantlab.pipeline.packing_stages import (
    ARTIFACT_NAME,
    DECODER_NAME,
    EVALUATION_NAME,
    PAGE_NAME,
    REPORT_NAME,
    TEXT_NAME,
    Pipeline,
)
from quantlab.pipeline.pipeline_config import ClockOptions
from quantlab.pipeline.read import Cell
from quantlab.pipeline.stage_folder import remove_temporaries
from quantlab.report.pack_report import PackReport, read_report


@dataclass(frozen=True, slots=True)
class StageTime:
    """What one stage took when its result was made, now or in an earlier run."""

    stage: str
    key: str
    is_new: bool
    """Made by this run."""
    seconds: float
    inside_seconds: float
    """Of these, what could count."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Clock:
    """The sum."""

    inside: dict[str, float]
    """Seconds by stage that count."""
    outside: dict[str, float]
    """Seconds by stage that do not."""
    max_seconds: float
    """0: no limit."""

    @property
    def inside_seconds(self) -> float:
        """What is held against the limit."""
        return sum(self.inside.values())

    @property
    def is_over(self) -> bool:
        """Whether the limit is passed."""
        return 0 < self.max_seconds < self.inside_seconds

    def problem(self) -> str:
        """One line: what was allowed, what was taken and by what."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.inside.items())
        over = self.inside_seconds - self.max_seconds
        return f"{self.inside_seconds:.1f} s inside the clock, {self.max_seconds:g} s allowed, over by {over:.1f} s ({parts})"


def clock_of(times: Sequence[StageTime], options: ClockOptions) -> Clock:
    """Sort the stages' seconds into inside and outside."""
    inside = {t.stage: t.inside_seconds for t in times if t.stage in options.inside}
    outside = {t.stage: round(t.seconds - inside.get(t.stage, 0.0), 3) for t in times}
    return Clock(inside, outside, options.max_seconds)


CELLS = "cells"
"""Folder of a matrix' results in the run folder."""
RESULT_NAME = "result.json"
REPORTS = (TEXT_NAME, PAGE_NAME)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One cell."""

    cell: Cell
    times: tuple[StageTime, ...] = ()
    clock: Clock | None = None
    artifact: Path | None = None
    """Under its plain name; None where the budget could not be met."""
    packing: PackReport | None = None
    evaluation: EvaluationRecord | None = None
    files: tuple[Path, ...] = ()
    """What lies beside the artifact."""
    budget_problem: str = ""
    """Why there is no artifact."""

    @property
    def problems(self) -> list[str]:
        """Why the result does not count; empty if it is valid."""
        late = self.clock.problem() if self.clock and self.clock.is_over else ""
        return [problem for problem in (self.budget_problem, late) if problem]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        packing, score = self.packing, self.evaluation
        against = score.against if score else None
        return {
            "cell": self.cell.name,
            "values": self.cell.values,
            "artifact": str(self.artifact) if self.artifact else None,
            "budget_bytes": self.cell.config.pack.budget_bytes,
            "total_bytes": packing.total_bytes if packing else None,
            "artifact_bytes": packing.artifact_bytes if packing else None,
            "code_bytes": packing.code_bytes if packing else None,
            "artifact_sha256": packing.artifact_sha256 if packing else None,
            "bpb_before": against.val_bpb if against else None,
            "bpb_after": score.val_bpb if score else None,
            "kl_mean": against.kl_mean if against else None,
            "valid": not self.problems,
            "problems": self.problems,
            "stages": [asdict(time) for time in self.times],
            "clock": asdict(self.clock) if self.clock else None,
        }


def failed_result(cell: Cell, error: BudgetError) -> Result:
    """Of a cell whose budget cannot be met."""
    return Result(cell=cell, budget_problem=str(error))


def result_of(cell: Cell, pipeline: Pipeline, root: Path, times: Sequence[StageTime]) -> Result:
    """Read what the stages have made, and put it where people look for it."""
    packed, reported = pipeline.pack.stage.folder(root), pipeline.report.stage.folder(root)
    scored = pipeline.evaluate.evaluation(root) if pipeline.evaluate else None
    tokenizer = pipeline.pack.subject.tokenizer(root)
    sources = {name: packed / name for name in (ARTIFACT_NAME, REPORT_NAME, DECODER_NAME)}
    sources |= {name: reported / name for name in REPORTS}
    sources |= {EVALUATION_NAME: scored} if scored else {}
    sources |= {TOKENIZER_NAME: tokenizer} if tokenizer else {}
    place = root / CELLS / cell.name if cell.name else root
    place.mkdir(parents=True, exist_ok=True)
    remove_temporaries(place)
    return Result(
        cell=cell,
        times=tuple(times),
        clock=clock_of(times, cell.config.clock),
        artifact=place / ARTIFACT_NAME,
        packing=read_report(pipeline.pack.report(root)),
        evaluation=read_evaluation(scored) if scored else None,
        files=tuple(_publish(sources, place)),
    )


def write_results(results: Sequence[Result], root: Path) -> None:
    """All cells as one file in the run folder."""
    about = {"producer": f"quantlab {__version__}", "cells": [result.to_dict() for result in results]}
    _write_new(root / RESULT_NAME, (json.dumps(about, indent=2) + "\n").encode())


def _publish(sources: Mapping[str, Path], place: Path) -> Iterator[Path]:
    """Copies, by name: what is done to them does not reach the stages' own files. What is not made any more goes."""
    made = {name: source for name, source in sources.items() if source.is_file()}
    for name in (EVALUATION_NAME, DECODER_NAME, TOKENIZER_NAME, *REPORTS):
        if name not in made:
            (place / name).unlink(missing_ok=True)
    for name, source in made.items():
        _write_new(place / name, source.read_bytes())
        yield place / name


def _write_new(path: Path, data: bytes) -> None:
    """Unless the file has these bytes."""
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)
