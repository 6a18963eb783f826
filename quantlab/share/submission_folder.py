"""Read somebody's submission folder: claims, logs and scripts. Nothing in it is imported or run, and every file is bounded."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, QuantlabError, ReportError
from quantlab.fields import json_object
from quantlab.files import read_regular
from quantlab.share.challenge_log import LogFacts, read_log
from quantlab.share.findings import NOTE, UNCHECKED, Finding
from quantlab.share.wrapped_code import unwrap

MOST_FILES = 500
MOST_BYTES = 1 << 24
"""Largest file that is read; a larger one is named."""
MOST_SCRIPT_BYTES = 1 << 21
"""Largest script that is parsed."""
DEPTH = 3
CLAIMS = re.compile(r"submission.*\.json")
CODE = (".py", ".cpp", ".cu", ".cc", ".c", ".h", ".sh")
_BPB_KEYS = ("val_bpb", "mean_val_bpb", "val_bpb_mean", "mean_bpb", "val_bpb_3seed_mean", "bpb")
_LOSS_KEYS = ("val_loss", "mean_val_loss", "val_loss_mean")


@dataclass(frozen=True, slots=True)
class Script:
    """One Python file of a submission."""

    name: str
    size: int
    """Bytes on disk."""
    source: str
    """Its text, unwrapped where it is a wrapper that can be read."""
    is_wrapped: bool

    def place(self) -> str:
        """Return the name for findings, whose lines are those of `source`."""
        return f"{self.name} (unwrapped)" if self.is_wrapped else self.name


@dataclass(slots=True)
class Submission:
    """What lies in a submission folder."""

    path: Path
    claims: dict[str, Any] = field(default_factory=dict)
    claims_file: str = ""
    readme: str = ""
    logs: list[LogFacts] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes on disk of every file."""
    findings: list[Finding] = field(default_factory=list)
    """What could not be read."""

    @property
    def main(self) -> Script | None:
        """The script that is counted: train_gpt.py, or else the largest one whose name begins with train."""
        named = [script for script in self.scripts if script.name == "train_gpt.py"]
        others = [script for script in self.scripts if Path(script.name).name.startswith("train")]
        return named[0] if named else max(others, key=lambda script: script.size, default=None)

    @property
    def is_record_track(self) -> bool:
        """Whether the rules of the 10-minute track apply."""
        track = str(self.claims.get("track", ""))
        return "non" not in f"{self.path.parent.name} {track}".replace("-", " ").replace("_", " ").lower().split()

    @property
    def scored(self) -> list[LogFacts]:
        """The logs with a score after training."""
        return [log for log in self.logs if log.scores]

    def number(self, *names: str) -> float | None:
        """Return the first claim under one of these names that is a number, also one that is written as text."""
        found = (self.claims.get(name) for name in names)
        return next((number for value in found if (number := as_number(value)) is not None), None)

    @property
    def claimed_bpb(self) -> float | None:
        """The claimed score, under the names that submissions use."""
        return self.number(*_BPB_KEYS)

    @property
    def claimed_loss(self) -> float | None:
        """The claimed nats per token."""
        return self.number(*_LOSS_KEYS)

    @property
    def claimed_seeds(self) -> list[int]:
        """Seeds that the claims list."""
        found = self.claims.get("seeds") or self.seed_results
        keys = list(found) if isinstance(found, Mapping | list) else []
        return [int(str(key)) for key in keys if re.fullmatch(r"[0-9]{1,15}", str(key))]

    @property
    def seed_results(self) -> dict[str, Mapping[str, Any]]:
        """Claims by seed; what is not a table of tables is left out."""
        found = self.claims.get("seed_results", self.claims.get("seeds"))
        items = found.items() if isinstance(found, Mapping) else ()
        named = {re.sub(r"[^0-9]", "", str(key))[:15]: value for key, value in items if isinstance(value, Mapping)}
        return {seed: value for seed, value in named.items() if seed}


def as_number(value: Any) -> float | None:
    """Return a claim as a number; None for anything else, also for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_submission(path: Path) -> Submission:
    """Return what lies in a submission folder. ConfigError if there is no such folder."""
    if not path.is_dir():
        raise ConfigError(f"submission {path} is not a folder", hint="name a folder with submission.json and train_gpt.py")
    found = Submission(path.resolve())
    files = list(islice(_files(found.path, DEPTH), MOST_FILES + 1))
    if len(files) > MOST_FILES:
        found.findings.append(
            Finding(level=UNCHECKED, check="folder", text=f"more than {MOST_FILES} files; the rest is not read")
        )
    for file in files[:MOST_FILES]:
        _take_(found, file)
    return found


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_symlink() or path.name.startswith("."):
            continue
        if path.is_dir() and depth > 1:
            yield from _files(path, depth - 1)
        elif path.is_file():
            yield path


def _take_(found: Submission, file: Path) -> None:
    name = file.relative_to(found.path).as_posix()
    found.sizes[name] = file.stat().st_size
    if not _is_text(file):
        return
    text = _text(found, file, name)
    if text is None:
        return
    if CLAIMS.fullmatch(file.name):
        _take_claims_(found, text, name)
    elif file.suffix == ".py":
        inner = unwrap(text)
        found.scripts.append(Script(name, found.sizes[name], text if inner is None else inner, inner is not None))
    elif file.name.lower() == "readme.md":
        found.readme = text
    elif file.suffix in (".log", ".txt") and not file.name.startswith("requirements"):
        found.logs.append(read_log(name, text))


def _is_text(file: Path) -> bool:
    return file.suffix in (".json", ".py", ".log", ".txt", ".md")


def _text(found: Submission, file: Path, name: str) -> str | None:
    """Return a file as text; bytes that are not UTF-8 are replaced. None if it cannot be read, which is a finding."""
    try:
        most = MOST_SCRIPT_BYTES if file.suffix == ".py" else MOST_BYTES
        return read_regular(file, ReportError, most=most).decode("utf-8", "replace")
    except QuantlabError as error:
        found.findings.append(Finding(level=UNCHECKED, check="folder", text=f"not read: {error}", file=name))
        return None


def _take_claims_(found: Submission, text: str, name: str) -> None:
    """Take the claims of submission.json; of several files the first one counts."""
    if found.claims_file:
        return
    found.claims_file = name
    try:
        found.claims = json_object(text.encode(), name, ReportError)
    except ReportError as error:
        found.findings.append(Finding(level=NOTE, check="claim", text=f"the claims cannot be read: {error}", file=name))
