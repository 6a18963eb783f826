"""The outputs of a command: checked before any work begins, and claimed by one process at a time."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError
from quantlab.files import hold_lock, refuse_odd_name, refuse_special, remove_leftovers


def check_outputs(outputs: Iterable[Path], *, inputs: Iterable[Path] = (), force: bool) -> None:
    """Raise ConfigError unless each output is a name in UTF-8 in an existing folder, free or to be replaced, and no other's.

    Args:
        inputs: files that the same command reads; none of them may be an output, under whatever name or link.
        force: whether a regular file is replaced. Folders, devices, pipes and sockets never are.
    """
    outputs, inputs = list(outputs), list(inputs)
    for number, path in enumerate(outputs):
        _check_name(path)
        if read := next((source for source in inputs if is_same_file(path, source)), None):
            named = "" if read == path else f", {read}"
            raise ConfigError(f"output {path} is an input of the same command{named}", hint="name another output")
        if any(is_same_file(path, other) for other in outputs[:number]):
            raise ConfigError(f"output {path} is also another output of the same command", hint="name another file")
        if os.path.lexists(path) and not force:
            raise ConfigError(f"output {path} exists", hint="pass --force to replace it")


def _check_name(path: Path) -> None:
    if not path.name:
        raise ConfigError(f"output {path} is not a file name", hint="name a file in an existing folder")
    refuse_odd_name(path)
    refuse_special(path)
    if not path.parent.is_dir():
        raise ConfigError(f"output folder {path.parent} does not exist", hint="make it, or name another")


def is_same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are one file, also by symbolic or hard links; of absent files whether the paths are equal."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one.resolve() == other.resolve()


@contextmanager
def claimed(outputs: Iterable[Path], check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock for each output while the block runs, and first remove what killed processes left beside it.

    The lock of an output `x` is held on the file `.x.lock` beside it. It ends with its process, however that ends.

    Args:
        check: raises unless the outputs can be written; called before the locks are taken, and again when they are held, since
            another process may have just finished.
    Raises:
        ConfigError: another process is writing an output; or what `check` raises.
        QuantlabError: the folder of an output is not writable.
    """
    check()
    with ExitStack() as stack:
        for output in outputs:
            stack.enter_context(_locked(output))
        check()
        yield


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    lock = output.with_name(f".{output.name}.lock")
    try:
        descriptor = _take(lock, output)
    except OSError as error:
        raise QuantlabError(f"cannot write {output}: {lock}: {error.strerror or error}") from error
    try:
        remove_leftovers(output)
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # while it is held: who waits at this file finds that it has lost its name
        os.close(descriptor)


def _take(lock: Path, output: Path) -> int:
    """Return a descriptor that holds the lock on the file which has the name `lock` now."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if not hold_lock(descriptor):
                raise ConfigError(f"another process is writing {output}", hint="wait for it, or name another output")
            if _has_name(descriptor, lock):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder before removed it between our opening and locking


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
