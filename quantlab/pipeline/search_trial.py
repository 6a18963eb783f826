"""One trial of a search, in a process of its own: it runs the pipeline, records the run, and stores the result."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantlab.child_process import raise_interrupt
from quantlab.errors import QuantlabError
from quantlab.pipeline.execute import run_pipeline
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.packing_stages import Pipeline, build
from quantlab.pipeline.read import Cell
from quantlab.pipeline.recorded import recorded
from quantlab.pipeline.result import Result
from quantlab.pipeline.search_space import read_space
from quantlab.pipeline.search_store import DONE, FAILED, Trial, TrialStore
from quantlab.pipeline.shared_stages import SharedStages
from quantlab.runs.recording import Recorder
from quantlab.trainer.training_log import METRICS_NAME

OUT, STAGES = "out", "stages"
"""Folders: the output directory of one trial, and the stages that all trials of a store share."""


def run_trial(request: dict[str, Any]) -> Trial:
    """Run a trial and write it into its store: done with its score, or failed with the line that says why.

    Args:
        request: space (file), out (folder of the search), number, runs (folder of runs; empty for none), command.
    """
    store, space = TrialStore(Path(request["out"])), read_space(Path(request["space"]))
    trial = next(trial for trial in store.all() if trial.number == request["number"])
    started, names = time.monotonic(), [trial.run]
    root = store.place(trial.number) / OUT
    try:
        cell = space.cell(trial.values)
        recorder = _recorder(request)
        result = _run(cell, root, SharedStages(store.folder / STAGES), recorder, space.pipeline, names)
        trial = _with_result(trial, result)
    except QuantlabError as error:
        trial = replace(trial, state=FAILED, problem=" ".join(str(error).split()))
    seconds = trial.seconds + time.monotonic() - started
    trial = replace(trial, seconds=round(seconds, 3), run=names[-1], curve=curve_of(root))
    store.write(trial)
    return trial


def _recorder(request: dict[str, Any]) -> Recorder:
    if not request["runs"]:
        return Recorder()
    folder = Path(request["runs"])
    return Recorder(folder=folder, is_required=True, command=tuple(request["command"]), environment=os.environ)


def _run(cell: Cell, root: Path, shared: SharedStages, recorder: Recorder, file: Path, names: list[str]) -> Result:
    """Run the pipeline of one trial; finished stages are shared as soon as the next one begins."""
    root.parent.mkdir(parents=True, exist_ok=True)
    pipeline = build(cell.config, FileHashes())
    with shared.making(pipeline):
        for other in root.parent.parent.glob(f"*/{OUT}"):  # a killed trial may have finished a stage and not shared it
            shared.give(pipeline, other)
        _prepare(root, pipeline, shared)
        results = run_pipeline(
            [cell],
            root,
            note=lambda text: shared.give(pipeline, root),
            recording=lambda one: recorded(recorder, file, root, one, names.append),
        )
        shared.give(pipeline, root)
    return results[0]


def _prepare(root: Path, pipeline: Pipeline, shared: SharedStages) -> None:
    """Make the output directory one of a pipeline, and put the stages into it that others have made."""
    from quantlab.pipeline.stage_folder import locked_folder

    with locked_folder(root):
        shared.take(pipeline, root)


def _with_result(trial: Trial, result: Result) -> Trial:
    total = result.packing.total_bytes if result.packing else None
    score = result.evaluation.val_bpb if result.evaluation else None
    problems = [*result.problems, *([] if score is not None else ["not scored"])]
    if problems:
        return replace(trial, state=FAILED, total_bytes=total, problem=problems[0])
    return replace(trial, state=DONE, total_bytes=total, bpb=score, problem="")


def curve_of(root: Path) -> tuple[tuple[int, float], ...]:
    """Return step and bits per byte of each validation of the training in an output directory; a cut last line is left out."""
    found: dict[int, float] = {}
    for path in sorted(root.glob(f"train-*/{METRICS_NAME}")):
        for line in path.read_text("utf-8", "replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("kind") == "validation":
                found[int(record["step"])] = float(record["bpb"])
    return tuple(sorted(found.items()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, raise_interrupt)
    run_trial(json.loads(sys.argv[1]))
