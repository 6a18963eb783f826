"""quantlab export: the weights are those of the model, and the example of hooks runs and sees every module."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quantlab.cli.main import run
from quantlab.models.loading import load

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_folder_is_the_model_and_its_hooks_run(toy_checkpoint: Path, toy_state, tmp_path: Path, capsys):
    out = tmp_path / "inside"
    assert run(["export", str(toy_checkpoint), "-o", str(out)]) == 0
    assert "parameters" in capsys.readouterr().out
    state = load(out / "state.safetensors").state
    assert all(torch.equal(state[name], tensor) for name, tensor in toy_state.items())
    modules = json.loads((out / "modules.json").read_text())
    assert {f"{m['name']}.{key}" for m in modules for key in m["parameters"]} <= toy_state.keys()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, out / "hooks.py"], capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert any(line.startswith("blocks.1.mlp.proj  [1, 16, 64]  mean square ") for line in lines), lines
    assert run(["export", str(toy_checkpoint), "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
