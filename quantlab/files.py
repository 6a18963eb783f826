"""Files that appear whole or not at all.

A folder of files that appears whole or not at all."""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, a crash or a full disk sees the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, are synced, and take the name by one rename.

    Raises:
        QuantlabError: the folder is missing or not writable, or the disk is full. No temporary file stays behind.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise QuantlabError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def hash_file(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file, or of all files in a folder with their names."""
    digest, size = hashlib.sha256(), 0
    if path.is_dir():
        for part in sorted(p for p in path.rglob("*") if p.is_file()):
            part_size, part_sha256 = hash_file(part)
            digest.update(f"{part.relative_to(path).as_posix()}\0{part_sha256}\n".encode())
            size += part_size
        return size, digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def refuse_existing(paths: Iterable[Path], *, force: bool) -> None:
    """Raise ConfigError if an output exists and `force` is off, or if its folder does not exist."""
    for path in paths:
        if not path.name:
            raise ConfigError(f"output {path} is not a file name")
        if path.is_dir():
            raise ConfigError(f"output {path} is a folder, a file name is needed")
        if path.exists() and not force:
            raise ConfigError(f"output {path} exists", hint="pass --force to replace it")
        if not path.parent.is_dir():
            raise ConfigError(f"output folder {path.parent} does not exist")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
