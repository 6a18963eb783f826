"""Bring runs of other folders, or of published models, into a folder of runs.

A run folder that was copied keeps what its record says. A run that comes out of somebody's index is marked as not verified: it
is not valid here.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, QuantlabError, ReportError
from quantlab.fields import read_fields
from quantlab.files import write_whole
from quantlab.runs.export import NOBODY
from quantlab.runs.run_record import RECORD_NAME, RUNNING, RunRecord
from quantlab.runs.store import RUN_NAME, read_store

NOT_VERIFIED = "published elsewhere and not verified here"


def merge_folder(source: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Copy the run folders of `source` that `folder` does not have; return their names, and a line for each that is broken.

    Raises:
        ConfigError: there is no such folder, or both are the same.
    """
    if source.resolve() == folder.resolve():
        raise ConfigError(f"{source} is the folder of runs itself", hint="name another folder")
    store = read_store(source)
    folder.mkdir(parents=True, exist_ok=True)
    added = []
    for run in store.runs:
        place = folder / run.name
        if run.status == RUNNING or place.exists():
            continue
        partial = folder / f".{run.name}"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(run.folder, partial, symlinks=True, ignore=_only_files)
        partial.rename(place)
        added.append(run.name)
    return added, store.broken


def _only_files(folder: str, names: list[str]) -> set[str]:
    """Return what is not copied: links, and folders inside a run folder."""
    return {name for name in names if (Path(folder) / name).is_symlink() or (Path(folder) / name).is_dir()}


def merge_records(
    records: Iterable[tuple[str, Mapping[str, Any], str]], folder: Path, *, trust: bool
) -> tuple[list[str], list[str]]:
    """Write run folders for records of published models that `folder` does not have; return names, and a line a broken one.

    Args:
        records: name of the run, its record as JSON, and the address of its model.
        trust: leave out the mark that the run was not verified here.
    """
    added, broken = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw, place in records:
        try:
            record = _foreign(name, raw, place, trust)
        except QuantlabError as error:
            broken.append(str(error))
            continue
        if (folder / name).exists():
            continue
        (folder / name).mkdir()
        write_whole(folder / name / RECORD_NAME, record.to_json())
        added.append(name)
    return added, broken


def _foreign(name: str, raw: Mapping[str, Any], place: str, trust: bool) -> RunRecord:
    if not RUN_NAME.fullmatch(name):
        raise ReportError(
            f"{place} has no recorded run" if not name else f"{place} names a run {name!r:.60}, which is no name of one"
        )
    record = read_fields(RunRecord, raw, f"{place}: run")
    files = tuple(replace(file, copy="") for file in record.files)
    problems = record.problems if trust else (*record.problems, f"{NOT_VERIFIED}: {place}")
    return replace(record, process=NOBODY, directory="", command=(), files=files, problems=problems)
