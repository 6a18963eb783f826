"""Copy run folders as they may be published: without process and command line, and every text cleaned once more."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantlab.errors import ConfigError, ReportError
from quantlab.fields import read_fields
from quantlab.files import hash_file, write_whole
from quantlab.outputs import is_same_file
from quantlab.runs.private import Cleaner, allowed, cleaner
from quantlab.runs.run_record import RECORD_NAME, FileRef, Process, RunRecord, plain
from quantlab.runs.store import Run

TEXTS = (".json", ".jsonl", ".log", ".txt")
"""Kinds of copies that are published; pages and pictures are not, which nobody cleans."""
NOBODY = Process(host="", pid=0)


def export_runs(runs: Sequence[Run], folder: Path, *, force: bool = False) -> list[Path]:
    """Write a folder for each run into `folder`, and return them.

    A run that has not ended is refused: its record changes still.

    Raises:
        QuantlabError: the folder cannot be written.
        ConfigError: a run is at work, is given twice, or its folder exists and `force` is not set.
        ReportError: a copy in a run folder is not UTF-8.
    """
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"run {twice} is named twice")
    if still := next((run.name for run in runs if run.status == "running"), None):
        raise ConfigError(f"run {still} has not ended", hint="export it when it has")
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        place = folder / run.name
        if is_same_file(place, run.folder):
            raise ConfigError(f"output {place} is the recorded run itself", hint="export to another folder")
        if place.exists() and not (force and place.is_dir()):
            raise ConfigError(f"output {place} exists", hint="pass --force to replace it")
    return [_export(run, folder / run.name) for run in runs]


def _export(run: Run, place: Path) -> Path:
    clean, record = cleaner(), run.record
    place.mkdir(parents=True, exist_ok=True)
    files = tuple(_publish(file, run.folder, place, clean) for file in record.files)
    kept = replace(record, process=NOBODY, command=(), directory="", environment=allowed(record.environment), files=files)
    published = read_fields(RunRecord, clean.value(plain(kept)), run.name)
    write_whole(place / RECORD_NAME, published.to_json())
    return place


def _publish(file: FileRef, source: Path, place: Path, clean: Cleaner) -> FileRef:
    """Copy a cleaned text beside the record; return the file with its new size and hash, or without a copy."""
    copy = Path(file.copy)
    if not file.copy or copy.name != file.copy or copy.suffix not in TEXTS or not (source / copy).is_file():
        return replace(file, copy="")
    try:
        text = (source / copy).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReportError(f"{source / copy} is not UTF-8") from error
    write_whole(place / copy, _cleaned(text, copy.suffix, clean).encode())
    size, digest = hash_file(place / copy)
    return replace(file, bytes=size, sha256=digest)


def _cleaned(text: str, suffix: str, clean: Cleaner) -> str:
    """Return a text with clean words; JSON is cleaned value by value, so that it stays JSON."""
    if suffix == ".json":
        try:
            return json.dumps(clean.value(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
        except (ValueError, RecursionError):
            pass  # it is cleaned as any text
    return "".join(clean.text(line) for line in text.splitlines(keepends=True))
