"""Files that appear whole or not at all."""

import hashlib
import os
import tempfile
from collections.abc import Iterable
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
