"""Progress on stderr, results on stdout."""

import json
import sys
import time
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 15.0  # between lines when stderr is a file


class ProgressDisplay:
    """Draws pipeline progress: one bar a stage on a terminal, a line every few seconds in a file."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._stage = ""
        self._task: Any = None
        self._started = self._printed = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units of `stage` are finished."""
        if self._console.is_terminal:
            self._draw(stage, done, total, note)
        else:
            self._print(stage, done, total, note)

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.stop()

    def _draw(self, stage: str, done: int, total: int, note: str) -> None:
        if self._bar is None:
            text, note_text = TextColumn("{task.description:<28}"), TextColumn("{task.fields[note]}")
            columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), note_text)
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
        if stage != self._stage:
            self._stage, self._task = stage, self._bar.add_task(stage, total=total, note=note)
        self._bar.update(self._task, completed=done, total=total, note=note)

    def _print(self, stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._printed = stage, now, 0.0
        if done >= total or now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            print(f"{stage} {done}/{total} {now - self._started:.1f} s  {note}".rstrip(), file=sys.stderr, flush=True)


def note(text: str) -> None:
    """One line for the person at the terminal, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """A result for a program, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def show_whole(result: RenderableType) -> None:
    """A result whose tables may be wider than the terminal: lines are wrapped there, never cut."""
    out = console()
    out.width = max(out.width, Measurement.get(out, out.options.update(max_width=10_000), result).maximum)
    out.print(result)


def console() -> Console:
    """Return the console for results; wide enough that tables are not cut when stdout is a file."""
    width = None if sys.stdout.isatty() else 140
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True, force_jupyter=False)
