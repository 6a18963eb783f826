"""The folders that are packaged, and who may import whom."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

import quantlab

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "quantlab"
LINKED = ("kernels", "trainer", "calib")
"""Folders at the top that are links inside the package."""
ROOMS = (
    "cli",
    "pipeline",
    "jobs",
    "share",
    "runs",
    "report",
    "evaluation",
    "methods",
    "models",
    "trainer",
    "calib",
    "artifact",
    "text",
    "coding",
    "kernels",
)
"""A room may import itself, those after it, and the ground: the modules that lie directly in quantlab/."""
DOOR = ("__init__", "__main__")
"""Modules directly in quantlab/ that are no ground: they lead to the public functions and to the command line."""
GROUND = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in DOOR)
METHODS = sorted(path.parent.name for path in PACKAGE.glob("methods/*/__init__.py"))
STARTS_CLI = re.compile(r"""quantlab\.cli|-m quantlab(?![\w.])|["']-m["'],\s*["']quantlab["']""")


def sources(place: str) -> list[Path]:
    """Return the Python files of a room, or of one ground module."""
    return sorted((PACKAGE / place).rglob("*.py")) if (PACKAGE / place).is_dir() else [PACKAGE / f"{place}.py"]


def imports_in(path: Path) -> Iterator[str]:
    """Yield the full name of everything of quantlab that a file names as a module, wherever it stands in the file.

    That is what it imports, also inside functions and for types alone, and modules named by a string, which are loaded by name
    or started as a process. A public function counts as the module that has it.
    """
    package = ("quantlab", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "quantlab")
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            if module == "quantlab":
                yield from (quantlab._HOMES.get(alias.name, f"quantlab.{alias.name}") for alias in node.names)
            elif module.startswith("quantlab."):
                yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"quantlab(\.\w+)+", node.value):
            yield node.value


def places(path: Path) -> set[str]:
    """Return the rooms and ground modules that a file imports."""
    return {name.split(".")[1] for name in imports_in(path) if "." in name} & {*ROOMS, *GROUND}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_below_it(room: str):
    allowed = {*ROOMS[ROOMS.index(room) :], *GROUND}
    wrong = {f"{path.relative_to(PACKAGE)} imports {place}" for path in sources(room) for place in places(path) - allowed}
    assert not wrong


@pytest.mark.parametrize("module", GROUND)
def test_the_ground_imports_only_the_ground(module: str):
    (path,) = sources(module)
    assert places(path) <= set(GROUND)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_does_not_import_another_method(method: str):
    others = tuple(f"quantlab.methods.{name}" for name in METHODS if name != method)
    wrong = {f"{path.name} imports {name}" for path in sources(f"methods/{method}") for name in imports_in(path)}
    assert not [line for line in wrong if line.split(" imports ")[1].startswith(others)]


@pytest.mark.parametrize("place", [*ROOMS[1:], *GROUND])
def test_nothing_below_the_command_line_imports_or_starts_it(place: str):
    for path in sources(place):
        assert not [name for name in imports_in(path) if name.startswith("quantlab.cli")], path
        assert not STARTS_CLI.search(path.read_text()), path


def test_imports_are_found_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The test of the layers sees every way to reach a module."""
    text = """
from quantlab import errors, pack
from . import tables
from ..report.page import write
def f():
    import quantlab.cli.main
    run("quantlab.jobs.evaluate", "see quantlab.load")
"""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x.py").write_text(text)
    assert sorted(imports_in(tmp_path / "runs" / "x.py")) == [
        "quantlab.cli.main",
        "quantlab.errors",
        "quantlab.jobs.evaluate",
        "quantlab.jobs.pack",
        "quantlab.report.page.write",
        "quantlab.runs.tables",
    ]
    assert all(STARTS_CLI.search(line) for line in ('"-m", "quantlab"', "python -m quantlab eval", "quantlab.cli.main"))
    assert not STARTS_CLI.search("python -m quantlab.jobs.evaluate")


def test_every_room_has_its_place_in_the_order():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("name", LINKED)
def test_a_folder_at_the_top_is_a_link_in_the_package(name: str):
    assert (PACKAGE / name).is_symlink(), "this checkout has no symbolic links: clone it onto a file system that has them"
    assert (PACKAGE / name).resolve() == ROOT / name
    assert not (ROOT / name / "__init__.py").exists(), "from the checkout it would shadow another distribution of that name"


def test_every_source_folder_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    found = find_namespace_packages(str(ROOT), include=settings["include"], exclude=settings["exclude"])
    linked = [path for name in LINKED for path in (ROOT / name).rglob("*.py")]
    folders = {path.relative_to(ROOT).parent.as_posix() for path in PACKAGE.rglob("*.py")}
    folders |= {f"quantlab/{path.relative_to(ROOT).parent.as_posix()}" for path in linked}
    assert set(found) == {folder.replace("/", ".") for folder in folders}


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(line for key in ("plots", "html") for line in project["optional-dependencies"][key])]

    def padded(version: str) -> list[int]:
        return [*map(int, version.split(".")), 0, 0][:3]

    allowed = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in needed)
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))
    tested["torch"] = re.search(r"LOWEST_TORCH: (\S+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())[1]
    assert {name: padded(least) for name, least in allowed.items()} == {name: padded(tested[name]) for name in allowed}


def test_the_command_line_loads_torch_only_inside_its_commands():
    code = "import sys; from quantlab.cli.main import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
