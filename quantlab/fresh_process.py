"""Run one of quantlab's modules in a process that knows nothing but its arguments."""

import os
import subprocess
import sys
from pathlib import Path

from quantlab.errors import QuantlabError

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
