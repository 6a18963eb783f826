"""Build a submission for the challenge from recorded runs of one pipeline that differ in their seed alone."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import date as calendar_date
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, QuantlabError
from quantlab.pipeline.pipeline_text import pipeline_text
from quantlab.progress import Progress, silent
from quantlab.report.pack_report import PackReport, read_report
from quantlab.runs.store import Run, join
from quantlab.runs.work_files import artifact_of, training_of
from quantlab.share.number_checks import CAP_BYTES
from quantlab.share.submission_kit import Author, Facts, SeedRun, write_submission
from quantlab.share.train_script import prove_decoding, train_script, wrapped_script
from quantlab.trainer.training_log import LOG_NAME
from quantlab.trainer.training_loop import MODEL_NAME


def build_submission(
    runs: Sequence[Run],
    all_runs: Sequence[Run],
    folder: Path,
    author: Author,
    *,
    cap_bytes: int = CAP_BYTES,
    force: bool = False,
    progress: Progress = silent,
) -> list[Path]:
    """Write a submission folder, and return its files. The script is proved on every artifact before anything is written.

    Args:
        runs: valid runs of `quantlab run`, one a seed.
        all_runs: all runs of the store, in which packings and scores are found.
        folder: named DATE_NAME.
    Raises:
        ConfigError: a run is of another kind, not valid, or differs in more than its seed; or the folder exists.
        BudgetError: code and the largest artifact exceed the cap.
        QuantlabError: an artifact is gone or changed, or the script does not decode it to the measured tensors.
    """
    seeds = [_checked(run, all_runs) for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"two runs have the same seed: {', '.join(map(str, seeds))}", hint="name one run a seed")
    first = runs[0].record
    for run in runs[1:]:
        _check_same(runs[0], run)
    script = wrapped_script(train_script(pipeline_text(first.options), seeds[0]))
    found = []
    for number, (run, seed) in enumerate(zip(runs, seeds, strict=True)):
        progress("prove the script", number, len(runs))
        prove_decoding(script.code, artifact_of(run), _report(run).tensors_sha256)
        found.append(_seed_run(run, seed))
    progress("prove the script", len(runs), len(runs))
    processes = int(first.options["train"].get("processes", 1))
    facts = Facts(
        author=author,
        date=folder.name[:10] if folder.name[:4].isdigit() else f"{calendar_date.today():%Y-%m-%d}",
        runs=found,
        script=script,
        hardware=f"{processes}x {found[0].score.device or 'unknown device'}",
        versions=first.versions,
        world_size=processes,
        cap_bytes=cap_bytes,
    )
    return write_submission(facts, folder, force=force)


def _checked(run: Run, all_runs: Sequence[Run]) -> int:
    """Return the seed of a run that may be submitted."""
    record = run.record
    if record.kind != "run" or not isinstance(record.options.get("train"), Mapping):
        raise ConfigError(f"run {run.name} is no pipeline that trains", hint="name runs of quantlab run with a table [train]")
    (joined,) = [joined for joined in join(all_runs) if joined.run.name == run.name]
    if joined.problems:
        raise ConfigError(f"run {run.name} is not valid: {joined.problems[0]}", hint="see quantlab runs show")
    if joined.evaluation is None or "train" not in record.seeds:
        raise ConfigError(f"run {run.name} has no score or no seed of training", hint="give the pipeline a text to score")
    return record.seeds["train"]


def _check_same(one: Run, other: Run) -> None:
    """Raise ConfigError unless two runs are one pipeline but for seed, place and name of the cell."""
    left, right = (_without_seed(run.record.options) for run in (one, other))
    if left != right:
        key = next(key for key in _keys(left, right))
        raise ConfigError(
            f"runs {one.name} and {other.name} differ in {key}, not in the seed alone", hint="see quantlab runs diff"
        )


def _without_seed(options: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = deepcopy({key: value for key, value in options.items() if key not in ("cell", "out", "pipeline")})
    kept["train"]["config"].pop("seed", None)
    return kept


def _keys(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ."""
    found = []
    for key in dict.fromkeys([*left, *right]):
        a, b = left.get(key), right.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _keys(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(prefix + key)
    return found


def _seed_run(run: Run, seed: int) -> SeedRun:
    record, clock = run.record, run.record.metrics.get("clock") or {}
    stages = {stage["stage"]: stage for stage in record.metrics.get("stages", ())}
    trained = training_of(run)
    assert trained is not None  # _checked
    log, model = trained / LOG_NAME, trained / MODEL_NAME
    if not log.is_file():
        raise QuantlabError(f"run {run.name}: the log of its training is gone: {log}")
    artifact = record.artifact
    assert artifact is not None  # _checked
    return SeedRun(
        seed=seed,
        run=run.name,
        artifact_bytes=artifact.bytes,
        artifact_sha256=artifact.sha256,
        float_bytes=model.stat().st_size if model.is_file() else 0,
        score=record.evaluations[-1],
        train_log=log.read_text("utf-8", "replace"),
        seconds={name: float(stage["seconds"]) for name, stage in stages.items()},
        clock_seconds=sum(clock.get("inside", {}).values()) if clock else None,
    )


def _report(run: Run) -> PackReport:
    """Return the packing's report, of which the run folder has a copy."""
    copies = [file.copy for file in run.record.files if file.copy.endswith(".report.json")]
    if not copies or Path(copies[0]).name != copies[0]:
        raise QuantlabError(f"run {run.name} has no report of its packing")
    return read_report(run.folder / copies[0])
