"""Train, pack and prove a small model in minutes, with nothing but what ships with Python."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.calib.sources import CalibrationConfig
from quantlab.errors import ConfigError
from quantlab.files import write_whole
from quantlab.fresh_process import run_module
from quantlab.pipeline.models import load_checkpoint, load_tokenizer
from quantlab.pipeline.pack import PackConfig, pack
from quantlab.pipeline.progress import Progress, silent
from quantlab.pipeline.train import TOKENIZER_NAME, VAL_NAME, train_to_folder
from quantlab.pipeline.train_config import read_train_config
from quantlab.report.packing import PackReport
from quantlab.trainer.run import CHECKPOINT_NAME, MODEL_NAME

TRAIN_SHARE = 0.55
"""Of the minutes; the rest goes to the tokenizer, calibration, the search and two evaluations."""
CALIBRATION_TOKENS = 32768


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The report of the packing and the figures of summary.json."""

    report: PackReport
    summary: dict[str, Any]


def demo(out: Path, *, minutes: float, budget_bytes: int, progress: Progress = silent) -> DemoResult:
    """Fill the folder `out` with a trained model, its artifact, its report and summary.json.

    Both scores come from `quantlab eval` run as fresh processes on the files in `out`.
    """
    if not 0.1 <= minutes <= 600:
        raise ConfigError(f"minutes must be 0.1 to 600, got {minutes:g}")
    _refuse_foreign(out)
    started = time.perf_counter()
    config, data = read_train_config("demo", changes=[f"max_seconds={60 * minutes * TRAIN_SHARE}"])
    result = train_to_folder(config, data, out, progress=progress)
    loaded = load_checkpoint(result.model_path, None)
    tokenizer = load_tokenizer(out / TOKENIZER_NAME, loaded)
    calibration = CalibrationConfig(tokens=CALIBRATION_TOKENS, seq_len=config.seq_len)
    packing = PackConfig(budget_bytes=budget_bytes, calibration=calibration)
    artifact = out / "model.qlab"
    report_path = out / "model.report.json"
    report = pack(
        loaded, packing, artifact, checkpoint=result.model_path, report=report_path, tokenizer=tokenizer, progress=progress
    )
    before, after = (_score(target, out, config.seq_len, progress) for target in (result.model_path, artifact))
    summary = {
        "fp_bpb": before["val_bpb"],
        "packed_bpb": after["val_bpb"],
        "total_bytes": report.total_bytes,
        "budget_bytes": report.budget_bytes,
        "seconds": round(time.perf_counter() - started, 1),
        "fp_bytes": result.model_path.stat().st_size,
        "n_params": report.n_params,
        "bpw": report.bpw,
        "train_steps": result.steps,
        "tokens": after["tokens"],
        "bytes": after["bytes"],
    }
    write_whole(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    return DemoResult(report, summary)


def _score(target: Path, out: Path, seq_len: int, progress: Progress) -> dict[str, Any]:
    """What a user gets who types `quantlab eval` for this file."""
    progress(f"evaluate {target.name}", 0, 1)
    data = ["--tokens", str(out / VAL_NAME), "--tokenizer", str(out / TOKENIZER_NAME), "--seq-len", str(seq_len)]
    score: dict[str, Any] = json.loads(run_module("quantlab", "eval", str(target), *data, "--json"))
    progress(f"evaluate {target.name}", 1, 1)
    return score


def _refuse_foreign(out: Path) -> None:
    """Raise ConfigError if the folder holds files that a demo does not write."""
    ours = {MODEL_NAME, CHECKPOINT_NAME, TOKENIZER_NAME, VAL_NAME, "model.qlab", "model.report.json", "summary.json"}
    foreign = sorted({f.name for f in out.iterdir()} - ours) if out.is_dir() else []
    if foreign or (out.exists() and not out.is_dir()):
        raise ConfigError(f"{out} is no folder that a demo can fill: it has {foreign[0] if foreign else 'content'}")
