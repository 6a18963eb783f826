"""The folders on disk, the packages that are installed, and the direction of imports."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPING = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
SOURCES = ("quantlab", "kernels", "trainer", "calib")

# A package may import those that come after it, and the modules that lie directly in quantlab/.
LAYERS = [
    "cli",
    "pipeline",
    "runs",
    "report",
    "search",
    "trainer",
    "calib",
    "quant",
    "text",
    "artifact",
    "checkpoint",
    "coding",
    "kernels",
]


def test_every_source_folder_is_packaged_under_quantlab():
    folders = {f.parent.relative_to(ROOT).as_posix() for top in SOURCES for f in (ROOT / top).rglob("*.py")}
    assert folders == set(MAPPING["package-dir"].values())
    assert set(MAPPING["package-dir"]) == set(MAPPING["packages"])
    assert all(name.split(".")[0] == "quantlab" for name in MAPPING["packages"])


def test_source_folders_do_not_shadow_other_distributions():
    assert not any((ROOT / name / "__init__.py").exists() for name in ("kernels", "trainer", "calib"))


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("quantlab."):
            names.add(node.module.split(".")[1])
    return names & set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer):
    folder = ROOT / layer if (ROOT / layer).is_dir() else ROOT / "quantlab" / layer
    allowed = set(LAYERS[LAYERS.index(layer) :])
    wrong = {f"{f.name} imports {name}" for f in folder.rglob("*.py") for name in _imports(f) - allowed}
    assert not wrong


def test_help_does_not_load_torch():
    """A command line that answers --help in a tenth of a second imports torch only inside its commands."""
    import subprocess
    import sys

    code = "import sys; from quantlab.cli.main import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
