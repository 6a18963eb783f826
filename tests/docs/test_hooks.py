"""Each hook of the site does its part."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

HOOKS = Path(__file__).resolve().parents[2] / "docs" / "hooks"


def hook(name: str) -> ModuleType:
    """Return a module of docs/hooks, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location(f"hook_{name}", HOOKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(src_uri: str) -> SimpleNamespace:
    """Return an object with the parts of a page that hooks read."""
    return SimpleNamespace(file=SimpleNamespace(src_uri=src_uri), meta={})


@pytest.mark.parametrize(
    ("link", "there"),
    [
        ("../kernels/unpack_weights.py", "source/kernels/unpack_weights.py.md"),
        ("../benchmarks/results/gaussian_source.json", "source/benchmarks/results/gaussian_source.json"),
        ("../examples", "source/examples.md"),
        ("../notebooks/4_the_trellis_by_hand.ipynb", "notebooks/4_the_trellis_by_hand.md"),
        ("figures/draw.py", "source/docs/figures/draw.py.md"),
        ("format.md", "format.md"),
        ("../no_such_file.py", "../no_such_file.py"),
        ("https://example.org/a.py", "https://example.org/a.py"),
    ],
)
def test_links_out_of_the_docs_lead_to_pages_of_the_site(link: str, there: str):
    changed = hook("sources").on_page_markdown(f"See [this]({link}), please.", page("kernels.md"), None, None)
    assert changed == f"See [this]({there}), please."


def test_links_from_a_folder_go_up_first():
    changed = hook("sources").on_page_markdown("[m](../../trainer/model.py)", page("recipes/browser.md"), None, None)
    assert changed == "[m](../source/trainer/model.py.md)"


def test_a_formula_becomes_mathml():
    html = hook("formulas").on_page_content(r'<span class="arithmatex">\(a &lt; b\)</span>', page("method.md"), None, None)
    assert html.startswith("<math") and "<mi>a</mi>" in html and "&#x0003C;" in html


@pytest.mark.parametrize("latex", [r"\left( a", r"\nosuch x", "a_", "{a}}"])
def test_a_broken_formula_names_its_page(latex: str):
    with pytest.raises(PluginError, match=r"method\.md: the formula "):
        hook("formulas").on_page_content(rf'<div class="arithmatex">\[{latex}\]</div>', page("method.md"), None, None)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Tokens.  [default: 8]", "Tokens. Default: `8`."),
        ("The file.  [required]", "The file. Required."),
        ("First N.  [default: 20; x>=0]", "First N. Default: `20`. At least 0."),
        ("A list [a, b]", "A list [a, b]"),
    ],
)
def test_what_the_command_line_says_of_a_default_becomes_a_sentence(text: str, wanted: str):
    assert hook("commands")._sentences(text) == wanted


def test_a_result_without_columns_of_its_own_shows_its_values():
    rows = [{"kernel": "unpack", "ms": 0.12345, "peers_ms": {"reference": 2.0}, "points": [1]}, {"kernel": "a|b", "ok": True}]
    assert hook("results").named_table("kernels_card", rows).splitlines()[2:6] == [
        "| kernel | ms | peers ms reference | ok |",
        "|---|---|---|---|",
        "| unpack | 0.1235 | 2 |  |",
        "| a\\|b |  |  | True |",
    ]


def test_a_table_that_the_page_names_must_be_there():
    with pytest.raises(PluginError, match=r"no_such\.rows"):
        hook("results").on_page_markdown("<!-- results: no_such.rows -->", page("benchmarks.md"), None, None)


def test_a_section_of_a_docstring_is_set_off_by_a_blank_line():
    text = "Do it.\n\nArgs:\n    x: one.\nReturns:\n    Two.\nRaises:\n    KeyError: three."
    assert hook("docstrings").with_blank_lines(text) == text.replace("\nReturns", "\n\nReturns").replace(
        "\nRaises", "\n\nRaises"
    )
