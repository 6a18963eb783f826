"""The `quantlab` command: its subcommands, and how a failure ends."""

import logging
import signal
import sys

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
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(start_commands.demo)
app.command("pack")(pack_commands.pack)
app.command("unpack")(pack_commands.unpack)
app.command("inspect")(pack_commands.inspect)
app.command("eval")(score_commands.evaluate)
app.command("compare")(score_commands.compare)
app.command("probe")(score_commands.probe)
app.command("calibrate")(pack_commands.calibrate)
app.command("estimate")(look_commands.estimate)
app.command("sensitivity")(look_commands.sensitivity)
app.command("sample")(look_commands.sample)
app.command("train")(train_commands.train)
app.command("run")(run_command.run)
app.command("doctor")(start_commands.doctor)
app.add_typer(train_commands.app, name="data")
app.add_typer(runs_commands.app, name="runs")

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
