import ast
import sys
import sysconfig
from pathlib import Path

import pytest

from quantlab.errors import DataError
from quantlab.text import stdlib_corpus
from quantlab.text.stdlib_corpus import (
    Document,
    module_documents,
    shuffled,
    split_of,
    stdlib_documents,
    topic_documents,
    without_repeats,
)

SOURCE = '''\
# héad comment
"""Module
   doc."""
import os; x = "kept"
class A:
    r"""Class é doc."""
    def f(self): "one line"; return 1
    async def g(self):
        # before
        """Async
            doc.
        """
        if x:
            def h(): "inner"
        else:
            try: pass
            except OSError:
                class E: "handler"
        match x:
            case 1:
                def i(): "case"
        return "not a docstring"
    def none(self): pass
'''
CODE = """\
# héad comment
import os; x = "kept"
class A:
    def f(self): ; return 1
    async def g(self):
        # before
        if x:
            def h():{space}
        else:
            try: pass
            except OSError:
                class E:{space}
        match x:
            case 1:
                def i():{space}
        return "not a docstring"
    def none(self): pass"""


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def document(name: str, text: str, split: str = "train") -> Document:
    return Document(name=name, text=text.encode(), split=split)  # type: ignore[arg-type]


def test_docstrings_and_code_are_cut_apart_exactly(tmp_path):
    write(tmp_path, {"pkg/__init__.py": SOURCE.replace("\n", "\r\n")})
    docs, code = sorted(module_documents(tmp_path), key=lambda document: document.name, reverse=True)
    assert (docs.name, code.name) == ("pkg/docs", "pkg/code")
    assert docs.text.decode() == "Module\ndoc.\n\nClass é doc.\n\none line\n\nAsync\ndoc.\n\ninner\n\nhandler\n\ncase"
    assert code.text.decode() == CODE.format(space=" ")


def test_tests_tables_packages_and_broken_files_are_left_out(tmp_path):
    good = "x = 1\n"
    skipped = ["test/a.py", "json/tests/a.py", "site-packages/a.py", "encodings/a.py", "locale.py", "html/entities.py"]
    write(tmp_path, dict.fromkeys(skipped, good))
    write(tmp_path, {"bad.py": "def (:\n", "nul.py": b"x = '\0'\n", "latin.py": b"# -*- coding: latin-1 -*-\n# \xe9\n"})
    write(tmp_path, {"utf.py": b"# \xe9\n", "huge.py": good * 60_000, "a/b.py": good, "html/parser.py": good})
    names = {document.name.split("/")[0] for document in module_documents(tmp_path)}
    assert names == {"a.b", "html.parser", "latin"}
    texts = {document.name: document.text for document in module_documents(tmp_path)}
    assert texts["latin/code"].decode().endswith("# é")


def test_a_python_without_sources_or_topics_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=f"no Python sources below {tmp_path}"):
        module_documents(tmp_path)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="no documentation topics"):
        topic_documents()


def test_repeated_text_stays_only_where_it_comes_first_val_before_train():
    licence = "# Licensed to the foundation under this or that agreement.\n# Without any warranty, express or implied.\n"
    body = {name: "".join(f"{name} line {i} of the text\n\n" for i in range(12)) for name in "abc"}
    documents = [
        document("c", f"# Copyright 2001 C.\n{licence}\n{body['c']}", "train"),
        document("b", f"# Copyright 1999 B, Inc.\n{licence}\n{body['b']}", "val"),
        document("a", f"# Copyright 2003 A.\n{licence}\n{body['a']}", "train"),
        document("d", body["a"].strip(), "train"),
        document("e", "too short", "train"),
    ]
    kept = {document.name: document.text.decode() for document in without_repeats(documents)}
    assert list(kept) == ["a", "b", "c"]
    assert kept["b"] == documents[1].text.decode().strip()
    assert kept["a"] == body["a"].strip()
    assert kept["c"] == body["c"].strip()


def test_indentation_blank_lines_and_common_short_lines_stay():
    text = "class A:\n    x = 1\n\n    def f(self):\n        return None\n\n\n" * 6
    kept = without_repeats([document("a", text + "first"), document("b", text + "second")])
    assert [document.text.decode() for document in kept] == [text + "first", text + "second"]


def test_both_documents_of_a_module_are_on_the_side_that_its_name_gives(tmp_path):
    names = [f"module{i}" for i in range(400)]
    write(tmp_path, {f"{name}.py": f'"""Doc of {name}."""\nx = 1\n' for name in names})
    documents = module_documents(tmp_path)
    assert len(documents) == 800
    assert all(document.split == split_of(document.name.split("/")[0]) for document in documents)
    assert 0.02 < sum(document.split == "val" for document in documents) / 800 < 0.09
    assert [split_of(name) for name in ("unittest.mock", "json")] == ["val", "train"], "the split must never move"


def test_shuffling_depends_on_the_seed_and_not_on_the_order():
    documents = [document(f"d{i}", "") for i in range(20)]
    order = shuffled(documents, seed=1)
    assert order == shuffled(documents[::-1], seed=1)
    assert order != shuffled(documents, seed=2)
    assert order != documents
    assert sorted(order, key=lambda d: d.name) == sorted(documents, key=lambda d: d.name)


def test_topics_are_the_text_of_pydoc():
    topics = {document.name: document for document in topic_documents()}
    assert topics["topic/if"].text.startswith(b'The "if" statement\n')
    assert topics["topic/if"].split == split_of("topic/if")


def test_the_corpus_of_this_python(monkeypatch):
    wanted = stdlib_corpus._is_wanted  # some of the modules: parsing them all takes several seconds
    monkeypatch.setattr(
        stdlib_corpus, "_is_wanted", lambda path, relative: "a" <= relative.name < "d" and wanted(path, relative)
    )
    documents = stdlib_documents()
    assert [document.name for document in documents] == sorted(document.name for document in documents)
    assert {document.name.rpartition("/")[2] for document in documents} >= {"docs", "code", "compound"}
    assert all(len(document.text) >= 200 and document.text == document.text.strip() for document in documents)
    sizes = {split: sum(len(d.text) for d in documents if d.split == split) for split in ("train", "val")}
    assert sizes["train"] > 500_000
    assert 0.01 < sizes["val"] / sizes["train"] < 0.15
    argparse = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text("utf-8")
    doc = ast.get_docstring(ast.parse(argparse)) or "?"
    code = {document.name: document.text.decode() for document in documents}["argparse/code"]
    assert "ArgumentParser" in code
    assert doc.splitlines()[0] not in code
