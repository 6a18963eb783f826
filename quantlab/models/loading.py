"""From a checkpoint or an artifact on disk to a model that can be run."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.artifact.container import MAGIC
from quantlab.artifact.decode import decode_artifact, read_artifact
from quantlab.errors import CheckpointError, ConfigError, DataError, first_line
from quantlab.models.challenge import config_from_state_dict, gpt_from_state_dict, packed_gpt
from quantlab.models.checkpoint import read_checkpoint, read_metadata
from quantlab.models.factory import build_model, check_model
from quantlab.tensor_file import fingerprint
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.model_config import GPTConfig


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in eval mode and where it came from."""

    model: nn.Module
    state: dict[str, Tensor]
    vocab_size: int
    config: dict[str, Any]
    """Of the built-in architecture; empty for a user's own."""
    tokenizer_sha256: str = ""
    """Of the tokenizer that the artifact was packed with; empty when not recorded."""
    code_sha256: str = ""
    """Of the user's own model file; empty for the built-in architecture."""

    @property
    def fingerprint(self) -> str:
        """Names the weights, the architecture's config, and the user's model file if there is one: 32 hex digits."""
        about = json.dumps([fingerprint(self.state), self.config, self.code_sha256], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:32]


def load_checkpoint(path: Path, spec: str | None) -> Loaded:
    """Read a checkpoint and build its model: the built-in one, or what `spec` (path/to/file.py:factory) makes of it."""
    state = read_checkpoint(path)
    if spec:
        model = build_model(state, spec)
        code = Path(spec.rpartition(":")[0]).read_bytes()
        return Loaded(model, state, check_model(model), {}, code_sha256=hashlib.sha256(code).hexdigest())
    config = _gpt_config(path, state)
    model = gpt_from_state_dict(state, config)
    return Loaded(model, state, check_model(model), config.to_dict())


def _gpt_config(path: Path, state: dict[str, Tensor]) -> GPTConfig:
    """From the file's metadata if our trainer wrote it: it knows what tensors cannot say, softcap and RoPE base."""
    known = read_metadata(path).get("gpt_config")
    if known is None:
        return config_from_state_dict(state)
    try:
        return GPTConfig.from_dict(json.loads(known))
    except (ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"checkpoint {path}: its gpt_config is damaged: {first_line(error)}") from error


def load_artifact(path: Path, spec: str | None) -> Loaded:
    """Decode an artifact and build its model."""
    manifest, sections = read_artifact(path)
    state = {name: torch.from_numpy(array) for name, array in decode_artifact(manifest, sections).items()}
    if spec:
        model = build_model(state, spec)
    elif manifest.model:
        model = gpt_from_state_dict(state, GPTConfig.from_dict(manifest.model))
    else:
        raise ConfigError(f"{path} was packed from a model of its own", hint="pass --model path/to/file.py:factory")
    return Loaded(model, state, check_model(model), manifest.model, manifest.tokenizer.get("sha256", ""))


def load_packed(path: Path, spec: str | None, device: torch.device) -> Loaded:
    """The built-in model of an artifact with its matrices still packed, on `device`. Its `state` has the other tensors alone.

    Raises:
        ConfigError: a checkpoint, or a model of the user's own, which only computes with floats.
    """
    if not is_artifact(path):
        raise ConfigError(f"{path} is a checkpoint: only the weights of a .qlab file can stay packed")
    manifest, sections = read_artifact(path)
    if spec or not manifest.model:
        raise ConfigError(f"{path} has a model of its own: its weights cannot stay packed", hint="evaluate it with --decoded")
    model = packed_gpt(manifest, sections, device)
    return Loaded(model, model.state_dict(), model.config.vocab_size, manifest.model, manifest.tokenizer.get("sha256", ""))


def stays_packed(path: Path, spec: str | None, device: torch.device) -> bool:
    """Whether weights stay packed where the user does not say: artifacts of the built-in model on a GPU."""
    return device.type == "cuda" and not spec and is_artifact(path) and bool(read_artifact(path)[0].model)


def load_target(path: Path, spec: str | None) -> Loaded:
    """An artifact if the file starts as one or is named .qlab, else a checkpoint; decoded, on the CPU."""
    return load_artifact(path, spec) if is_artifact(path) else load_checkpoint(path, spec)


def is_artifact(path: Path) -> bool:
    """True if the file starts with the .qlab magic or has its suffix. CheckpointError if there is no such file."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return path.suffix == ".qlab" or file.read(len(MAGIC)) == MAGIC


def load_tokenizer(path: Path, loaded: Loaded) -> Tokenizer:
    """The tokenizer at `path`, after checking that it belongs to the model."""
    tokenizer = Tokenizer.load(path)
    tokenizer.check_vocab(loaded.vocab_size)
    if loaded.tokenizer_sha256 and not tokenizer.sha256.startswith(loaded.tokenizer_sha256):
        raise DataError(
            f"tokenizer {path} ({tokenizer.sha256[:12]}) is not the one the artifact was packed with "
            f"({loaded.tokenizer_sha256[:12]})"
        )
    return tokenizer
