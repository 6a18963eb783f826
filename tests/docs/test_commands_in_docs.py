"""Every `quantlab ...` line of README.md, docs/ and notebooks/ names commands and options that exist."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from fences import fences

from quantlab.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("", "bash", "sh", "console", "shell")
STARTERS = ("torchrun", "python")
PLACEHOLDERS = {"...", "…"}


def shell_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 0, line) of a block; a line that ends in a backslash includes the next one."""
    whole, first = "", 0
    for number, line in enumerate(text.splitlines()):
        first = first if whole else number
        whole += line.strip().removeprefix("$ ")
        if whole.endswith("\\"):
            whole = whole[:-1] + " "
            continue
        yield first, whole
        whole = ""


def arguments(line: str) -> list[str] | None:
    """Return the arguments of `quantlab` in a shell line; None if it is not called there."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # output, not a command
        return None
    words = words[: next((n for n, word in enumerate(words) if word in ("|", "&&", ";", ">")), len(words))]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if words and words[0] in STARTERS and "-m" in words and words[words.index("-m") + 1] == "quantlab":
        words = words[words.index("-m") + 1 :]
    return words[1:] if words and words[0] == "quantlab" else None


def calls_in(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, arguments) of each command line in fenced blocks."""
    for fence in fences(path):
        if fence.language in SHELL:
            for number, line in shell_lines(fence.text):
                if (words := arguments(line)) is not None:
                    yield f"{path.relative_to(ROOT)}:{fence.line + number}", words


def calls_in_notebook(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, arguments) of each whole command line between backticks, not of `quantlab run` alone."""
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] == "markdown":
            for line in re.findall(r"`(quantlab [^`]+)`", "".join(cell["source"])):
                words = [word for word in shlex.split(line)[1:] if word not in PLACEHOLDERS]
                if len(words) > 2 and words[-1] != "--set" and "…" not in line.split(" --")[0]:
                    yield f"{path.name}:{number}", words


CALLS = [call for page in PAGES for call in calls_in(page)]
CALLS += [call for path in sorted((ROOT / "notebooks").glob("*.ipynb")) for call in calls_in_notebook(path)]


def parse(words: list[str]) -> None:
    """Parse a command line without running it. Raise the error of typer if it is wrong."""
    command = typer.main.get_command(app)
    context = type(typer.Context(command))(command, info_name="quantlab")
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            if {"--help", "--version"} & set(words):
                return
            raise AssertionError(f"no command {' '.join(words)!r}; there are {', '.join(command.commands)}")
        name, *words = words
        command = command.commands[name]
        context = type(context)(command, info_name=name, parent=context)
    if "--help" not in words:
        command.make_context(name, words, parent=context.parent)


@pytest.mark.parametrize(("place", "words"), CALLS, ids=[place for place, _ in CALLS])
def test_a_command_in_the_docs_can_be_typed(place: str, words: list[str]):
    parse([word for word in words if word not in PLACEHOLDERS])


def test_the_pages_have_commands():
    assert len(CALLS) > 40
    assert {words[0] for _, words in CALLS} >= {"pack", "eval", "calibrate", "train", "data", "compare"}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("$ quantlab pack a.pt --budget 1MB -o b.qlab   # note", ["pack", "a.pt", "--budget", "1MB", "-o", "b.qlab"]),
        ("A=1 B_C=x quantlab doctor --json | jq .", ["doctor", "--json"]),
        ("torchrun --nproc_per_node=8 -m quantlab train baseline", ["train", "baseline"]),
        ("total 249,987 of 250,000 bytes", None),
    ],
)
def test_arguments_of_a_line(line: str, wanted: list[str] | None):
    assert arguments(line.removeprefix("$ ")) == wanted


@pytest.mark.parametrize(
    "wrong", ["pack a.pt --budget 1MB", "pack a.pt --budget 1MB -o b.qlab --width 4", "data shuffle x", "pac a.pt", "eval"]
)
def test_a_wrong_command_line_is_found(wrong: str):
    with pytest.raises(Exception, match=r"(?i)missing|no such option|no command"):
        parse(wrong.split())


def test_every_command_is_shown_somewhere():
    def names(command, before=()):
        for word, inner in command.commands.items():
            yield from names(inner, (*before, word)) if hasattr(inner, "commands") else [(*before, word)]

    shown = "\n".join(page.read_text() for page in PAGES)
    missing = [" ".join(name) for name in names(typer.main.get_command(app)) if f"quantlab {' '.join(name)}" not in shown]
    assert not missing


INLINE = re.compile(r"(?<!`)`(quantlab [a-z][^`]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path):
    """In spans like `quantlab eval --save` the command and each option exist."""
    command = typer.main.get_command(app)
    for span in INLINE.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)):
        if re.fullmatch(r"quantlab \d.*", span):
            continue
        words, found = span.split()[1:], command
        while hasattr(found, "commands") and words and words[0] in found.commands:
            found = found.commands[words.pop(0)]
        assert found is not command or words[0].isupper() or words[0].startswith("-"), f"{page}: no command {span}"
        known = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        unknown = [w for w in words if w.startswith("--") and w.split("=")[0].strip("(),") not in known]
        assert not unknown, f"{page}: {span} has unknown {unknown}"
