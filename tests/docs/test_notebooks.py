"""The notebooks as they are kept: run from top to bottom, with their pictures, and nothing of the machine that ran them.

That they run is tested by nbmake, which executes each (pyproject.toml).
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def test_there_are_five():
    assert [path.name[0] for path in NOTEBOOKS] == list("12345")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_from_one_run_without_errors(path: Path):
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert {output["output_type"] for output in outputs(path)} <= {"stream", "display_data", "execute_result"}
    assert not any(output.get("name") == "stderr" for output in outputs(path)), "warnings are no part of a lesson"
    assert any("image/png" in output.get("data", {}) for output in outputs(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_the_machine_is_in_it(path: Path):
    text = path.read_text()
    assert not re.search(r"/(?:home|root|tmp|work|Users|usr|opt)/", re.sub(r'"image/png": "[^"]*"', "", text))
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_to_files(path: Path):
    links = [link for cell in cells(path, "markdown") for link in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"]))]
    assert links
    for link in links:
        assert ":" in link or (path.parent / link.split("#")[0]).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_package_never_needs_them(path: Path):
    assert path.stem not in "".join(
        file.read_text() for folder in ("quantlab", "kernels", "trainer", "calib") for file in (ROOT / folder).rglob("*.py")
    )
