"""Train, pack and prove a small model in minutes, with nothing but what ships with Python."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.child_process import run_child
from quantlab.errors import ConfigError
from quantlab.evaluation.evaluation_record import EvaluationRecord, read_evaluation, record_path
from quantlab.files import refuse_odd_name, write_whole
from quantlab.jobs.pack import pack
from quantlab.jobs.tokenizers import TOKENIZER_NAME
from quantlab.jobs.train import VAL_NAME, train_to_folder
from quantlab.jobs.train_file import read_train_config
from quantlab.progress import Progress, silent
from quantlab.report.pack_report import PackReport, report_path
from quantlab.trainer.training_log import LOG_NAME, METRICS_NAME
from quantlab.trainer.training_loop import CHECKPOINT_NAME, MODEL_NAME

TRAIN_SHARE = 0.55
"""Share of the minutes that training takes; the rest is for the tokenizer, calibration, the search and the evaluation."""
CALIBRATION_TOKENS = 32768
ARTIFACT_NAME = "model.qlab"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The report of the packing and the figures of summary.json."""

    report: PackReport
    summary: dict[str, Any]


def demo(out: Path, *, minutes: float, budget_bytes: int, progress: Progress = silent) -> DemoResult:
    """Fill the folder `out` with a trained model, its artifact, report and evaluation record, and summary.json.

    Both scores come from one evaluation, by a fresh process on the files in `out`.
    """
    if not 0.1 <= minutes <= 600:
        raise ConfigError(f"minutes must be 0.1 to 600, got {minutes:g}")
    _refuse_foreign(out)
    started = time.perf_counter()
    config, data = read_train_config("demo", changes=[f"max_seconds={60 * minutes * TRAIN_SHARE}"])
    trained = train_to_folder(config, data, out, progress=progress)
    report = pack(
        trained.model_path,
        budget=budget_bytes,
        output=out / ARTIFACT_NAME,
        calib_tokens=CALIBRATION_TOKENS,
        calib_seq_len=config.seq_len,
        tokenizer=out / TOKENIZER_NAME,
        force=True,
        progress=progress,
    )
    record = _score(out / ARTIFACT_NAME, trained.model_path, config.seq_len, progress)
    summary = {
        "fp_bpb": record.against.val_bpb if record.against else None,
        "packed_bpb": record.val_bpb,
        "total_bytes": report.total_bytes,
        "budget_bytes": report.budget_bytes,
        "seconds": round(time.perf_counter() - started, 1),
        "fp_bytes": trained.model_path.stat().st_size,
        "n_params": report.n_params,
        "bpw": report.bpw,
        "train_steps": trained.steps,
        "tokens": record.data.tokens,
        "bytes": record.data.bytes,
    }
    write_whole(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    return DemoResult(report, summary)


def _score(target: Path, checkpoint: Path, seq_len: int, progress: Progress) -> EvaluationRecord:
    """Return the record that a user gets who types `quantlab eval --save` for this file."""
    out = target.parent
    request = {
        "target": str(target),
        "tokens": str(out / VAL_NAME),
        "tokenizer": str(out / TOKENIZER_NAME),
        "seq_len": seq_len,
        "against": str(checkpoint),
        "save": True,
        "force": True,
    }
    run_child("quantlab.jobs.evaluate", request, progress=progress)
    return read_evaluation(record_path(target))


def _refuse_foreign(out: Path) -> None:
    """Raise ConfigError if the folder holds files that a demo does not write, or its name is not UTF-8."""
    refuse_odd_name(out)
    artifact = Path(ARTIFACT_NAME)
    beside = {path.name for path in (artifact, report_path(artifact), record_path(artifact))}
    ours = {MODEL_NAME, CHECKPOINT_NAME, LOG_NAME, METRICS_NAME, TOKENIZER_NAME, VAL_NAME, "summary.json", *beside}
    foreign = sorted({f.name for f in out.iterdir()} - ours) if out.is_dir() else []
    if foreign:
        raise ConfigError(f"output folder {out} holds {foreign[0]}, which no demo wrote", hint="name another with --out")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output folder {out} is a file")
