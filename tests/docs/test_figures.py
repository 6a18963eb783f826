"""The pictures of docs/method.md are those of the results and of the code that draws them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    """Return the module docs/figures/draw.py."""
    spec = importlib.util.spec_from_file_location("draw_figures", FIGURES / "draw.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_drawn_from_the_results_that_are_there(draw: ModuleType):
    for name, (function, sources) in draw.FIGURES.items():
        picture = (FIGURES / f"{name}.png").read_bytes()
        assert draw.digest(function, sources).encode() in picture, f"{name}.png is old: run docs/figures/draw.py"


def test_every_figure_is_on_the_page(draw: ModuleType):
    page = (ROOT / "docs" / "method.md").read_text()
    assert {path.stem for path in FIGURES.glob("*.png")} == set(draw.FIGURES)
    assert not [name for name in draw.FIGURES if f"figures/{name}.png" not in page]
