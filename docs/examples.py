"""Run the examples of README.md and docs/ and write their output back, so that what is shown is what comes: make examples.

    python docs/examples.py [--work DIR] [FILE.md ...]

An example is a fenced block below a line `<!-- example -->`. Lines that begin with `$ ` are run by a shell, in their order
and in one folder for all files; what they print on stdout takes the place of the lines below them. Options of the mark:
`lines=N` keeps the first N lines of each output, `quiet` shows commands alone. A command that fails ends the script, and
nothing is written.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/quick_start.md", "README.md", "docs/runs.md")
"""In the order in which their commands run: later ones use what earlier ones made."""
MARK = re.compile(r"<!-- example(?P<options>[^>]*) -->\n```\n(?P<body>.*?)```\n", re.DOTALL)
STANDS_FOR = {"make demo": "quantlab demo"}
"""Commands that a reader types and that need another word here: make would build the environment."""
CUT = "..."
WIDTH = "100"
"""Columns of the terminal that the examples are shown in."""

Run = Callable[[str], str]
"""Runs a shell command, and returns what it printed."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a mark says."""

    lines: int | None = None
    is_quiet: bool = False

    @classmethod
    def of(cls, text: str) -> "Options":
        """Read `lines=N` and `quiet`. SystemExit for anything else."""
        words = text.removeprefix(":").split()
        unknown = [word for word in words if word != "quiet" and not re.fullmatch(r"lines=\d+", word)]
        if unknown:
            raise SystemExit(f"error: a mark says {unknown[0]!r}; known are quiet and lines=N")
        counts = [int(word.partition("=")[2]) for word in words if word != "quiet"]
        return cls(counts[0] if counts else None, "quiet" in words)


def commands(body: str) -> Iterator[str]:
    """Yield the commands of a block; one that ends in a backslash goes on in the next line."""
    whole = ""
    for line in body.splitlines():
        if whole or line.startswith("$ "):
            whole = f"{whole}\n{line}" if whole else line.removeprefix("$ ")
            if not whole.endswith("\\"):
                yield whole
                whole = ""


def renewed(text: str, run: Run) -> str:
    """Return a page whose examples have the output of their commands."""

    def block(match: re.Match[str]) -> str:
        options = Options.of(match["options"].strip())
        lines: list[str] = []
        for command in commands(match["body"]):
            lines += [f"$ {command}", *shown(run(command), options)]
        return f"<!-- example{match['options']} -->\n```\n" + "\n".join(lines) + "\n```\n"

    return MARK.sub(block, text)


def shown(output: str, options: Options) -> list[str]:
    """Return the lines of an output that the page shows."""
    lines = [line.rstrip() for line in output.rstrip("\n").split("\n")] if output.strip() else []
    if options.is_quiet:
        return []
    return lines if options.lines is None or len(lines) <= options.lines else [*lines[: options.lines], CUT]


def shell(work: Path) -> Run:
    """Return a runner of commands in a folder, each once. SystemExit, with the last line of stderr, where one fails."""

    known: dict[str, str] = {}

    def run(command: str) -> str:
        if command in known:
            return known[command]
        print(f"$ {command}", file=sys.stderr, flush=True)
        typed = STANDS_FOR.get(command, command)
        done = subprocess.run(typed, shell=True, cwd=work, capture_output=True, text=True, env=os.environ | {"COLUMNS": WIDTH})
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            raise SystemExit(f"error: {command} ended with {done.returncode}: {last}")
        known[command] = done.stdout
        return done.stdout

    return run


def main() -> None:
    """Renew all pages, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="default: " + ", ".join(PAGES))
    parser.add_argument("--work", type=Path, default=ROOT / "build/examples", help="folder that the commands run in")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    pages = options.pages or [ROOT / page for page in PAGES]
    run = shell(options.work)
    texts = {page: renewed(page.read_text(), run) for page in pages}
    for page, text in texts.items():
        page.write_text(text)


if __name__ == "__main__":
    main()
