"""What one run's folder says in run.json, as checked dataclasses."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import ReportError
from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.fields import read_fields, read_json
from quantlab.report.pack_report import PackReport

RECORD_NAME = "run.json"
VERSION = 1
KINDS = ("train", "pack", "eval", "run")
RUNNING, DONE, FAILED, INTERRUPTED = STATUSES = ("running", "done", "failed", "interrupted")
MOST_BYTES = 1 << 22
"""Of a run.json: a larger file is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRef:
    """A file by its name and content, wherever it lies."""

    path: str
    """As the command was given it; relative to the run's working directory."""
    bytes: int
    sha256: str
    copy: str = ""
    """Name of its copy in the run folder; empty where it was not copied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The weights that went in, or that training made."""

    path: str
    fingerprint: str
    """Of weights and architecture, whatever file they lie in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """What decides whether an artifact counts."""

    artifact_sha256: str
    artifact_bytes: int
    code_bytes: int
    budget_bytes: int
    is_decoded_equal: bool
    """Whether a fresh process decoded the file to the tensors that were measured."""
    method: str = ""
    bpw: float = 0.0
    predicted_kl: float = 0.0
    """Predicted cost, nats per token."""

    @property
    def total_bytes(self) -> int:
        """Artifact and counted code."""
        return self.artifact_bytes + self.code_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """Who writes the run: says whether a run that has no end is still at work."""

    host: str
    pid: int
    birth: int | None = None
    """Clock ticks from boot to the start of the process, where the system says it: tells a reused pid apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Git:
    """State of the working directory's repository."""

    commit: str
    is_dirty: bool
    """Whether tracked files differ from the commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run."""

    version: int = VERSION
    kind: str
    """train, pack, eval or run."""
    status: str
    """running, done, failed or interrupted."""
    started: str
    """UTC, as 2026-07-24T10:15:30.123456Z."""
    process: Process
    ended: str = ""
    seconds: float = 0.0
    error: str = ""
    """The line that the command ended with."""
    exit_code: int | None = None
    command: tuple[str, ...] = ()
    directory: str = ""
    """Where the command ran."""
    options: dict[str, Any] = field(default_factory=dict)
    """As resolved: defaults, presets and --set included."""
    seeds: dict[str, int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git: Git | None = None
    checkpoint: Checkpoint | None = None
    artifact: FileRef | None = None
    """The file that was made, or that was scored: weights for train, else usually a .qlab file."""
    packing: Packing | None = None
    evaluations: tuple[EvaluationRecord, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    """Other results by name."""
    problems: tuple[str, ...] = ()
    """What the command itself found wrong with a result that it wrote: too slow, say."""
    files: tuple[FileRef, ...] = ()
    """What else it left: reports and logs."""

    def to_json(self) -> bytes:
        """The file run.json."""
        return (json.dumps(plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_record(path: Path) -> RunRecord:
    """The record at `path`. ReportError if it is missing, damaged, too large to be one, or of a later version."""
    size = path.stat().st_size if path.is_file() else 0
    if size > MOST_BYTES:
        raise ReportError(f"{path} has {size:,} bytes, a record has at most {MOST_BYTES:,}")
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("version", VERSION) != VERSION:
        raise ReportError(f"{path} has version {raw['version']!r}, this quantlab reads {VERSION}")
    record = read_fields(RunRecord, raw, str(path))
    if record.status not in STATUSES:
        raise ReportError(f"{path}: status must be one of {', '.join(STATUSES)}, got {record.status!r}")
    return record


def packing_of(report: PackReport) -> Packing:
    """What a packing's report says about its validity. There would be no report had the file not decoded equal."""
    return Packing(
        artifact_sha256=report.artifact_sha256,
        artifact_bytes=report.artifact_bytes,
        code_bytes=report.code_bytes,
        budget_bytes=report.budget_bytes,
        is_decoded_equal=bool(report.tensors_sha256),
        method=report.method,
        bpw=report.bpw,
        predicted_kl=report.predicted_kl,
    )


def plain(value: Any) -> Any:
    """`value` in JSON's types: dataclasses as objects, paths and whatever JSON has no word for as text, NaN too."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)
