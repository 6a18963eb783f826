"""The origin of a run: process, versions, environment and commit; and whether its process has ended."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path

from quantlab import __version__
from quantlab.runs.run_record import Git, Process

PACKAGES = ("torch", "numpy", "triton", "numba", "brotli", "zstandard", "sentencepiece", "safetensors")
_MACHINE_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"), Path("/proc/sys/kernel/random/boot_id"))
_GIT_SECONDS = 5.0


def versions() -> dict[str, str]:
    """Return the versions of quantlab, Python, the system and the packages that results depend on, without importing any."""
    found = {"quantlab": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state(directory: Path) -> Git | None:
    """Return commit and dirty flag of the repository around `directory`; None without a repository, a commit or git."""
    commit = _git(directory, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return Git(commit=commit, is_dirty=changed != "")  # None means no answer in time: there may be a change


def _git(directory: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=_GIT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> str:
    """Return 16 hex digits that are the same on one machine and tell nobody its name: a hash of its name and its secret id."""
    known = next((found for path in _MACHINE_FILES if path.is_file() and (found := path.read_bytes())), b"")
    return hashlib.sha256(b"quantlab run " + socket.gethostname().encode() + b" " + known).hexdigest()[:16]


def this_process() -> Process:
    """Return the process that calls this."""
    return Process(host=machine(), pid=os.getpid(), birth=_birth(os.getpid()))


def is_gone(process: Process) -> bool:
    """Whether the process has ended; False for a process of another host, which cannot be known."""
    if process.host != machine():
        return False
    try:
        os.kill(process.pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it is alive and belongs to another user
    birth = _birth(process.pid)
    return process.birth is not None and birth is not None and birth != process.birth


def _birth(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat. The second field, the command in brackets, may itself hold spaces and brackets."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
