"""Write a submission folder for the challenge: README.md, submission.json, a log a seed, requirements.txt, train_gpt.py.

Every figure comes from records and files; sizes are those of the files that are written.
"""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab.errors import BudgetError, ConfigError
from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.files import whole_folder
from quantlab.share.number_checks import CAP_BYTES, SECONDS
from quantlab.share.significance import MARGIN_NATS, margin_bpb
from quantlab.share.train_script import NAME
from quantlab.share.wrapped_code import WrappedCode

FOLDER_NAME = re.compile(r"\d{4}-\d{2}-\d{2}_[A-Za-z0-9][A-Za-z0-9._+-]*")
FILES = re.compile(r"README\.md|submission\.json|requirements\.txt|train_gpt\.py|train_seed\d+\.log")
LINE = "=" * 100
"""What the challenge's script writes between its source and the results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Author:
    """Who submits, and under what name."""

    author: str
    github_id: str
    name: str
    blurb: str = ""
    track: str = "non_record_16mb"

    def __post_init__(self) -> None:
        for key in ("author", "github_id", "name"):
            if not getattr(self, key).strip():
                raise ConfigError(f"submission.json needs {key}", hint=f"pass --{key.replace('_id', '')}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRun:
    """One training with its artifact and its score."""

    seed: int
    run: str
    """Name of the recorded run."""
    artifact_bytes: int
    artifact_sha256: str
    float_bytes: int
    """Bytes of the trained weights before packing; 0 if they are not there any more."""
    score: EvaluationRecord
    train_log: str
    """The trainer's log."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage."""
    clock_seconds: float | None = None
    """Seconds inside the pipeline's clock; None without one."""

    @property
    def bpb(self) -> float:
        """Bits per byte of the artifact."""
        return self.score.val_bpb or math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Everything that a submission folder says."""

    author: Author
    date: str
    runs: Sequence[SeedRun]
    script: WrappedCode
    hardware: str
    versions: Mapping[str, str]
    world_size: int
    cap_bytes: int = CAP_BYTES

    @property
    def largest(self) -> int:
        """Bytes of code and the largest artifact."""
        return len(self.script.code) + max(run.artifact_bytes for run in self.runs)


def write_submission(facts: Facts, folder: Path, *, force: bool = False) -> list[Path]:
    """Write the folder whole or not at all; return its files.

    Raises:
        ConfigError: the folder's name is not DATE_NAME, it exists, or a score has no bits per byte.
        BudgetError: code and the largest artifact exceed the cap.
    """
    if not FOLDER_NAME.fullmatch(folder.name):
        raise ConfigError(f"submission folder {folder.name!r} must be named like 2026-12-01_Name", hint="-o records/DATE_NAME")
    if facts.largest > facts.cap_bytes:
        over = facts.largest - facts.cap_bytes
        raise BudgetError(
            f"artifact and {NAME} are {facts.largest:,} bytes, {over:,} over {facts.cap_bytes:,}",
            smallest_bytes=facts.largest,
            hint=f"pack again with pack.budget lower by {over:,}",
        )
    if missing := [run.run for run in facts.runs if run.score.val_bpb is None]:
        raise ConfigError(f"run {missing[0]} has no bits per byte", hint="score it with a tokenizer")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder, replaceable=FILES, force=force) as partial:
        (partial / NAME).write_bytes(facts.script.code)
        (partial / "submission.json").write_text(json.dumps(claims(facts), indent=2) + "\n")
        (partial / "requirements.txt").write_text(_requirements(facts))
        for run in facts.runs:
            (partial / f"train_seed{run.seed}.log").write_text(log_text(facts, run))
        (partial / "README.md").write_text(readme(facts))
    return sorted(folder.resolve().iterdir())


def claims(facts: Facts) -> dict[str, Any]:
    """Return submission.json: the fields that records of the challenge have."""
    about, scores = facts.author, [run.bpb for run in facts.runs]
    losses = [run.score.val_loss for run in facts.runs]
    found: dict[str, Any] = {
        "author": about.author,
        "github_id": about.github_id,
        "name": about.name,
        "blurb": about.blurb,
        "date": facts.date,
        "track": about.track,
        "val_loss": round(statistics.fmean(losses), 8),
        "val_bpb": round(statistics.fmean(scores), 8),
        "seeds": [run.seed for run in facts.runs],
        "seed_results": {str(run.seed): _seed_result(run) for run in facts.runs},
        "bytes_total": facts.largest,
        "bytes_code": len(facts.script.code),
        "artifact_bytes_max": facts.largest,
        "hardware": facts.hardware,
        "pytorch_version": facts.versions.get("torch", ""),
        "quantlab_version": facts.versions.get("quantlab", ""),
        "compliance": compliance(facts),
    }
    if len(scores) > 1:
        found |= {"val_loss_std": round(statistics.stdev(losses), 8), "val_bpb_std": round(statistics.stdev(scores), 8)}
    return found


def _seed_result(run: SeedRun) -> dict[str, Any]:
    found: dict[str, Any] = {"val_loss": run.score.val_loss, "val_bpb": run.bpb, "artifact_bytes": run.artifact_bytes}
    found |= {"artifact_sha256": run.artifact_sha256, "run": run.run}
    if "evaluate" in run.seconds:
        found["eval_time_s"] = round(run.seconds["evaluate"], 1)
    if run.clock_seconds is not None:
        found["train_time_s"] = round(run.clock_seconds, 1)
    return found


def compliance(facts: Facts) -> dict[str, bool | None]:
    """Return what was measured of the rules; None is not known."""
    clocks = [run.clock_seconds for run in facts.runs]
    evaluated = [run.seconds.get("evaluate") for run in facts.runs]
    return {
        "artifact_under_cap": facts.largest <= facts.cap_bytes,
        "decoded_by_shipped_script": True,  # write_submission is called after prove_decoding
        "scores_passed_their_probes": all(not run.score.problems for run in facts.runs),
        "whole_public_split": all(bool(run.score.split) and run.score.bytes_match is not False for run in facts.runs),
        "train_calibrate_pack_within_600_s": None if None in clocks else all(c <= SECONDS for c in clocks if c is not None),
        "evaluation_within_600_s": None if None in evaluated else all(s <= SECONDS for s in evaluated if s is not None),
        "ran_on_8_gpus": facts.world_size == 8,
    }


def log_text(facts: Facts, run: SeedRun) -> str:
    """Return the log of one seed in the challenge's dialect: the source, the trainer's lines, sizes, and the score."""
    code, score = len(facts.script.code), run.score
    seconds = 1000 * run.seconds.get("evaluate", 0.0)
    label, total = "final_qlab_roundtrip", code + run.artifact_bytes
    lines = [
        facts.script.source.rstrip("\n"),
        LINE,
        *(f"{name} {version}" for name, version in facts.versions.items()),
        LINE,
        f"val_loader:split {score.split or 'not a public one'} documents:{score.data.documents} tokens:{score.data.tokens}",
        f"world_size:{facts.world_size} grad_accum_steps:{max(8 // facts.world_size, 1)}",
        f"seed:{run.seed}",
        run.train_log.rstrip("\n"),
        *([f"Serialized model: {run.float_bytes} bytes"] if run.float_bytes else []),
        f"Code size: {code} bytes",
        f"Serialized model quantized+qlab: {run.artifact_bytes} bytes",
        f"Total submission size quantized+qlab: {total} bytes",
        *(f"stage {name}: {taken:.1f} s" for name, taken in run.seconds.items()),
        f"{label} val_loss:{score.val_loss:.4f} val_bpb:{run.bpb:.4f} eval_time:{seconds:.0f}ms",
        f"{label}_exact val_loss:{score.val_loss:.8f} val_bpb:{run.bpb:.8f}",
    ]
    return "\n".join(lines) + "\n"


def readme(facts: Facts) -> str:
    """Return README.md: scores by seed, sizes, how they were checked, how to repeat them."""
    scores = [run.bpb for run in facts.runs]
    spread = f", standard deviation {statistics.stdev(scores):.5f}" if len(scores) > 1 else ""
    data = facts.runs[0].score.data
    ratio = data.bytes / data.tokens if data.tokens and data.bytes else 0.0
    coder = f"minified, {facts.script.coder}, base85" if facts.script.is_minified else f"{facts.script.coder}, base85"
    lines = [
        f"# {facts.author.name}\n",
        *([facts.author.blurb + "\n"] if facts.author.blurb else []),
        f"val_bpb {statistics.fmean(scores):.5f} (mean of {len(scores)} seeds{spread}); at most {facts.largest:,} of "
        f"{facts.cap_bytes:,} bytes.\n",
        "| seed | val_loss | val_bpb | artifact bytes | with code | evaluation |",
        "|---:|---:|---:|---:|---:|---:|",
        *(_row(run, len(facts.script.code)) for run in facts.runs),
        f"\nScored: {data.tokens:,} tokens, {data.bytes:,} bytes, {data.documents:,} documents, mode {data.mode}, at most "
        f"{data.seq_len:,} tokens of context, stride {data.stride}. Hardware: {facts.hardware}.",
        *([f"{MARGIN_NATS} nats per token are {margin_bpb(ratio):.5f} BPB here."] if ratio else []),
        "\n## What was checked\n",
        *(f"- {key.replace('_', ' ')}: {_answer(value)}" for key, value in compliance(facts).items()),
        f"\n`{NAME}` is {len(facts.script.code):,} bytes ({coder}); these bytes are counted. It was run in a fresh process for",
        "every seed's artifact, and decoded each to the tensors that were scored.\n",
        "## Repeat it\n",
        f"```\npip install -r requirements.txt\nSEED={facts.runs[0].seed} python {NAME}",
        f"python {NAME} decode model.qlab state.pt\n```",
    ]
    return "\n".join(lines) + "\n"


def _row(run: SeedRun, code: int) -> str:
    taken = f"{run.seconds['evaluate']:.0f} s" if "evaluate" in run.seconds else ""
    sizes = f"{run.artifact_bytes:,} | {run.artifact_bytes + code:,}"
    return f"| {run.seed} | {run.score.val_loss:.5f} | {run.bpb:.5f} | {sizes} | {taken} |"


def _answer(value: bool | None) -> str:
    return "not known" if value is None else "yes" if value else "no"


def _requirements(facts: Facts) -> str:
    names = {"quantlab": "quantlab-llm", "torch": "torch", "numpy": "numpy", "brotli": "brotli"}
    return "".join(f"{pip}=={_public(facts.versions[name])}\n" for name, pip in names.items() if name in facts.versions)


def _public(version: str) -> str:
    """Return a version without the build that an index does not have, as +cpu."""
    return version.partition("+")[0]
