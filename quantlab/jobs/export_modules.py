"""Write a model as a folder for people who look inside: plain weights, its modules by name, and an example of hooks."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from quantlab.errors import ConfigError
from quantlab.files import whole_folder
from quantlab.models.huggingface import ADAPTER
from quantlab.models.loading import load
from quantlab.tensor_file import write_safetensors

STATE_NAME, MODULES_NAME, HOOKS_NAME = "state.safetensors", "modules.json", "hooks.py"
FILES = re.compile(r"state\.safetensors|modules\.json|hooks\.py")
_HOOKS = '''\
"""Run a model on a few tokens and print the size of what each module gives: python hooks.py [NAME...]

modules.json lists the names. Needs quantlab (pip install quantlab-llm).
"""

import sys
from pathlib import Path

import torch

import quantlab

loaded = quantlab.load(Path(__file__).with_name("state.safetensors"))
model, seen = loaded.model, {}


def keep(name):
    def hook(module, inputs, output):
        seen[name] = output[0] if isinstance(output, tuple) else output

    return hook


wanted = sys.argv[1:] or [name for name, module in model.named_modules() if name and not list(module.children())]
handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in wanted]
with torch.no_grad():
    model(torch.arange(16)[None] % loaded.vocab_size)
for handle in handles:
    handle.remove()
for name, value in seen.items():
    print(f"{name}  {list(value.shape)}  mean square {value.float().square().mean().item():.4g}")
'''


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedModules:
    """What was written."""

    folder: str
    modules: int
    parameters: int


def export_modules(source: str | Path, output: str | Path, *, force: bool = False) -> ExportedModules:
    """Write the weights of a model of the built-in architecture in full precision, the list of its modules, and hooks.py.

    Args:
        source: a checkpoint or an artifact.
        output: the folder to write.
    Raises:
        ConfigError: the folder exists, or the model is of another architecture.
        CheckpointError, FormatError: the source cannot be read.
    """
    loaded, folder = load(source), Path(output)
    if not loaded.config or loaded.config.get("adapter") == ADAPTER:
        hint = "quantlab unpack writes a folder that from_pretrained loads"
        raise ConfigError(f"{source} is no model of the built-in architecture", hint=hint)
    about = _modules(loaded.model)
    with whole_folder(folder, replaceable=FILES, force=force) as partial:
        past = loaded.provenance.to_metadata() | {"gpt_config": json.dumps(loaded.config, sort_keys=True)}
        write_safetensors(partial / STATE_NAME, loaded.state, past)
        (partial / MODULES_NAME).write_text(json.dumps(about, indent=2) + "\n")
        (partial / HOOKS_NAME).write_text(_HOOKS)
    return ExportedModules(folder=str(folder), modules=len(about), parameters=sum(t.numel() for t in loaded.state.values()))


def _modules(model: nn.Module) -> list[dict[str, Any]]:
    """Return name, class, and the shapes of the own parameters of each module, in the order of the model."""
    return [
        {
            "name": name,
            "class": type(module).__name__,
            "parameters": {key: list(value.shape) for key, value in module.named_parameters(recurse=False)},
        }
        for name, module in model.named_modules()
        if name
    ]
