"""A user's own model file: found, run, checked, and its mistakes named in one line."""

import pytest
import torch
from torch import nn

from quantlab.errors import ConfigError, QuantlabError, ShapeError
from quantlab.models.factory import build_model, check_model, load_factory

USER_FILE = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:
    width: "int" = 3

def factory(state):
    vocab, width = state["0.weight"].shape
    model = nn.Sequential(nn.Embedding(vocab, width), nn.Linear(Settings().width, vocab, bias=False))
    model.load_state_dict(state)
    return model

def broken(state):
    raise KeyError("first line\\nsecond line")

def wrong(state):
    return state

number = 3
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_model.py"
    path.write_text(USER_FILE)
    return path


def test_the_users_factory_builds_the_model(user_file):
    state = {"0.weight": torch.randn(7, 3), "1.weight": torch.randn(7, 3)}
    model = build_model(state, f"{user_file}:factory")
    assert not model.training
    assert check_model(model) == 7
    assert torch.equal(model.state_dict()["1.weight"], state["1.weight"])


@pytest.mark.parametrize("spec", ["", "factory", "file.py", "file.txt:factory", "file.py:", "file.py:not a name", ":factory"])
def test_a_bad_spec_is_refused(spec):
    with pytest.raises(ConfigError, match=r"must look like path/to/file\.py:factory"):
        load_factory(spec)


def test_a_missing_file_or_function_is_refused(user_file):
    with pytest.raises(ConfigError, match=r"absent\.py does not exist"):
        load_factory(f"{user_file.parent}/absent.py:factory")
    with pytest.raises(ConfigError, match="has no function build"):
        load_factory(f"{user_file}:build")
    with pytest.raises(ConfigError, match=r"must be a function .* got int"):
        load_factory(f"{user_file}:number")
    with pytest.raises(ConfigError, match=r"must return an nn\.Module, got dict"):
        build_model({}, f"{user_file}:wrong")


def test_an_exception_in_the_users_code_becomes_one_line_with_its_cause(user_file, tmp_path):
    with pytest.raises(QuantlabError) as caught:
        build_model({}, f"{user_file}:broken")
    assert "\n" not in str(caught.value) and "KeyError" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    bad = tmp_path / "bad.py"
    bad.write_text("import math\nmath.no_such_name\n")
    with pytest.raises(QuantlabError, match=r"bad\.py failed on import: AttributeError"):
        load_factory(f"{bad}:factory")


def test_a_users_file_that_ends_the_program_is_an_error_and_not_an_early_success(tmp_path):
    leaves = tmp_path / "leaves.py"
    leaves.write_text("import sys\ndef factory(state):\n    sys.exit(0)\n")
    with pytest.raises(QuantlabError, match=r"leaves\.py:factory failed: it called sys\.exit\(0\)"):
        build_model({}, f"{leaves}:factory")
    leaves.write_text("raise SystemExit('no way')\n")
    with pytest.raises(QuantlabError, match=r"leaves\.py failed on import: it called sys\.exit\('no way'\)"):
        load_factory(f"{leaves}:factory")


class Fixed(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, ids):
        return self.answer(ids)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda ids: torch.zeros(1, 3, 6), r"must return logits \[1, 4, vocabulary\], got \[1, 3, 6\]"),
        (lambda ids: torch.zeros(1, 4, 5, dtype=torch.int64), "got torch.int64"),
        (lambda ids: (torch.zeros(1, 4, 5), None), "got tuple"),
        (lambda ids: torch.full((1, 4, 5), torch.nan), "not all finite"),
        (lambda ids: torch.zeros(2) @ torch.zeros(3), r"fails on ids \[1, 4\]: RuntimeError"),
    ],
)
def test_a_model_that_returns_no_logits_is_refused(answer, message):
    with pytest.raises(ShapeError, match=message):
        check_model(Fixed(answer))
