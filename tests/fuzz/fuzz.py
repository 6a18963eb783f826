"""Attack every reader of quantlab with damaged files; or run saved cases again.

    python tests/fuzz/fuzz.py                 FUZZ_SECONDS (60) and FUZZ_SEED (0) from the environment; make fuzz does the same
    python tests/fuzz/fuzz.py FOLDER ...      folders of saved cases, as build/fuzz/artifact-0-1234

The last line says cases, findings and seed; the exit code is 1 if there is a finding.
"""

import json
import logging
import os
import sys
import warnings
from pathlib import Path

from artifact_targets import AlteredTarget, ArtifactTarget
from file_targets import CheckpointTarget, ShardTarget, StatisticsTarget, TransformersTarget
from harness import Outcome, Session, Target, problem_of, scratch_folder
from javascript_reader import node
from record_targets import ConfigTarget, ReportTarget, RunsTarget
from work_target import WorkTarget

FINDINGS = Path("build/fuzz")
KINDS = (
    *(AlteredTarget, ArtifactTarget, StatisticsTarget, ShardTarget, CheckpointTarget, RunsTarget, ReportTarget, ConfigTarget),
    *(WorkTarget, TransformersTarget),
)


def all_targets() -> list[Target]:
    """Return every target that can run here; the samples are made."""
    warnings.simplefilter("ignore")  # torch and numpy warn of what damaged files hold
    logging.disable(logging.WARNING)
    if node() is None:
        print("fuzz: no node of version 20 or later, the JavaScript reader is left out", file=sys.stderr)
    return [kind() for kind in KINDS]


def last_line(outcome: Outcome, seed: int) -> str:
    """Return the line that ends a session."""
    return f"fuzz: {outcome.total:,} cases, {outcome.findings:,} findings, seed {seed}, {outcome.seconds:.0f} s"


def replay(folders: list[str]) -> int:
    """Run saved cases again, print what each finds, and return the exit code."""
    targets, bad = {target.name: target for target in all_targets()}, 0
    for folder in map(Path, folders):
        files = {str(p.relative_to(folder / "files")): p.read_bytes() for p in (folder / "files").rglob("*") if p.is_file()}
        problem = problem_of(targets[folder.name.partition("-")[0]], files, scratch_folder())
        print(f"{folder}: {problem or 'nothing found'}")
        bad += bool(problem)
    return int(bad > 0)


def main(arguments: list[str]) -> int:
    """Run a session, or the saved cases that are named; return the exit code."""
    if arguments:
        return replay(arguments)
    seed, seconds = int(os.environ.get("FUZZ_SEED", "0")), float(os.environ.get("FUZZ_SECONDS", "60"))
    most = int(os.environ.get("FUZZ_CASES", str(1 << 62)))
    outcome = Session(all_targets(), seed=seed, seconds=seconds, most_cases=most, findings=FINDINGS).run(workers=2)
    print(json.dumps(outcome.cases))
    print(last_line(outcome, seed))
    return int(outcome.findings > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
