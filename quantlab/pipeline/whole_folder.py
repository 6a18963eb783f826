"""A folder of files that appears whole or not at all."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError


@contextmanager
def whole_folder(out: Path, *, replaceable: re.Pattern[str], force: bool) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that takes its name when the block ends without an error.

    An error, Ctrl-C included, removes it. What a killed process left is removed by the next one.

    Args:
        out: absent, an empty folder, or with `force` one in which every file has a name that `replaceable` matches.
    Raises:
        ConfigError: `out` is something else, its parent does not exist, or another process writes it now.
        QuantlabError: its parent is not writable.
    """
    out = out.resolve()
    _check(out, replaceable, force)
    partial, old = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "old"))
    with _locked(partial):
        try:
            yield partial
            _publish(partial, out, old)
        finally:
            _remove(partial)


def _check(out: Path, replaceable: re.Pattern[str], force: bool) -> None:
    if not out.parent.is_dir():
        raise ConfigError(f"output folder {out.parent} does not exist")
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"output {out} is no folder")
    if out.is_mount():  # it cannot be renamed, and that would show only at the end
        raise ConfigError(f"output {out} is a mount point", hint="name a folder below it")
    names = sorted(path.name for path in out.iterdir())
    if names and not force:
        raise ConfigError(f"output {out} exists and holds {names[0]}", hint="pass --force to replace it")
    if foreign := [name for name in names if not replaceable.fullmatch(name)]:
        raise ConfigError(f"output {out} holds {foreign[0]}, which was not made by this command", hint="name another folder")


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """An empty folder that this process alone writes. The lock ends with the process, however it ends."""
    try:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise QuantlabError(f"cannot write {partial}: {error.strerror}") from error
    try:
        _lock(lock, partial)
        for left in partial.iterdir():
            left.unlink()
        yield
    finally:
        os.close(lock)


def _lock(folder: int, partial: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another process is writing {partial}") from error


def _publish(partial: Path, out: Path, old: Path) -> None:
    try:
        _remove(old)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        _remove(old)
    except OSError as error:
        raise QuantlabError(f"cannot write {out}: {error.strerror or error}") from error


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
