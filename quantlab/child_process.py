"""Work in a fresh process: `python -m MODULE` gets one JSON request, and answers with one JSON line a step.

A line is an object with one key: progress ([stage, done, total, note]), result, or error (kind, message, hint). What else the
child writes on stdout or stderr is for people: its last line is shown only where the child dies without an answer.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from quantlab import errors
from quantlab.errors import QuantlabError, is_out_of_memory
from quantlab.progress import Progress, silent

Work = Callable[[dict[str, Any], Progress], Any]

# The kernel ends the child when this process dies, kill -9 included; only the child itself can ask for that.
_BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_ROOT = Path(__file__).resolve().parents[1]
_PATIENCE_SECONDS = 30
"""Between asking a child to end and killing it."""


def run_child(
    module: str,
    request: dict[str, Any],
    *,
    processes: int = 1,
    progress: Progress = silent,
    lock: int | None = None,
) -> Any:
    """Return what `python -m module` answers to `request`; the child does not outlive this process.

    Args:
        module: a module that ends in `if __name__ == "__main__": serve(...)`.
        processes: above 1, that many are started by torch.distributed.run, and the one of rank 0 answers.
        lock: a file descriptor that the child shall hold as long as it lives.
    Raises:
        QuantlabError: the child fails; kind, message and hint are those of its own error.
    """
    several = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *several, module, json.dumps(request)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            bound(command),
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            errors="replace",
            env=child_environment(),
            pass_fds=[] if lock is None else [lock],
        )
        try:
            assert process.stdout is not None  # it was asked for
            answer = _follow(process.stdout, progress)
            code = process.wait()
        finally:
            end(process)
        if "error" in answer:
            raise _error(answer["error"])
        if code or "result" not in answer:
            raise QuantlabError(f"{module} ended with exit code {code}: {_last_line(said)}")
        return answer["result"]


def bound(command: list[str]) -> list[str]:
    """Return a command whose process ends with this one, kill -9 included, where the system can do that."""
    return [sys.executable, "-I", "-c", _BOUND, str(os.getpid()), *command] if sys.platform == "linux" else command


def child_environment() -> dict[str, str]:
    """Return the environment in which a child finds this very package."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def _follow(stdout: IO[str], progress: Progress) -> dict[str, Any]:
    """Pass steps on as they come; return the answer. The first error counts: later ones are of processes that it ended."""
    answer: dict[str, Any] = {}
    for line in stdout:
        step = _step(line)
        if "progress" in step:
            progress(*step["progress"])
        elif "error" not in answer:
            answer |= step
    return answer


def _step(line: str) -> dict[str, Any]:
    """Return the object of a line; nothing for a line that is none."""
    try:
        step = json.loads(line)
    except ValueError:
        return {}
    return step if isinstance(step, dict) else {}


def _error(told: dict[str, Any]) -> QuantlabError:
    name = "FormatError" if told["kind"] == "ExpansionError" else told["kind"]  # whose size matters to the writer alone
    kind: type[QuantlabError] = getattr(errors, name, QuantlabError)
    error = kind(told["message"])
    error.hint = told["hint"]
    return error


def _last_line(said: IO[str]) -> str:
    said.seek(0)
    lines = reversed(said.read().splitlines())  # torch.distributed.run ends with a rule
    return next((line.strip() for line in lines if any(c.isalnum() for c in line)), "no message")


def end(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """End a child that is still at work: it is asked first, and killed if it does not answer."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def serve(work: Work) -> NoReturn:
    """Answer the request on the command line with what `work(request, progress)` returns, then exit.

    Where torch.distributed.run started several processes, rank 0 alone speaks, but for errors. Work that prints cannot disturb
    the answer: its stdout becomes stderr.
    """
    signal.signal(signal.SIGTERM, raise_interrupt)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    speaks = os.environ.get("RANK", "0") == "0"

    def say(**step: Any) -> None:
        answers.write(json.dumps(step) + "\n")
        answers.flush()

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if speaks:
            say(progress=[stage, done, total, note])

    try:
        result = work(json.loads(sys.argv[1]), progress)
    except QuantlabError as error:
        say(error={"kind": type(error).__name__, "message": str(error), "hint": error.hint})
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError, OSError) as error:
        if not (isinstance(error, OSError) or is_out_of_memory(error)):
            raise
        say(error={"kind": "QuantlabError", "message": system_error(error), "hint": None})
        sys.exit(1)
    if speaks:
        say(result=result)
    sys.exit(0)


def system_error(error: BaseException) -> str:
    """Return as one line what the system, or an allocator, refused."""
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}"
    asked = re.search(r"allocate ([0-9.]+ ?(bytes|[KMGTP]iB))", str(error))
    return f"out of memory: {asked[1]} were asked for" if asked else "out of memory"


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as Ctrl-C is handled, so that everything is cleaned up."""
    raise KeyboardInterrupt
