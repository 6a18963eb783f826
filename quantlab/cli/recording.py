"""Where the commands record their runs: options, then environment variables, then the folder runs."""

import os
import sys
from contextvars import ContextVar
from pathlib import Path

from quantlab.errors import ConfigError
from quantlab.runs.mirror import open_mirror
from quantlab.runs.recording import Recorder

RUNS_VARIABLE = "QUANTLAB_RUNS"
MIRROR_VARIABLE = "QUANTLAB_MIRROR"
DEFAULT = "runs"

COMMAND: ContextVar[tuple[str, ...]] = ContextVar("command", default=())
"""The arguments of the command line that is run now."""


def recorder_of(runs: str | None, no_run: bool, mirror: str | None) -> Recorder:
    """What --runs, --no-run and --mirror ask for, or the environment where they are not given. Off but in the main process.

    Raises:
        ConfigError: the options contradict each other, or the mirror is unknown or not installed.
    """
    if no_run and runs:
        raise ConfigError(f"--no-run turns run folders off, --runs {runs} asks for them")
    wanted = "" if no_run else _wanted(runs)
    if mirror and not wanted:
        raise ConfigError(f"--mirror {mirror} sends what the run folder says, and run folders are off")
    if not wanted or os.environ.get("RANK", "0") != "0":
        return Recorder()
    tracker = mirror or os.environ.get(MIRROR_VARIABLE)
    return Recorder(
        folder=Path(wanted),
        is_required=runs is not None or RUNS_VARIABLE in os.environ,
        command=("quantlab", *(COMMAND.get() or sys.argv[1:])),
        environment=os.environ,
        mirror=open_mirror(tracker) if tracker else None,
    )


def folder_of_runs(runs: str | None) -> Path:
    """The folder that quantlab runs reads. ConfigError if the environment turned run folders off and no option names one."""
    wanted = _wanted(runs)
    if not wanted:
        raise ConfigError(f"{RUNS_VARIABLE} is empty: run folders are off", hint="name a folder with --runs")
    return Path(wanted)


def _wanted(runs: str | None) -> str:
    return runs if runs is not None else os.environ.get(RUNS_VARIABLE, DEFAULT)
