"""Make links to files of the repository work on the site: there they lead to a page that shows the file."""

import os.path
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "source"
NOTEBOOK = ".ipynb"
_LINK = re.compile(r"(?<=\]\()([^)\s#?]+)(?=[)#])")
_SHOWN = {".py": "python", ".toml": "toml", ".sh": "bash"}
"""Languages of the kinds of files that get a page, by suffix."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files and folders that the pages link to."""
    pages = [f for f in files.documentation_pages() if f.generated_by is None or f.src_uri.startswith("notebooks/")]
    paths = {path for f in pages for _, path in outside_links(f.content_string, f.src_uri)}
    inside = {file.relative_to(ROOT).as_posix() for path in paths for file in files_in(path)}
    for path in sorted(p for p in paths | inside if not p.endswith(NOTEBOOK)):
        if is_shown(path):
            files.append(File.generated(config, address(path), content=shown(path)))
        else:
            files.append(File.generated(config, address(path), abs_src_path=str(ROOT / path)))
    return files


def shown(path: str) -> str:
    """Return the page of a file, or of a folder with links to its files."""
    head = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n"
    if (ROOT / path).is_dir():
        names = [file.relative_to(ROOT / path).as_posix() for file in files_in(path)]
        return head + "\n".join(f"* [{name}]({Path(path).name}/{posixpath.basename(address(name))})" for name in names) + "\n"
    return f"{head}~~~~{_SHOWN[Path(path).suffix]}\n{(ROOT / path).read_text()}~~~~\n"


def files_in(path: str) -> list[Path]:
    """Return the files directly in a folder; none for a file."""
    return sorted(file for file in (ROOT / path).glob("*") if file.is_file())


def is_shown(path: str) -> bool:
    """Return whether a path gets a page; other files are copied as they are."""
    return Path(path).suffix in _SHOWN or (ROOT / path).is_dir()


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with links to the site; one whose file does not exist stays, so that a strict build names it."""
    here = posixpath.dirname(page.file.src_uri)
    found = dict(outside_links(markdown, page.file.src_uri))
    return _LINK.sub(
        lambda match: posixpath.relpath(address(found[match[1]]), here or ".") if match[1] in found else match[1], markdown
    )


def outside_links(markdown: str, src_uri: str) -> Iterator[tuple[str, str]]:
    """Yield (link, path from the repository's root) of links to files that exist and are no part of the site."""
    for link in _LINK.findall(markdown):
        path = os.path.normpath(posixpath.join("docs", posixpath.dirname(src_uri), link)).replace(os.sep, "/")
        is_inside = path.startswith("docs/") and Path(path).suffix not in _SHOWN
        if not is_inside and not path.startswith("..") and ":" not in link and (ROOT / path).exists():
            yield link, path


def address(path: str) -> str:
    """Return the place of a repository's file on the site; notebooks have pages (notebooks.py)."""
    if path.endswith(NOTEBOOK):
        return path.removesuffix(NOTEBOOK) + ".md"
    return f"{FOLDER}/{path}.md" if is_shown(path) else f"{FOLDER}/{path}"
