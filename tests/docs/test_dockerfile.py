"""The Dockerfile as far as it can be checked without building it: a pinned image, sources that exist, commands that parse."""

import json
import re
import tomllib
from pathlib import Path

import typer

from quantlab.cli.main import app

ROOT = Path(__file__).resolve().parents[2]


def steps():
    """Return (instruction, argument) of each step, lines that go on joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def of(name):
    return [argument for instruction, argument in steps() if instruction == name]


def test_the_image_is_pinned_and_is_a_python_that_the_package_takes():
    (image,) = of("FROM")
    match = re.fullmatch(r"python:(\d+)\.(\d+)\.(\d+)-slim-[a-z]+", image)
    assert match, image
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tuple(map(int, match.groups()))[:2] >= tuple(map(int, needed.removeprefix(">=").split(".")))[:2]


def test_what_it_copies_exists_and_is_not_ignored():
    ignored = {line for line in (ROOT / ".dockerignore").read_text().split()}
    for argument in of("COPY"):
        for source in argument.split()[:-1]:
            assert (ROOT / source).exists() and source not in ignored, source
    links = [path for path in (ROOT / "quantlab").iterdir() if path.is_symlink()]
    copied = {source for argument in of("COPY") for source in argument.split()[:-1]}
    assert {path.resolve().name for path in links} <= copied  # or the links inside the package would lead nowhere


def test_it_installs_with_the_pinned_versions_and_extras_that_exist():
    (install,) = [argument for argument in of("RUN") if "pip install" in argument]
    extras = re.search(r"'\.\[([a-z,]+)\]'", install)[1].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= known.keys() and "-c constraints.txt" in install


def test_its_commands_are_commands_and_not_run_as_root():
    assert [json.loads(argument) for argument in of("ENTRYPOINT")] == [["quantlab"]]
    (arguments,) = [json.loads(argument) for argument in of("CMD")]
    root = typer.main.get_command(app)
    command = root.commands[arguments[0]]
    command.make_context(arguments[0], arguments[1:], resilient_parsing=False)
    names = [instruction for instruction, _ in steps()]
    assert of("USER") and of("USER") != ["root"] and names.index("USER") < names.index("CMD")
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if match := re.match(r"#\s+docker run .* quantlab ([a-z]+)", line):
            assert match[1] in root.commands
