"""Read the fenced blocks of Markdown files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fence:
    """One fenced block."""

    language: str
    line: int
    """Number of its first line of text, from 1."""
    text: str


def fences(path: Path) -> list[Fence]:
    """Return all blocks of a file in their order."""
    found, lines, language = [], [], None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            if language is None:
                language, lines = line.strip().strip("`"), []
            else:
                found.append(Fence(language, number - len(lines), "\n".join(lines) + "\n"))
                language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{path}: a fence is not closed"
    return found
