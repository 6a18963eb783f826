"""Build a model by a factory function in the user's own file, and check that a model returns logits."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.errors import ConfigError, QuantlabError, ShapeError, first_line

Factory = Callable[[dict[str, Tensor]], nn.Module]

PROBE_TOKENS = 4
"""Tokens that `check_model` runs."""


def load_factory(spec: str) -> Factory:
    """Return the function that `spec`, "path/to/file.py:factory", names. This executes the file, as `import` does.

    Raises:
        ConfigError: the spec has another form, the file or the function does not exist, or the name is not callable.
        QuantlabError: the file raises an exception or calls sys.exit while it is imported.
    """
    path_text, colon, name = spec.rpartition(":")
    if not colon or not path_text.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"model must look like path/to/file.py:factory, got {spec!r}")
    path = Path(path_text)
    if not path.is_file():
        raise ConfigError(f"model file {path} does not exist")
    module = _import_file(path)
    if not hasattr(module, name):
        raise ConfigError(f"model file {path} has no function {name}")
    factory: Factory = getattr(module, name)
    if not callable(factory):
        raise ConfigError(f"{spec} must be a function from state dict to nn.Module, got {type(factory).__name__}")
    return factory


def build_model(state: dict[str, Tensor], spec: str) -> nn.Module:
    """Return the model that the factory named by `spec` builds from this state dict, in eval mode.

    Raises:
        ConfigError: see `load_factory`; or the factory does not return an nn.Module.
        QuantlabError: the factory raises an exception or calls sys.exit.
    """
    factory = load_factory(spec)
    try:
        model: Any = factory(state)
    except (Exception, SystemExit) as error:  # a file that ends the program must not look like a command that went well
        raise QuantlabError(f"the model factory {spec} failed: {_told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{spec} must return an nn.Module, got {type(model).__name__}")
    return model.eval()


@torch.no_grad()
def check_model(model: nn.Module) -> int:
    """Run four tokens through `model` on its own device, check that it returns logits, and return its vocabulary size V.

    Raises:
        ShapeError: the model fails on ids, int64 [1, 4], or does not return a finite floating tensor [1, 4, V].
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        logits: Any = model(torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device=device))
    except (Exception, SystemExit) as error:
        raise ShapeError(f"the model fails on ids [1, {PROBE_TOKENS}]: {_told(error)}") from error
    expected = f"[1, {PROBE_TOKENS}, vocabulary]"
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"the model must return floating logits {expected}, got {got}")
    if logits.ndim != 3 or logits.shape[:2] != (1, PROBE_TOKENS):
        raise ShapeError(f"the model must return logits {expected}, got {list(logits.shape)}")
    if not bool(logits.isfinite().all()):
        raise ShapeError(f"the model's logits for ids [1, {PROBE_TOKENS}] are not all finite")
    return int(logits.shape[-1])


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"quantlab_user_model_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise QuantlabError(f"model file {path} failed on import: {_told(error)}") from error
    return module


def _told(error: BaseException) -> str:
    return f"it called sys.exit({error.code!r})" if isinstance(error, SystemExit) else first_line(error)
