"""The files and commands of docs/recipes/own_model.md run at toy size."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fences import fences
from safetensors.torch import load_file

from quantlab.cli.main import run
from quantlab.models.factory import load_factory

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes" / "own_model.md"
TOY = {"--budget": "60KB", "--calib-seq-len": "32"}


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the page in their order."""
    return [fence.text for fence in fences(PAGE) if fence.language == language]


def arguments(line: str) -> list[str]:
    """Return the arguments of one command line of the page, with the sizes of a toy."""
    words = shlex.split(line)[1:]
    return [TOY.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def test_the_page_s_model_is_packed_probed_unpacked_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread):
    monkeypatch.chdir(tmp_path)
    model_file, use_file = blocks("python")
    Path("my_model.py").write_text(model_file)
    module = sys.modules[load_factory("my_model.py:build").__module__]
    torch.manual_seed(0)
    model = module.MyModel(vocab=300, width=64, context=128, layers=1, hidden=128)
    torch.save(model.state_dict(), "mine.pt")

    pack, probe, unpack = blocks("")[0].splitlines()
    assert run([*arguments(pack), "--calib-tokens", "512", "--no-tune"]) == 0
    assert run(arguments(probe)) == 0
    assert run(arguments(unpack)) == 0

    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {}
    exec(use_file, names)
    for name in ("decoder", "my_model"):
        del sys.modules[name]
    unpacked = load_file("state.safetensors")
    assert all(torch.equal(tensor, unpacked[name]) for name, tensor in names["model"].state_dict().items())
    ids = torch.randint(300, (2, 16))
    expected = model.eval()(ids)
    assert (names["model"].eval()(ids) - expected).norm() < 0.1 * expected.norm()  # at about 9 bits a weight it is 0.03
