"""Where a run comes from: process, versions, environment and commit; and whether its process still lives."""

import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from quantlab import __version__
from quantlab.runs.run_record import Git, Process

PACKAGES = ("torch", "numpy", "triton", "numba", "brotli", "zstandard", "sentencepiece", "safetensors")
_MATTERS = re.compile(
    r"(QUANTLAB|OMP|MKL|OPENBLAS|NUMBA|CUDA|NVIDIA|CUBLAS|TRITON|TORCH|TORCHINDUCTOR|PYTORCH|NCCL|GLOO|HIP|ROCR)_\w+"
    r"|PYTHONHASHSEED|(LOCAL_)?WORLD_SIZE|NODE_RANK"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
_GIT_SECONDS = 5.0


def versions() -> dict[str, str]:
    """Of quantlab, Python, the system, and of the packages that results depend on; nothing is imported for it."""
    found = {"quantlab": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what a run computes; none whose name sounds like a secret."""
    names = sorted(name for name in environment if _MATTERS.fullmatch(name) and not _SECRET.search(name))
    return {name: environment[name] for name in names}


def git_state(directory: Path) -> Git | None:
    """Commit and dirty flag of the repository around `directory`; None without one, without a commit, or without git."""
    commit = _git(directory, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return Git(commit=commit, is_dirty=changed != "")  # None, an answer that took too long, may hide a change


def _git(directory: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=_GIT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def this_process() -> Process:
    """The process that asks."""
    return Process(host=socket.gethostname(), pid=os.getpid(), birth=_birth(os.getpid()))


def is_gone(process: Process) -> bool:
    """Whether the process has ended; False for one of another host, about which nothing is known here."""
    if process.host != socket.gethostname():
        return False
    try:
        os.kill(process.pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it lives, and belongs to somebody else
    birth = _birth(process.pid)
    return process.birth is not None and birth is not None and birth != process.birth


def _birth(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat. The second field, the command in brackets, may hold spaces and brackets itself."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
