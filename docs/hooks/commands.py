"""A page for each command, made from the command line itself: name, help, options, examples."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from quantlab.cli.main import app

OVERVIEW = "commands.md"
MARK = "<!-- commands -->"
GUIDES = {
    "pack": "method.md",
    "unpack": "format.md",
    "inspect": "format.md",
    "compare": "compare.md",
    "train": "training.md",
    "run": "pipelines.md",
    "runs": "runs.md",
    "doctor": "kernels.md",
    "demo": "quick_start.md",
    "calibrate": "quick_start.md",
    "eval": "quick_start.md",
    "probe": "recipes/challenge.md",
}
"""The page that explains a command, by the command's first word; a page that does not exist is left out."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the commands' pages below the entry of the navigation that names the overview."""
    pages = [{"Overview": OVERVIEW}, *({name: page_of(name)} for name, _, _ in commands())]
    for entry in config.nav or []:
        for title, target in list(entry.items()):
            if target == OVERVIEW:
                entry[title] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each command."""
    for name, command, context in commands():
        guide = GUIDES.get(name.split()[0], "")
        text = page_text(name, command, context, guide if files.get_file_from_path(guide) else "")
        files.append(File.generated(config, page_of(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the list of commands into the overview."""
    return markdown.replace(MARK, overview()) if page.file.src_uri == OVERVIEW else markdown


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, command, its context) of every command; the name of a nested one has all its words: `data prepare`."""

    def walk(group: Any, context: Any, before: str) -> Iterator[tuple[str, Any, Any]]:
        for word, command in group.commands.items():
            inner = type(context)(command, info_name=word, parent=context)
            if hasattr(command, "commands"):
                yield from walk(command, inner, f"{before}{word} ")
            elif not command.hidden:
                yield f"{before}{word}", command, inner

    root = typer.main.get_command(app)
    yield from walk(root, typer.Context(root, info_name="quantlab"), "")


def page_of(name: str) -> str:
    """Return the path of a command's page."""
    return f"commands/{name.replace(' ', '_')}.md"


def overview() -> str:
    """Return a table with a line for each command."""
    lines = ["| command | does |", "|---|---|"]
    lines += [f"| [`quantlab {name}`]({page_of(name)}) | {cell(_parts(c)[0][0])} |" for name, c, _ in commands()]
    return "\n".join(lines)


def page_text(name: str, command: Any, context: Any, guide: str) -> str:
    """Return the page of one command; `guide` is the page that explains it, or empty."""
    paragraphs, examples = _parts(command)
    parts = [f"# quantlab {name}", *map(prose, paragraphs), f"```\n{usage(name, command, context)}\n```"]
    records = [(is_argument(p), p.get_help_record(context)) for p in command.params]
    rows = {kind: [record for flag, record in records if flag is kind and record] for kind in (True, False)}
    if rows[True]:
        parts += ["## Arguments", table("argument", rows[True])]
    if rows[False]:
        parts += ["## Options", table("option", rows[False])]
    if examples:
        parts += ["## Examples", "\n\n".join(f"```\n{example}\n```" for example in examples)]
    if guide:
        title = Path(guide).stem.replace("_", " ")
        parts.append(f"See also [{title}](../{guide}).")
    return "\n\n".join(parts) + "\n"


def usage(name: str, command: Any, context: Any) -> str:
    """Return the command line with every argument and every required option."""
    required = [p for p in command.params if p.required]
    arguments = [p.get_help_record(context)[0].split(" <")[0] for p in command.params if is_argument(p)]
    options = [_short(p.get_help_record(context)[0]) for p in required if not is_argument(p)]
    return shlex.join(["quantlab", *name.split()]) + "".join(f" {part}" for part in (*arguments, *options, "[OPTIONS]"))


def is_argument(parameter: Any) -> bool:
    """Return whether a parameter is an argument, not an option."""
    return parameter.param_type_name == "argument"


def table(heading: str, records: list[tuple[str, str]]) -> str:
    """Return a table of names and their help, in which defaults and ranges are sentences."""
    rows = [f"| {_names(names)} | {cell(_sentences(text))} |" for names, text in records]
    return "\n".join([f"| {heading} | meaning |", "|---|---|", *rows])


def prose(text: str) -> str:
    """Return help as Markdown: options, patterns and shapes become code."""
    return re.sub(r"(?<![\w`])(--[a-z][a-z-]*|\w*\*\.\w+|\[B, [TV, ]+\])", r"`\1`", text)


def cell(text: str) -> str:
    """Return prose for the cell of a table."""
    return prose(text).replace("|", "\\|")


def _parts(command: Any) -> tuple[list[str], list[str]]:
    """Return the paragraphs of the help, and the command lines of its examples."""
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n") if part.strip()]
    is_example = [part.startswith("Example: ") for part in paragraphs]
    plain = [part for part, flag in zip(paragraphs, is_example, strict=True) if not flag]
    examples = [part.removeprefix("Example: ") for part, flag in zip(paragraphs, is_example, strict=True) if flag]
    return plain, examples


def _names(text: str) -> str:
    """Return the names of an option: `-o, --output M.qlab` becomes two, and `<int>` becomes N."""
    text = text.replace("<int>", "N").replace("<float>", "X").replace("<str>", "TEXT").replace("<path>", "")
    return " ".join(f"<code>{part.strip()}</code>" for part in re.split(r",| / ", text))


def _short(text: str) -> str:
    return text.split(", ")[0] + (" " + text.split()[-1] if ", " in text else "")


def _sentences(text: str) -> str:
    """Return help whose `[default: 8]` or `[required]` at the end is a sentence."""
    match = re.search(r"\s*\[((?:default|required|x>)[^\]]*)\]\s*$", text)
    if not match:
        return text
    notes = []
    for note in match[1].split("; "):
        key, _, value = note.partition(": ")
        least = note.removeprefix("x>=")
        notes.append(f"Default: `{value}`." if value else f"At least {least}." if least != note else f"{key.capitalize()}.")
    return " ".join([text[: match.start()].strip(), *notes]).strip()
