"""A text corpus that is on every machine: English and Python from the standard library of the running CPython.

It consists of pydoc's documentation topics and, for each module, of its docstrings and of its source without them. The corpus
differs between Python versions, so scores can be compared on one version only.
"""

import ast
import hashlib
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from quantlab.errors import DataError

MIN_BYTES = 200
"""Shortest document of the corpus."""
MAX_SOURCE_BYTES = 300_000
"""A larger source file is generated data; the largest that was written by hand has 229,000 bytes."""
REPEAT_BYTES = 30
"""Only lines of this length or more can show repeated text; shorter ones ("return None", "See also:") repeat by nature."""
VAL_SHARE = 20
"""One name in this many is in the validation split (on CPython 3.11 that is 5 % of the bytes too)."""
SKIPPED_FOLDERS = frozenset(
    ["site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"]
)
TABLES = re.compile(r"_sysconfigdata.*|html/entities\.py|locale\.py")
"""Modules that are mostly generated tables, by path below the library's folder."""

_Scoped = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text of the corpus."""

    name: str
    """Origin of the text: `topic/if`, `json.decoder/docs` or `json.decoder/code`."""
    text: bytes
    """Text in UTF-8, stripped, 200 bytes or more."""
    split: Literal["train", "val"]
    """Split of the text; both documents of a module are in the same."""


def stdlib_documents() -> list[Document]:
    """Return the corpus, sorted by name; the same Python version gives the same documents.

    Raises:
        DataError: this Python ships no readable sources or no pydoc topics.
    """
    root = Path(sysconfig.get_path("stdlib"))
    return without_repeats([*topic_documents(), *module_documents(root)])


def shuffled(documents: Iterable[Document], *, seed: int) -> list[Document]:
    """Return the documents in order of a hash of seed and name: the same for every Python version and input order."""
    return sorted(documents, key=lambda document: hashlib.sha256(f"{seed}:{document.name}".encode()).digest())


def split_of(name: str) -> Literal["train", "val"]:
    """Return the split of a module or topic.

    The module's name decides, not the document's: docstrings describe the source, so training on one and scoring on the other
    would be leakage.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") % VAL_SHARE == 1 else "train"


def topic_documents() -> list[Document]:
    """Return every documentation topic of pydoc. DataError if this Python comes without them."""
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(f"this Python ships no documentation topics (pydoc_data.topics): {error}") from error
    return [_document(f"topic/{name}", "", text) for name, text in topics.items()]


def module_documents(root: Path) -> list[Document]:
    """Return for each .py module below `root` its docstrings and its source without them, in no particular order.

    Files that do not parse are left out, as are tests, tables and installed packages.

    Raises:
        DataError: no module below `root` has source.
    """
    documents: list[Document] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _is_wanted(path, relative) and (parts := _split_source(path)):
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            documents += [_document(module, "/docs", parts[0]), _document(module, "/code", parts[1])]
    if not documents:
        raise DataError(f"no Python sources below {root}: this Python ships compiled modules only")
    return documents


def without_repeats(documents: Sequence[Document]) -> list[Document]:
    """Return the documents sorted by name, without repeated paragraphs and without those that are then below 200 bytes.

    Licences, boilerplate and topics within topics repeat, often with another year or author, and must not be in both splits.
    So a paragraph is removed if more than half of it is lines of earlier documents. Validation comes before training: its text
    stays whole, and training loses what would leak.
    """
    seen: set[bytes] = set()
    kept: list[Document] = []
    for document in sorted(documents, key=lambda document: (document.split == "train", document.name)):
        paragraphs = re.split(rb"\n\s*?\n", document.text)  # lazy, so that one of two blank lines stays
        text = b"\n\n".join(paragraph for paragraph in paragraphs if not _is_repeat(paragraph, seen)).strip()
        if len(text) >= MIN_BYTES and text not in seen:
            kept.append(Document(name=document.name, text=text, split=document.split))
        seen.update(_long_lines(document.text))
        seen.add(text)  # finds equal documents that have short lines only
    return sorted(kept, key=lambda document: document.name)


def _is_repeat(paragraph: bytes, seen: set[bytes]) -> bool:
    repeated = sum(len(line) for line in _long_lines(paragraph) if line in seen)
    return 2 * repeated > len(b" ".join(paragraph.split()))


def _long_lines(text: bytes) -> list[bytes]:
    lines = (b" ".join(line.split()) for line in text.split(b"\n"))
    return [line for line in lines if len(line) >= REPEAT_BYTES]


def _document(name: str, part: str, text: str) -> Document:
    return Document(name=name + part, text=text.encode("utf-8", "replace").strip(), split=split_of(name))


def _is_wanted(path: Path, relative: Path) -> bool:
    if SKIPPED_FOLDERS.intersection(relative.parts) or TABLES.fullmatch(relative.as_posix()):
        return False
    return path.stat().st_size <= MAX_SOURCE_BYTES


def _split_source(path: Path) -> tuple[str, str] | None:
    """Return (docstrings, source without docstrings) of a file; None if it does not parse."""
    try:
        with tokenize.open(path) as file:  # honours the coding line and makes every newline "\n"
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            scopes = list(_scopes(ast.parse(source)))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    docstrings = [ast.get_docstring(node) or "" for node in scopes]
    return "\n\n".join(docstrings), _without([node.body[0] for node in scopes], source)


def _scopes(node: ast.AST) -> Iterator[_Scoped]:
    """Yield all nodes with a docstring, in source order; expressions, which take half of ast.walk's time, are not visited."""
    if isinstance(node, _Scoped) and ast.get_docstring(node, clean=False) is not None:
        yield node
    for field in ("body", "cases", "handlers", "orelse", "finalbody"):
        for child in getattr(node, field, []):
            yield from _scopes(child)


def _without(statements: list[ast.stmt], source: str) -> str:
    """Return the source without these statements (sorted by line) and without the lines that they leave blank."""
    lines = source.encode("utf-8").split(b"\n")  # ast counts columns in UTF-8 bytes
    for statement in reversed(statements):
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        rest = lines[first][: statement.col_offset] + lines[last][statement.end_col_offset :]
        lines[first : last + 1] = [rest] if rest.strip() else []
    return b"\n".join(lines).decode("utf-8")
