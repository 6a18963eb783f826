"""Run one of quantlab's modules in a process that knows nothing but its arguments.

A command in a process of its own that does not outlive this one, its progress shown here."""

import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from quantlab.errors import BudgetError, ConfigError, QuantlabError
from quantlab.progress import Progress

_ROOT = Path(__file__).resolve().parents[1]


def run_module(module: str, *arguments: str) -> str:
    """What `python -m module arguments` prints on stdout.

    Raises:
        QuantlabError: the process fails; the message is the last line it wrote on stderr.
    """
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise QuantlabError(f"{module} {' '.join(arguments[:2])} failed: {lines[-1]}")
    return done.stdout.strip()


# The kernel ends the child when this process dies, kill -9 included; only the child itself can ask for that.
_BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("error: the process that started this one has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_ROOT = Path(__file__).resolve().parents[3]
_PROGRESS = re.compile(r"(.+) (\d+)/(\d+) [\d.]+ s(?:  (.*))?")
"""A line of `quantlab.cli.display` where stderr is no terminal."""
_ERRORS: dict[int, type[QuantlabError]] = {2: ConfigError, 3: BudgetError}


def run_quantlab(arguments: Sequence[str], *, processes: int, progress: Progress, lock: int) -> str:
    """What `quantlab arguments` prints on stdout, in one process or in several that torch.distributed.run starts.

    Raises:
        QuantlabError: it fails; the message and the kind are those of its own error line.
    """
    several = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    return _run([sys.executable, "-m", *several, "quantlab", *arguments], arguments[0], progress, lock)


def _run(command: list[str], what: str, progress: Progress, lock: int) -> str:
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-c", _BOUND, str(os.getpid()), *command]
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stdout:
        process = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[lock],
        )
        try:
            assert process.stderr is not None  # it was asked for
            said = _follow(process.stderr, progress)
            code = process.wait()
        finally:
            _end(process)
        if code:
            raise _error(said, what, code)
        stdout.seek(0)
        return stdout.read()


def _follow(stderr: IO[str], progress: Progress) -> list[str]:
    """Pass progress on as it comes; the last lines of everything else."""
    said: deque[str] = deque(maxlen=200)
    for line in stderr:
        if found := _PROGRESS.fullmatch(line.rstrip()):
            stage, done, total, note = found.groups()
            progress(stage, int(done), int(total), note or "")
        else:
            said.append(line.rstrip())
    return list(said)


def _error(said: Sequence[str], what: str, code: int) -> QuantlabError:
    """The child's own error line, or the last that it wrote."""
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in said if line.startswith("hint: ")]
    if not errors:
        last = next((line for line in reversed(said) if line.strip()), "no message")
        return QuantlabError(f"quantlab {what} ended with code {code}: {last}")
    return _ERRORS.get(code, QuantlabError)(errors[0], hint=hints[0] if hints else None)


def _end(process: "subprocess.Popen[str]") -> None:
    """Nothing stays behind, also after Ctrl-C."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
