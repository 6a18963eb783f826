"""The `quantlab` command: its subcommands, and how a failure ends."""

import logging
import signal
import sys
from collections.abc import Callable

import typer

from quantlab import __version__
from quantlab.child_process import raise_interrupt
from quantlab.cli import (
    look_commands,
    pack_commands,
    run_command,
    runs_commands,
    score_commands,
    start_commands,
    train_commands,
)
from quantlab.cli.options import COMMAND
from quantlab.errors import QuantlabError

app = typer.Typer(
    name="quantlab",
    help="Pack a trained language model into a byte budget and prove the score it still has.",
    epilog="Exit codes: 0 done, 1 failed, 2 misused, 3 the budget cannot be met.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
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
    "doctor": (start_commands.doctor, "Say what this machine can do, and check it."),
}
"""Every command, and its line in the list of commands, which is cut beyond 60 characters."""
for _name, (_command, _line) in _COMMANDS.items():
    app.command(_name, short_help=_line)(_command)
app.add_typer(
    train_commands.app, name="data", short_help="Make token shards from text, and check shards.", no_args_is_help=True
)
app.add_typer(runs_commands.app, name="runs", short_help="List, compare and draw recorded runs.", no_args_is_help=True)

# typer's usage errors: the base class is found through one that typer exports, because some versions bring their own click
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_TYPER_INTERRUPTED = 130  # what newer versions return after Ctrl-C; older ones raise Abort


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"quantlab {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_print_version, help="Print the version."),
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command line and exit: one line on stderr for what went wrong, and the exit code that says which kind."""
    signal.signal(signal.SIGTERM, raise_interrupt)  # clean up as after Ctrl-C, also where a shell has SIGINT ignored
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Exit code of one command line; never raises for an expected failure."""
    COMMAND.set(tuple(arguments))
    try:
        code = app(arguments, standalone_mode=False)
        if code == _TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except QuantlabError as error:
        return _fail(str(error), error.hint, error.exit_code)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a command that has only subcommands was given none
            print(error.ctx.get_help())  # type: ignore[attr-defined]
            return 0
        return _fail(error.format_message(), "see quantlab --help", 2)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing half-written was left", None, 1)
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # the reader left; nothing more to say, also not at exit
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", None, 1)
    except MemoryError:
        return _fail("out of memory", None, 1)


def _fail(message: str, hint: str | None, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code
