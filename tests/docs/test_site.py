"""The site that `make docs` builds: complete, without warnings, and nothing in it is loaded from elsewhere."""

import inspect
import json
import re
from html import unescape
from pathlib import Path

import pytest
import typer
from mkdocs.commands.build import build
from mkdocs.config import load_config

import quantlab
from quantlab.cli.main import app
from quantlab.report.tables import measures

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("codes", "scales", "entropy_model", "passthrough", "manifest", "framing")
"""Keys of the size breakdown."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site and return its folder. A warning is an error (strict)."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    return folder


def text_of(page: Path) -> str:
    """Return the text of a page, without tags."""
    html = page.read_text()
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html[html.index("<article") : html.index("</article>")])).split())


def test_nothing_is_loaded_from_elsewhere(site: Path):
    loads = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^"'>\s]+""")
    for page in site.rglob("*.html"):
        assert not loads.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"""(?:@import|url\()\s*["']?(?:https?:)?//[^"')]+""", style.read_text()), style


def test_every_command_has_a_page_with_all_its_options(site: Path):
    def walk(command, before=()):
        for word, inner in command.commands.items():
            yield from walk(inner, (*before, word)) if hasattr(inner, "commands") else [((*before, word), inner)]

    overview = text_of(site / "commands.html")
    for words, command in walk(typer.main.get_command(app)):
        text = text_of(site / "commands" / f"{'_'.join(words)}.html")
        assert text.startswith(f"quantlab {' '.join(words)}")
        options = [name for p in command.params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)]
        assert not [name for name in options if name not in text], words
        assert "Example" in text, f"{words} has no example in its help"
        assert f"quantlab {' '.join(words)}" in overview


def test_every_public_function_is_on_the_page_of_python(site: Path):
    html = (site / "api.html").read_text()
    for name in quantlab.__all__:
        section = html[html.index(f'<h3 id="quantlab.{name}"') :]
        section = unescape(re.sub(r"<[^>]+>", "", section[: section.index("<h3", 3)]))
        function = getattr(quantlab, name)
        assert " ".join(function.__doc__.split("\n")[0].split()).replace("`", "") in " ".join(section.split())
        assert not [parameter for parameter in inspect.signature(function).parameters if parameter not in section], name
        documented = re.findall(r"^(\w+Error)(?:, \w+Error)*: ", inspect.getdoc(function) or "", re.MULTILINE)
        assert "Raises:" in section or not documented, name
    assert all(f'id="{name}"' in html for name in re.findall(r'href="#(quantlab[\w.]+)"', html))


def test_the_glossary_has_every_line_of_the_tables(site: Path):
    text = text_of(site / "glossary.html").lower()
    assert not [name for name, _ in measures([]) if name.strip().lower() not in text]
    assert not [part for part in PARTS if part.replace("_", " ") not in text or part not in text]


def test_formulas_are_mathml(site: Path):
    html = (site / "method.html").read_text()
    assert html.count("<math") > 30
    assert "arithmatex" not in html and "\\frac" not in html and "$$" not in html


def test_the_benchmark_page_shows_every_result(site: Path):
    text = text_of(site / "benchmarks.html")
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        for row in json.loads(path.read_text()).get("rows", []):
            assert str(row.get("method", "")) in text
            if "kl_mean" in row:
                assert f"{row['bytes']:,}" in text and f"{row['kl_mean']:.5f}" in text
    assert "<!--" not in text and "results:" not in text


def test_sources_that_pages_link_to_are_on_the_site(site: Path):
    shown = text_of(site / "source" / "kernels" / "packed.py.html")
    assert (ROOT / "kernels" / "packed.py").read_text().splitlines()[0] in shown
    assert (site / "source" / "benchmarks" / "results" / "gaussian_source.json").is_file()


def test_links_of_the_readme_lead_somewhere():
    for link in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / "README.md").read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_notebooks_are_pages_with_their_pictures(site: Path):
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = site / "notebooks" / f"{notebook.stem}.html"
        kept = sum(
            "image/png" in output.get("data", {})
            for cell in json.loads(notebook.read_text())["cells"]
            for output in cell.get("outputs", [])
        )
        drawn = re.findall(rf'<img [^>]*src="({notebook.stem}-[^"]+\.png)"', page.read_text())
        assert len(drawn) == kept > 0
        assert all((page.parent / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
