"""A text corpus that is already on the machine: English and Python from the standard library of the running CPython.

The documentation topics of pydoc, and for each module its docstrings and its source without them. Python versions
differ, so does the corpus: scores compare on one version only.
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
MAX_SOURCE_BYTES = 300_000
"""A source file above this is generated data; the largest written by hand has 229,000."""
REPEAT_BYTES = 30
"""Lines from this length on can be repeated text; shorter ones ("return None", "See also:") repeat by nature."""
VAL_SHARE = 20
"""One name in this many is held out (on CPython 3.11 that is 5 % of the bytes too)."""
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
    """Where it comes from: `topic/if`, `json.decoder/docs` or `json.decoder/code`."""
    text: bytes
    """UTF-8, stripped, 200 bytes or more."""
    split: Literal["train", "val"]
    """Which side it is on; both documents of a module are on the same."""


def stdlib_documents() -> list[Document]:
    """The corpus, sorted by name; the same Python version gives the same documents.

    Raises:
        DataError: this Python ships no readable sources or no pydoc topics.
    """
    root = Path(sysconfig.get_path("stdlib"))
    return without_repeats([*topic_documents(), *module_documents(root)])


def shuffled(documents: Iterable[Document], *, seed: int) -> list[Document]:
    """Documents in an order given by a hash of seed and name: the same for every Python version and input order."""
    return sorted(documents, key=lambda document: hashlib.sha256(f"{seed}:{document.name}".encode()).digest())


def split_of(name: str) -> Literal["train", "val"]:
    """The side of a module or topic.

    The name of the module decides, not that of the document: its docstrings describe its source, so to train on
    the one and be scored on the other would be leakage.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") % VAL_SHARE == 1 else "train"


def topic_documents() -> list[Document]:
    """Every documentation topic of pydoc. Raises DataError when this Python comes without them."""
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(f"this Python ships no documentation topics (pydoc_data.topics): {error}") from error
    return [_document(f"topic/{name}", "", text) for name, text in topics.items()]


def module_documents(root: Path) -> list[Document]:
    """For each .py module below root: its docstrings and its source without them, in no particular order.

    Files that do not parse are left out, as are tests, tables and installed packages.

    Raises:
        DataError: no module below root has source.
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
    """Documents sorted by name, without paragraphs seen in an earlier one, nor those that then fall under 200 bytes.

    Licences, boilerplate and topics within topics repeat, often with another year or author; none of it may be in both
    splits. So a paragraph goes when more than half of it is lines of earlier documents. Val comes before train: that
    keeps the text that scores whole, and takes from training what it would leak.
    """
    seen: set[bytes] = set()
    kept: list[Document] = []
    for document in sorted(documents, key=lambda document: (document.split == "train", document.name)):
        paragraphs = re.split(rb"\n\s*?\n", document.text)  # lazy: of two blank lines one stays
        text = b"\n\n".join(paragraph for paragraph in paragraphs if not _is_repeat(paragraph, seen)).strip()
        if len(text) >= MIN_BYTES and text not in seen:
            kept.append(Document(name=document.name, text=text, split=document.split))
        seen.update(_long_lines(document.text))
        seen.add(text)  # finds two equal documents of short lines only
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
    """(docstrings, source without docstrings) of a file; None where it does not parse."""
    try:
        with tokenize.open(path) as file:  # reads the coding line, makes every newline "\n"
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            scopes = list(_scopes(ast.parse(source)))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    docstrings = [ast.get_docstring(node) or "" for node in scopes]
    return "\n\n".join(docstrings), _without([node.body[0] for node in scopes], source)


def _scopes(node: ast.AST) -> Iterator[_Scoped]:
    """Everything with a docstring, in the order of the source. Expressions, half of ast.walk's time, are left out."""
    if isinstance(node, _Scoped) and ast.get_docstring(node, clean=False) is not None:
        yield node
    for field in ("body", "cases", "handlers", "orelse", "finalbody"):
        for child in getattr(node, field, []):
            yield from _scopes(child)


def _without(statements: list[ast.stmt], source: str) -> str:
    """Source without these statements (sorted by line), and without the lines that they leave blank."""
    lines = source.encode("utf-8").split(b"\n")  # ast counts columns in UTF-8 bytes
    for statement in reversed(statements):
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        rest = lines[first][: statement.col_offset] + lines[last][statement.end_col_offset :]
        lines[first : last + 1] = [rest] if rest.strip() else []
    return b"\n".join(lines).decode("utf-8")
