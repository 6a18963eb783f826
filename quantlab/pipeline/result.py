"""The result of one cell: the artifact under a plain name, its bytes, its scores, its time, and whether it is valid.

The clock compares the seconds of the stages with those that are allowed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.errors import BudgetError
from quantlab.evaluation.evaluation_record import EvaluationRecord, read_evaluation
from quantlab.files import write_whole
from quantlab.jobs.tokenizers import TOKENIZER_NAME
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

CELLS = "cells"
"""Folder in the output directory that holds the results of a matrix."""
RESULT_NAME = "result.json"


@dataclass(frozen=True, slots=True)
class StageTime:
    """The time that one stage took when its result was made, in this call or an earlier one."""

    stage: str
    key: str
    is_new: bool
    """Whether this call made the result."""
    seconds: float
    inside_seconds: float
    """The part of them that the clock may count."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of all stages, inside and outside the limit."""

    inside: dict[str, float]
    """Seconds that count, by stage."""
    outside: dict[str, float]
    """Seconds that do not count, by stage."""
    max_seconds: float
    """The limit; 0 for none."""

    @property
    def inside_seconds(self) -> float:
        """The sum that is compared with the limit."""
        return sum(self.inside.values())

    @property
    def is_over(self) -> bool:
        """Whether the sum exceeds the limit."""
        return 0 < self.max_seconds < self.inside_seconds

    def problem(self) -> str:
        """Return one line: the seconds that were taken, those that are allowed, and those of each stage."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.inside.items())
        over = self.inside_seconds - self.max_seconds
        return f"{self.inside_seconds:.1f} s inside the clock, {self.max_seconds:g} s allowed, over by {over:.1f} s ({parts})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result of one cell."""

    cell: Cell
    times: tuple[StageTime, ...] = ()
    clock: Clock | None = None
    artifact: Path | None = None
    """The artifact under its plain name; None where the budget could not be met."""
    packing: PackReport | None = None
    evaluation: EvaluationRecord | None = None
    files: tuple[Path, ...] = ()
    """The artifact and the files beside it."""
    budget_problem: str = ""
    """Why there is no artifact."""

    @property
    def problems(self) -> list[str]:
        """Why the result is not valid; empty if it is."""
        return [*self.limit_problems, *(self.evaluation.problems if self.evaluation else ())]

    @property
    def limit_problems(self) -> list[str]:
        """Which of budget and clock the result exceeds."""
        late = self.clock.problem() if self.clock and self.clock.is_over else ""
        return [problem for problem in (self.budget_problem, late) if problem]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
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
    """Return the result of a cell whose budget cannot be met."""
    return Result(cell=cell, budget_problem=str(error))


def result_of(cell: Cell, pipeline: Pipeline, root: Path, times: Sequence[StageTime]) -> Result:
    """Copy what the stages have made to plain names in the output directory, and return it as a result."""
    packed, reported = pipeline.pack.stage.folder(root), pipeline.report.stage.folder(root)
    scored = pipeline.evaluate.evaluation(root) if pipeline.evaluate else None
    sources: dict[str, Path | None] = {name: packed / name for name in (ARTIFACT_NAME, REPORT_NAME, DECODER_NAME)}
    sources |= {name: reported / name for name in (TEXT_NAME, PAGE_NAME)}
    sources |= {EVALUATION_NAME: scored, TOKENIZER_NAME: pipeline.pack.subject.tokenizer(root)}
    place = root / CELLS / cell.name if cell.name else root
    place.mkdir(parents=True, exist_ok=True)
    remove_temporaries(place)
    return Result(
        cell=cell,
        times=tuple(times),
        clock=_clock(times, cell.config.clock),
        artifact=place / ARTIFACT_NAME,
        packing=read_report(pipeline.pack.report(root)),
        evaluation=read_evaluation(scored) if scored else None,
        files=tuple(_publish(sources, place)),
    )


def write_results(results: Sequence[Result], root: Path) -> None:
    """Write all cells as one file in the output directory."""
    about = {"producer": f"quantlab {__version__}", "cells": [result.to_dict() for result in results]}
    write_changed(root / RESULT_NAME, (json.dumps(about, indent=2) + "\n").encode())


def _clock(times: Sequence[StageTime], options: ClockOptions) -> Clock:
    inside = {t.stage: t.inside_seconds for t in times if t.stage in options.inside}
    outside = {t.stage: round(t.seconds - inside.get(t.stage, 0.0), 3) for t in times}
    return Clock(inside, outside, options.max_seconds)


def _publish(sources: Mapping[str, Path | None], place: Path) -> Iterator[Path]:
    """Copy each file that was made under its name and yield the copy; remove copies of those that are not made any more.

    They are copies, so that a change to them does not reach the stages' own files.
    """
    for name, source in sources.items():
        if source is None or not source.is_file():
            (place / name).unlink(missing_ok=True)
        else:
            write_changed(place / name, source.read_bytes())
            yield place / name


def write_changed(path: Path, data: bytes) -> None:
    """Write the file unless it has these bytes already."""
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)
