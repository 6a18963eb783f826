"""The recipes in examples/ for other machines: they parse, and their quantlab commands exist."""

import ast
import re
from pathlib import Path

import pytest
from test_commands_in_docs import arguments, parse

from quantlab.pipeline.read import read_pipeline
from quantlab.pipeline.search_space import read_space

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = ("modal_search.py", "slurm_search.py", "skypilot_search.yaml", "nightly.sh")
COMMAND = re.compile(r"quantlab (?:[a-z]+ )+[^\n|]*")


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_of_a_recipe_can_be_typed(name: str):
    text = (EXAMPLES / name).read_text()
    if name.endswith(".py"):
        ast.parse(text)
    lines = [line.removesuffix('"') if name.endswith(".py") else line for line in COMMAND.findall(text)]
    calls = [words for line in lines if (words := arguments(line.replace("{space}", "s.toml").replace("$space", "s.toml")))]
    assert any(words[:2] == ["search", "run"] for words in calls), lines
    for words in calls:
        parse(words)


def test_every_example_is_read_by_quantlab():
    files = sorted(EXAMPLES.glob("*.toml"))
    assert {"laptop.toml", "eight_h100.toml", "search.toml"} <= {path.name for path in files}
    for path in files:
        if "[search]" in path.read_text():
            assert read_space(path).axes
        elif path.name != "eight_h100.toml":  # its data are not here
            assert read_pipeline(path)
