"""The `quantlab` command: its subcommands, and how a failure ends."""

import logging
import os
import signal
import sys
from collections.abc import Callable

import typer

from quantlab import __version__
from quantlab.child_process import raise_interrupt, system_error
from quantlab.cli import (
    look_commands,
    model_commands,
    pack_commands,
    run_command,
    runs_commands,
    score_commands,
    search_commands,
    share_commands,
    start_commands,
    submission_commands,
    train_commands,
)
from quantlab.cli.display import note, say
from quantlab.cli.options import COMMAND
from quantlab.errors import QuantlabError, is_out_of_memory
from quantlab.printable import printable

_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (start_commands.demo, "Train a small model, pack it, score the file. No downloads."),
    "pack": (pack_commands.pack, "Pack a checkpoint into a byte budget."),
    "unpack": (pack_commands.unpack, "Turn an artifact back into a state dict or a folder."),
    "inspect": (pack_commands.inspect, "Show what is in a file: model, origin, tensors, sizes."),
    "eval": (score_commands.evaluate, "Score a model in bits per byte, and compare it with another."),
    "compare": (score_commands.compare, "Compare packed models: sizes, scores, every tensor."),
    "probe": (score_commands.probe, "Check that a model scores honestly."),
    "calibrate": (pack_commands.calibrate, "Measure calibration statistics once, for any number of packs."),
    "estimate": (look_commands.estimate, "Say what several sizes would lose, before any is packed."),
    "sensitivity": (look_commands.sensitivity, "Show where bytes would go, and where more would help."),
    "sample": (look_commands.sample, "Show what a model writes, beside another from the same draws."),
    "card": (look_commands.card, "Write a model card of a packed model."),
    "train": (train_commands.train, "Train the challenge's architectures, here or under torchrun."),
    "run": (run_command.run, "Train, calibrate, pack, evaluate and report as a file says."),
    "diff": (model_commands.diff, "Show which tensors of two models differ, and their KL."),
    "merge": (model_commands.merge, "Average the weights of models into one checkpoint."),
    "export": (model_commands.export, "Write a folder for looking inside a model."),
    "publish": (share_commands.publish, "Publish a model with card, hashes and provenance."),
    "fetch": (share_commands.fetch, "Fetch a published model, and verify it."),
    "index": (share_commands.index, "List the models of a shared index."),
    "doctor": (start_commands.doctor, "Say what this machine can do, and check it."),
}
"""Every plain command, and its line in the list of commands, which is cut beyond 60 characters."""
_GROUPS: dict[str, tuple[typer.Typer, str]] = {
    "data": (train_commands.app, "Make token shards from text, and check shards."),
    "runs": (runs_commands.app, "List, compare and draw recorded runs."),
    "search": (search_commands.app, "Search over the keys of a pipeline."),
    "submission": (submission_commands.app, "Build and check challenge submissions."),
}
"""Every command that has commands of its own, and its line."""

# typer's usage errors: the base class is found through one that typer exports, because some versions bring their own click
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
LISTING: tuple[list[str], ...] = ([], ["-h"], ["--help"])
"""Command lines that show the list of commands."""
COMPLETION = "_QUANTLAB_COMPLETE"
"""Variable by which a shell asks for completions."""
MOST_SHOWN = 1000
"""Characters of an error line: names in it may be as long as a file likes."""
_TYPER_INTERRUPTED = 130  # what newer versions return after Ctrl-C; older ones raise Abort


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"quantlab {__version__}")
        raise typer.Exit()


def _root(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_print_version, help="Print the version."),
) -> None:
    """Options of every command."""


def _new_app() -> typer.Typer:
    """Return the command line without its commands."""
    empty = typer.Typer(
        name="quantlab",
        help="Pack a trained language model into a byte budget and prove the score it still has.",
        epilog="Exit codes: 0 done, 1 failed, 2 misused, 3 the budget cannot be met.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    empty.callback()(_root)
    return empty


def _whole_app() -> typer.Typer:
    """Return the command line with every command and all its options."""
    whole = _new_app()
    for name, (command, line) in _COMMANDS.items():
        whole.command(name, short_help=line)(command)
    for name, (group, line) in _GROUPS.items():
        whole.add_typer(group, name=name, short_help=line, no_args_is_help=True)
    return whole


def _list_of_commands() -> typer.Typer:
    """Return the command line with names and lines alone: options take most of the time in which the list is shown."""
    names = _new_app()
    for name, (_, line) in (_COMMANDS | _GROUPS).items():
        names.command(name, short_help=line)(_no_command)
    return names


def _no_command() -> None:
    """Stand for a command in the list of commands."""


app = _whole_app()


def main() -> None:
    """Run the command line and exit: one line on stderr for what went wrong, and the exit code that says which kind."""
    signal.signal(signal.SIGTERM, raise_interrupt)  # clean up as after Ctrl-C, also where a shell has SIGINT ignored
    if sys.stderr is None:  # it is closed; print would take stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (open until the end)
    if sys.stdout is None:
        sys.exit(_fail("standard output is closed", "send it to /dev/null if the result is not wanted", 1))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are of the interpreter's own making
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for talkative in ("botocore", "aiobotocore", "httpx"):  # libraries of s3:// and hf://
        logging.getLogger(talkative).setLevel(logging.WARNING)
    sys.exit(_flushed(run(sys.argv[1:])))


class _OneLine(logging.Formatter):
    """Messages as they may be shown: they may hold text of a file."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _flushed(code: int) -> int:
    """Return the exit code once all output is out: 1 where it cannot be written, without a word where the reader has left."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again at its end
        return code or (1 if isinstance(error, BrokenPipeError) else _fail(f"standard output: {error.strerror}", None, 1))
    return code


def run(arguments: list[str]) -> int:
    """Exit code of one command line; never raises for an expected failure."""
    COMMAND.set(tuple(arguments))
    try:
        is_listing = arguments in LISTING and COMPLETION not in os.environ
        shown = _list_of_commands() if is_listing else app
        code = shown(arguments, standalone_mode=False)
        if code == _TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except QuantlabError as error:
        return _fail(str(error), error.hint, error.exit_code)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a command that has only subcommands was given none
            say(*error.ctx.get_help().split("\n"))  # type: ignore[attr-defined]
            return 0
        return _fail(error.format_message(), "see quantlab --help", 2)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing half-written was left", None, 1)
    except BrokenPipeError:
        return 1  # the reader left: nothing more to say
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "quantlab":
            raise
        package = error.name.partition(".")[0]
        return _fail(f"this needs the package {package}, which is not installed", f"pip install {package}", 1)
    except (OSError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, OSError) or is_out_of_memory(error)):
            raise
        return _fail(system_error(error), None, 1)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            return 1  # typer's way to end where the reader left
        return _fail(f"the model's own code called sys.exit({error.code!r})", None, 1)


def _fail(message: str, hint: str | None, code: int) -> int:
    for label, text in (("error", " ".join(message.split())), ("hint", hint)):
        if text:
            shown = printable(text)
            note(f"{label}: {shown if len(shown) <= MOST_SHOWN else shown[: MOST_SHOWN - 3] + '...'}")
    return code
