"""One process at a time in a run folder. The lock ends with its process, however that ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError
from quantlab.pipeline.stages.attempt import remove_temporaries

LOCK_NAME = "pipeline.lock"
"""Holds the process' id; a run folder is known by it."""
PATIENCE_SECONDS = 30.0
"""For child processes of a dead process, which hold its lock until they have ended."""


@contextmanager
def locked_folder(root: Path) -> Iterator[int]:
    """Make the run folder if it is absent, and hold its lock, whose file descriptor is given.

    Raises:
        ConfigError: another process works there, or the folder holds files and was made by something else.
        QuantlabError: it cannot be written.
    """
    check_is_ours(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise QuantlabError(f"cannot write {root}: {error.strerror}") from error
    try:
        _wait(lock, root)
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        remove_temporaries(root)  # of files that a killed process was writing
        yield lock
    finally:
        os.close(lock)


def check_is_ours(root: Path) -> None:
    """Raise ConfigError unless `root` is absent, empty or a run folder."""
    if root.exists() and not root.is_dir():
        raise ConfigError(f"run folder {root} is a file")
    if root.is_dir() and not (root / LOCK_NAME).exists() and (names := sorted(p.name for p in root.iterdir())):
        raise ConfigError(f"{root} is no run folder: it holds {names[0]}", hint="name another with --out")


def _wait(lock: int, root: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _try(lock):
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        if _is_alive(holder) or time.monotonic() > deadline:
            raise ConfigError(
                f"{root} is in use by process {holder or 'unknown'}", hint="wait for it, or name another with --out"
            )
        time.sleep(0.05)


def _try(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(holder: str) -> bool:
    """Whether the process runs here; one that just took the lock has not written its id yet and counts as alive."""
    if not holder.isdigit():
        return True
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
