"""Files and folders that appear whole or not at all: single files, hashes, whole folders, one lock."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from quantlab.errors import ConfigError, QuantlabError

PARTIAL = ".partial"
"""End of the names of files and folders that are being written."""


@contextmanager
def open_regular(path: Path, error: type[QuantlabError], what: str = "") -> Iterator[IO[bytes]]:
    """Yield a regular file, opened for reading: neither a pipe, which may never end, nor a device is read.

    Args:
        what: kind of file, for the errors.
    Raises:
        error: the file is missing, cannot be read, or is anything else.
    """
    name = f"{what} {path}".lstrip()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    except (OSError, ValueError) as found:  # ValueError: the path has a zero byte
        raise error(f"cannot read {name}: {getattr(found, 'strerror', None) or found}") from found
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise error(f"cannot read {name}: {_kind_of(mode)}")
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as found:
            raise error(f"cannot read {name}: {found.strerror or found}") from found


def read_regular(path: Path, error: type[QuantlabError], what: str = "", *, most: int | None = None) -> bytes:
    """Return the bytes of a regular file. `error` as in `open_regular`, or if there are more bytes than `most`."""
    with open_regular(path, error, what) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise error(f"{path} has {size:,} bytes, at most {most:,} are read")
        return file.read()


def check_regular(path: Path, error: type[QuantlabError], what: str = "") -> None:
    """Raise `error` unless a regular file can be read at `path`: for libraries that open files themselves."""
    with open_regular(path, error, what):
        pass


def _kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
    return f"it is a {kind}, a regular file is needed"


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, a crash or a full disk sees the old file or the new one, never a part.

    Raises:
        QuantlabError: the folder is missing or not writable, or the disk is full. No temporary file stays behind.
    """
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `path` when the block ends without an error; until then there is the old file or none.

    The bytes go to a temporary file in the same folder, are synced, and take the name by one rename. A killed process leaves
    the temporary file, which `remove_leftovers` removes.

    Raises:
        ConfigError: `path` is a device, a pipe or a folder, which a file may not replace.
        QuantlabError: the folder is missing or not writable, or the disk is full. No temporary file stays behind.
    """
    refuse_special(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL, delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise QuantlabError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def refuse_special(path: Path) -> None:
    """Raise ConfigError if `path` is a folder, a device, a pipe or a socket, also through a symbolic link."""
    if path.is_dir():
        raise ConfigError(f"output {path} is a folder, but a file is written", hint="name a file in an existing folder")
    if path.exists() and not path.is_file():
        raise ConfigError(f"output {path} is a device, pipe or socket, not a file", hint="name a file in an existing folder")


def refuse_odd_name(path: Path) -> None:
    """Raise ConfigError if the path of an output is not UTF-8: libraries that write files could not, after all the work."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"output {path} is not UTF-8", hint="name another, in UTF-8") from error


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` left; for a process that knows of no other writer."""
    temporary = re.compile(rf"\.{re.escape(path.name)}\.(\w{{8}}{re.escape(PARTIAL)}|\d+\.trial)")
    for left in path.parent.iterdir():
        if temporary.fullmatch(left.name) and left.is_file():
            left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def hash_file(path: Path) -> tuple[int, str]:
    """Return the size in bytes and the hex SHA-256 of a file, or of all files in a folder together with their names.

    Raises:
        QuantlabError: a file cannot be read, or is no regular file.
    """
    digest, size = hashlib.sha256(), 0
    if path.is_dir():
        for part in sorted(p for p in path.rglob("*") if p.is_file()):
            part_size, part_sha256 = hash_file(part)
            digest.update(f"{part.relative_to(path).as_posix()}\0{part_sha256}\n".encode())
            size += part_size
        return size, digest.hexdigest()
    with open_regular(path, QuantlabError) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


@contextmanager
def whole_folder(out: Path, *, replaceable: re.Pattern[str], force: bool) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that takes its name when the block ends without an error.

    An error, Ctrl-C included, removes the hidden folder. The next call removes what a killed process left of it.

    Args:
        out: an absent or empty folder, or with `force` one in which every file has a name that `replaceable` matches.
    Raises:
        ConfigError: `out` is anything else, its parent does not exist, or another process is writing it.
        QuantlabError: the parent is not writable.
    """
    out = out.resolve()
    _check_folder(out, replaceable, force)
    partial, old = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "old"))
    with _locked(partial):
        try:
            yield partial
            _publish(partial, out, old)
        finally:
            _remove(partial)


def hold_lock(descriptor: int) -> bool:
    """Return whether this process now holds the exclusive lock on an open file or folder; never wait for it.

    The lock ends when the descriptor and its copies in child processes are closed, so also with the process, however it ends.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_folder(out: Path, replaceable: re.Pattern[str], force: bool) -> None:
    refuse_odd_name(out)
    if not out.parent.is_dir():
        raise ConfigError(f"output folder {out.parent} does not exist", hint="make it, or name another")
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"output {out} is a file, but a folder is written", hint="name another folder")
    if out.is_mount():  # a mount point cannot be renamed, and that would show only at the end
        raise ConfigError(f"output {out} is a mount point, which cannot be replaced", hint="name a folder below it")
    names = sorted(path.name for path in out.iterdir())
    if names and not force:
        raise ConfigError(f"output {out} exists and holds {names[0]}", hint="pass --force to replace it")
    if foreign := [name for name in names if not replaceable.fullmatch(name)]:
        raise ConfigError(f"output {out} holds {foreign[0]}, which was not made by this command", hint="name another folder")


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Make the folder `partial`, hold its lock while the block runs, and empty it first of what a killed process left."""
    try:
        partial.mkdir(exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise QuantlabError(f"cannot write {partial}: {error.strerror}") from error
    try:
        if not hold_lock(descriptor):
            raise ConfigError(f"another process is writing {partial}", hint="wait for it, or name another folder")
        for left in partial.iterdir():
            left.unlink()
        yield
    finally:
        os.close(descriptor)


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
