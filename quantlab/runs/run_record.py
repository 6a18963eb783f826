"""The file run.json of a run folder, as checked dataclasses."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import ReportError
from quantlab.evaluation.evaluation_record import EvaluationRecord
from quantlab.fields import in_unicode, parse_json, read_fields
from quantlab.files import read_regular
from quantlab.report.pack_report import PackReport

RECORD_NAME = "run.json"
VERSION = 1
KINDS = ("train", "pack", "eval", "run")
RUNNING, DONE, FAILED, INTERRUPTED = STATUSES = ("running", "done", "failed", "interrupted")
MOST_BYTES = 1 << 22
"""Largest length of a run.json; a larger file is not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRef:
    """A file, named by its path and its content."""

    path: str
    """Path relative to the run's working directory, or from ~, the home of whoever ran it."""
    bytes: int
    sha256: str
    copy: str = ""
    """Name of its copy in the run folder; empty if it was not copied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The weights that a run read, or that training made."""

    path: str
    fingerprint: str
    """Fingerprint of weights and architecture; it does not depend on the kind of file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """The facts that decide whether an artifact is valid."""

    artifact_sha256: str
    artifact_bytes: int
    code_bytes: int
    budget_bytes: int
    is_decoded_equal: bool
    """Whether a fresh process decoded the file to the tensors that were measured."""
    method: str = ""
    bpw: float = 0.0
    predicted_kl: float = 0.0
    """Nats per token."""

    @property
    def total_bytes(self) -> int:
        """Bytes of artifact and counted code."""
        return self.artifact_bytes + self.code_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """The process that writes the run. It tells whether a run without an end is still at work."""

    host: str
    """A hash that tells machines apart and does not name them."""
    pid: int
    birth: int | None = None
    """Clock ticks from boot to the start of the process, to tell apart two processes with one pid; None if not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Git:
    """State of the repository around the working directory."""

    commit: str
    is_dirty: bool
    """Whether tracked files differ from the commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One recorded run."""

    version: int = VERSION
    kind: str
    """train, pack, eval or run."""
    status: str
    """running, done, failed or interrupted."""
    started: str
    """Time in UTC, as 2026-07-24T10:15:30.123456Z."""
    process: Process
    ended: str = ""
    seconds: float = 0.0
    error: str = ""
    """The error line that the command ended with."""
    exit_code: int | None = None
    command: tuple[str, ...] = ()
    directory: str = ""
    """Working directory of the command relative to the run folder, as `../..`; empty where that has a private name."""
    options: dict[str, Any] = field(default_factory=dict)
    """All options as resolved: defaults, presets and --set included."""
    seeds: dict[str, int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git: Git | None = None
    checkpoint: Checkpoint | None = None
    artifact: FileRef | None = None
    """The file that was made or scored: weights for train, else usually a .qlab file."""
    packing: Packing | None = None
    evaluations: tuple[EvaluationRecord, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    """Other results, by name."""
    problems: tuple[str, ...] = ()
    """Problems that the command itself found in its result, such as a clock that was exceeded."""
    files: tuple[FileRef, ...] = ()
    """Other files that the run left: reports and logs."""

    def to_json(self) -> bytes:
        """Return the file run.json."""
        return (json.dumps(plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_record(path: Path) -> RunRecord:
    """Return the record at `path`. ReportError if it is missing, damaged, too large, or of another version."""
    raw = parse_json(read_regular(path, ReportError, most=MOST_BYTES), str(path), ReportError)
    if isinstance(raw, dict) and raw.get("version", VERSION) != VERSION:
        raise ReportError(f"{path} has version {raw['version']!r}, this quantlab reads {VERSION}")
    record = read_fields(RunRecord, raw, str(path))
    if record.status not in STATUSES:
        raise ReportError(f"{path}: status must be one of {', '.join(STATUSES)}, got {record.status!r}")
    return record


def packing_of(report: PackReport) -> Packing:
    """Return the facts of a packing's report. There is no report unless the file decoded to the measured tensors."""
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
    """Return `value` in JSON types: dataclasses as objects; what JSON does not have (paths, NaN) as strings, in UTF-8."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {in_unicode(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return in_unicode(value)
    return value if isinstance(value, float) and math.isfinite(value) else in_unicode(str(value))
