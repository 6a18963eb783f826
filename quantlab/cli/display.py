"""Progress on stderr, results on stdout. rich is loaded when a table or a line of progress is drawn, not for help."""

import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from quantlab.printable import printable, printable_json
from quantlab.progress import duration_text, rate_text, unit_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

PLAIN_SECONDS = 15.0
"""Seconds between two lines of a stage where stderr is a file."""
WIDTH = 80
"""Most characters of a line of progress."""
FILE_WIDTH = 140
"""Characters of a line of a result where stdout is a file."""
COLOURS = {
    **{"valid": "green", "done": "green", "not valid": "yellow", "running": "cyan"},
    **{"failed": "red", "interrupted": "red", "error": "red"},
}
"""Colours of a status on a terminal."""
LARGE = 10_000_000
"""Totals from here on are shown in millions."""


class ProgressDisplay:
    """Shows one line a stage on stderr: rewritten on a terminal; in a file one every PLAIN_SECONDS, and always the last."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._live: Progress | None = None
        self._task: Any = None
        self._meter: StageMeter | None = None
        self._printed = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units of `stage` are finished."""
        now = time.monotonic()
        if self._meter is None or self._meter.stage != stage or (self._meter.is_finished and done < total):
            self._end()
            self._meter, self._printed = StageMeter(stage, done, now), now
            self._task = self._terminal().add_task("") if self._console.is_terminal else None
        if self._meter.is_finished and done >= total:
            return  # its last line is out
        self._meter.update(done, total, note, now)
        if self._console.is_terminal:
            self._terminal().update(self._task, description=self._meter.line())
        elif done < total and now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            print(self._meter.line(), file=sys.stderr, flush=True)
        if done >= total:
            self._end()

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()
        if self._live:
            self._live.stop()

    def _terminal(self) -> "Progress":
        if self._live is None:
            from rich.progress import Progress, TextColumn

            self._live = Progress(TextColumn("{task.description}", markup=False), console=self._console)
            self._live.start()
        return self._live

    def _end(self) -> None:
        """Show the last line of the present stage, once."""
        if self._meter is None or self._meter.is_finished:
            return
        self._meter.is_finished = True
        if self._console.is_terminal:
            self._terminal().update(self._task, description=self._meter.line())
        else:
            print(self._meter.line(), file=sys.stderr, flush=True)


class StageMeter:
    """How far a stage is, how fast, and how long it will take; times are in seconds of one clock."""

    def __init__(self, stage: str, done: int, now: float) -> None:
        """Begin to measure at `now`, when `done` units are finished: work of an earlier attempt does not count as speed."""
        self.stage, self.is_finished = stage, False
        self._first, self._started = done, now
        self._done, self._total, self._note, self._now = done, done, "", now

    def update(self, done: int, total: int, note: str, now: float) -> None:
        """Take over the state of the stage at `now`."""
        self._done, self._total, self._note, self._now = done, total, note, now

    def line(self) -> str:
        """Return the stage, what is done of how much, the rate, and the time that is left or was taken: WIDTH at most."""
        unit, seconds = unit_of(self.stage), self._now - self._started
        done, total = (f"{n / 1e6:.1f}M" if self._total >= LARGE else f"{n:,}" for n in (self._done, self._total))
        parts = [f"{self.stage}  {done}/{total} {unit}".rstrip()]
        made = self._done - self._first
        if made > 0 and seconds > 0:
            parts.append(f"{rate_text(made / seconds)}/s" if unit else "")
            if not self.is_finished:
                parts.append(f"{duration_text((self._total - self._done) * seconds / made)} left")
        if self.is_finished:
            parts.append(f"took {duration_text(seconds)}")
        return printable("  ".join(part for part in (*parts, self._note) if part))[:WIDTH].rstrip()


def note(text: str) -> None:
    """One line for the person at the terminal, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def say(*lines: str) -> None:
    """Lines of a result, on stdout."""
    for line in lines:
        print(printable(line))


def say_painted(*lines: str) -> None:
    """Lines of a result that hold colours already; all else in them is printable."""
    for line in lines:
        print(line)


def line_width() -> int:
    """Return the characters of a line of a result: of the terminal, of COLUMNS, or FILE_WIDTH where stdout is a file."""
    is_known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return shutil.get_terminal_size().columns if is_known else FILE_WIDTH


def paint(text: str, status: str) -> str:
    """Return the text in the colour of a status; as it is where stdout is no terminal or NO_COLOR is set."""
    colour = COLOURS.get(status)
    if colour is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return typer.style(text, fg=colour)


def print_json(value: Any) -> None:
    """A result for a program, on stdout."""
    print(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def show_whole(result: "RenderableType") -> None:
    """A result whose tables may be wider than the terminal: lines are wrapped there, never cut."""
    from rich.measure import Measurement

    out = console()
    out.width = max(out.width, Measurement.get(out, out.options.update(max_width=10_000), result).maximum)
    out.print(result)


def console() -> "Console":
    """Return the console for results; wide enough that tables are not cut when stdout is a file."""
    from quantlab.cli.safe_console import SafeConsole

    width = None if sys.stdout.isatty() else FILE_WIDTH
    return SafeConsole(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True, force_jupyter=False)
