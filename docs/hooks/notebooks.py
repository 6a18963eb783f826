"""Make a page of each notebook: its text, its code, and the outputs that it was saved with."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
FOLDER = "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and its pictures."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        files.append(File.generated(config, f"{FOLDER}/{path.stem}.md", content=page_text(path.stem, cells)))
        for name, data in pictures(path.stem, cells):
            files.append(File.generated(config, f"{FOLDER}/{name}", content=data))
    return files


def page_text(stem: str, cells: list[dict[str, Any]]) -> str:
    """Return a notebook as Markdown; its links lead where they lead from the folder of the notebooks."""
    return "\n\n".join(block for cell in cells for block in _blocks(stem, cell)) + "\n"


def pictures(stem: str, cells: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, PNG) of every picture in the outputs."""
    for cell in cells:
        for number, data in _pngs(cell):
            yield _name(stem, cell, number), base64.b64decode(data)


def _blocks(stem: str, cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield _links(source)
        return
    yield f"~~~~python\n{source}\n~~~~"
    shown = dict(_pngs(cell))
    for number, output in enumerate(cell["outputs"]):
        if number in shown:
            yield f"![Output of the code above]({_name(stem, cell, number)})"
        elif output["output_type"] == "stream":
            yield f"~~~~text\n{''.join(output['text']).rstrip()}\n~~~~"


def _links(markdown: str) -> str:
    """Return Markdown whose links start from docs/notebooks/ instead of notebooks/."""
    markdown = re.sub(r"\]\(\.\./(?!docs/)", "](../../", markdown).replace("](../docs/", "](../")
    return re.sub(r"(\]\([^)\s]+)\.ipynb\)", r"\1.md)", markdown)


def _pngs(cell: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield (number of the output, base64) of a cell's pictures."""
    for number, output in enumerate(cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            yield number, "".join(output["data"]["image/png"])


def _name(stem: str, cell: dict[str, Any], number: int) -> str:
    return f"{stem}-{cell['id']}-{number}.png"
