"""Options that several commands share.

Where the commands record their runs: options, then environment variables, then the folder runs."""

import os
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

from quantlab.errors import ConfigError
from quantlab.runs.recording import Recorder, open_mirror

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SPEC",
        help="path/to/file.py:factory, a function from the state dict to an nn.Module that maps ids [B, T] to logits "
        "[B, T, V]. This runs your code; it is the only option that does. Default: the challenge's baseline architecture, "
        "its shape read from the tensors.",
    ),
]
TokenizerFile = Annotated[Path | None, typer.Option("--tokenizer", metavar="FILE", help="SentencePiece .model file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
Calib = Annotated[
    str,
    typer.Option("--calib", metavar="SOURCE", help="self (the model's own text), random, text:FILE or tokens:GLOB."),
]
CalibTokens = Annotated[int, typer.Option("--calib-tokens", metavar="N", help="Calibration tokens.")]
CalibSeqLen = Annotated[int, typer.Option("--calib-seq-len", metavar="T", help="Tokens in one calibration sequence.")]

Runs = Annotated[
    str | None,
    typer.Option("--runs", metavar="DIR", help="Folder of runs. Default: the variable QUANTLAB_RUNS, or else runs."),
]
NoRun = Annotated[bool, typer.Option("--no-run", help="Write no run folder; so does an empty QUANTLAB_RUNS.")]
Mirror = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        metavar="TRACKER",
        help="Also send config and results to trackio or wandb at the end, as NAME or NAME:PROJECT. Default: QUANTLAB_MIRROR.",
    ),
]


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths of `5,6,8`. ConfigError unless every part is a whole number; PackConfig checks the range."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise ConfigError(f"widths must be whole numbers like 5,6,8, got {text!r}") from error


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
