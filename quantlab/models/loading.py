"""From a checkpoint, an artifact or a module to a model that can be run."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.artifact.container import MAGIC
from quantlab.artifact.manifest import Manifest
from quantlab.artifact.reader import open_artifact
from quantlab.errors import CheckpointError, ConfigError, DataError, FormatError
from quantlab.fields import parse_json
from quantlab.files import open_regular
from quantlab.models.banks import is_banked, without_banks
from quantlab.models.challenge import config_from_state_dict, gpt_from_state_dict, packed_gpt, stored_config
from quantlab.models.checkpoint import checked_state, read_checkpoint
from quantlab.models.factory import build_model, check_model
from quantlab.models.huggingface import ADAPTER, build, is_folder, read_folder
from quantlab.models.mlx import rotated_as_torch
from quantlab.models.presets import is_code, model_options
from quantlab.models.provenance import Provenance, of_metadata, of_origin
from quantlab.models.tokenizer_files import files_of, read_tokenizer_files, tokenizer_in
from quantlab.tensor_file import fingerprint, read_metadata
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig

CHALLENGE_BOS = 1
"""BOS of the challenge's SentencePiece models."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedModel:
    """A model that maps ids int64 [B, T] to logits [B, T, V], its state dict, and what is known of both."""

    model: nn.Module
    """In eval mode, but for a module that the caller gave: that keeps its modes."""
    state: dict[str, Tensor]
    """On the CPU; of a module its live weights, of a model whose weights stay packed the unquantized tensors alone."""
    vocab_size: int
    config: dict[str, Any]
    """Config of the built-in architecture, or what `huggingface` says of a model of transformers; empty for any other."""
    name: str = ""
    """Path as the caller gave it; empty for a module."""
    tokenizer_sha256: str = ""
    """First 32 hex digits of the tokenizer that the model was trained or packed with; empty when not recorded."""
    provenance: Provenance = field(default_factory=Provenance)
    """What the file says of its training and calibration."""
    code_sha256: str = ""
    """Hash of the user's own model file; empty for the built-in architecture."""
    tokenizer_files: dict[str, bytes] = field(default_factory=dict)
    """Files of the tokenizer in the model's folder, or that its artifact carries, by name."""

    @property
    def fingerprint(self) -> str:
        """32 hex digits that name the weights, the architecture's config, and the user's model file if there is one."""
        about = json.dumps([fingerprint(self.state), self.config, self.code_sha256], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:32]

    @property
    def bos_id(self) -> int | None:
        """Token that begins a document, by the model's own config; None where that does not say."""
        bos_id: int | None = self.config.get("bos_id")
        return bos_id

    def first_id(self, tokenizer: Tokenizer | None = None) -> int:
        """Return the token that begins a document.

        A model of transformers says it itself where its config does. Otherwise it is the tokenizer's, or without one that of
        the built-in model's config, or else of the challenge's tokenizers.
        """
        known = self.bos_id
        if tokenizer and (known is None or self.config.get("adapter") != ADAPTER):
            return tokenizer.bos_id
        return min(CHALLENGE_BOS, self.vocab_size - 1) if known is None else known

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model can read at once; None where that is not known."""
        length: int | None = self.config.get("context_length")
        return length


Source = str | Path | nn.Module | LoadedModel
"""Path of a checkpoint or artifact, a module that gives logits, or a model that was loaded before."""


def load(source: Source, *, model: str | None = None) -> LoadedModel:
    """Return the model of a checkpoint, of an artifact (decoded, on the CPU), or of a module that is in memory.

    A folder with a config.json is read by transformers.

    Args:
        source: a path; an nn.Module that maps ids int64 [B, T] to logits [B, T, V]; or what an earlier call returned.
        model: path/to/file.py:factory, a function from the state dict to an nn.Module, for a checkpoint or artifact of another
            architecture than the built-in one. This runs that file. Or a preset or a .toml file, whose table [model] has what
            the tensors of a checkpoint of the built-in architecture do not tell; an artifact and our trainer's files tell all.
    Raises:
        CheckpointError: the file is missing, damaged, not finite, or fits no model.
        FormatError: the artifact is damaged.
        ConfigError: `model` is wrong, or given for a source that is a module already.
    """
    if isinstance(source, LoadedModel | nn.Module):
        if model is not None:
            raise ConfigError(f"model {model} cannot be used: the source is a module already")
        return source if isinstance(source, LoadedModel) else _from_module(source)
    path = Path(source)
    return _from_artifact(path, model) if is_artifact(path) else _from_checkpoint(path, model)


def _from_module(module: nn.Module) -> LoadedModel:
    while isinstance(inner := getattr(module, "_orig_mod", None) or getattr(module, "module", None), nn.Module):
        module = inner  # of torch.compile, DataParallel, DistributedDataParallel
    live = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    state = checked_state("in memory", {name: tensor if tensor.is_meta else tensor.cpu() for name, tensor in live.items()})
    config = module.config.to_dict() if isinstance(module, GPT) else {}
    with in_eval_mode(module):
        vocab_size = check_model(module)
    return LoadedModel(model=module, state=state, vocab_size=vocab_size, config=config)


def _from_checkpoint(path: Path, spec: str | None) -> LoadedModel:
    if not spec and is_folder(path):
        model, state, about = read_folder(path)
        files = read_tokenizer_files(path)
        vocab_size = check_model(model)
        return LoadedModel(model=model, state=state, vocab_size=vocab_size, config=about, name=str(path), tokenizer_files=files)
    state, past = read_checkpoint(path), of_metadata(read_metadata(path), str(path))
    known: dict[str, Any] = {"name": str(path), "provenance": past, "tokenizer_sha256": past.tokenizer_sha256}
    if spec is not None and is_code(spec):
        model = build_model(state, spec)
        code = hashlib.sha256(Path(spec.rpartition(":")[0]).read_bytes()).hexdigest()
        return LoadedModel(model=model, state=state, vocab_size=check_model(model), config={}, code_sha256=code, **known)
    is_record = is_banked(state)
    if is_record:
        state = without_banks(state)
    if path.suffix == ".npz":
        state = rotated_as_torch(state)
    config = _gpt_config(path, state, spec, is_record)
    model = gpt_from_state_dict(state, config)
    return LoadedModel(model=model, state=state, vocab_size=check_model(model), config=config.to_dict(), **known)


def _gpt_config(path: Path, state: dict[str, Tensor], preset: str | None, is_record: bool) -> GPTConfig:
    """Return the config in the file's metadata if our trainer wrote it: tensors cannot tell softcap and RoPE base."""
    known = read_metadata(path).get("gpt_config")
    if known is None:
        return config_from_state_dict(state, model_options(preset) if preset else None, is_record=is_record)
    try:
        return GPTConfig.from_dict(parse_json(known, f"checkpoint {path}: its gpt_config", CheckpointError))
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {path}: its gpt_config is damaged: {error}") from error


def _from_artifact(path: Path, spec: str | None) -> LoadedModel:
    artifact = open_artifact(path)
    manifest, state = artifact.manifest, artifact.tensors()
    config = manifest.model
    if spec is not None and is_code(spec):
        model = build_model(state, spec)
        _check_about(config, path)
    elif config.get("adapter") == ADAPTER:
        model, config = build(config, state, path)
    elif config:
        model = gpt_from_state_dict(state, stored_config(manifest))
    else:
        raise ConfigError(f"{path} was packed from a model of its own", hint="pass --model path/to/file.py:factory")
    return LoadedModel(
        model=model,
        state=state,
        vocab_size=check_model(model),
        config=config,
        name=str(path),
        tokenizer_sha256=manifest.tokenizer.get("sha256", ""),
        provenance=of_origin(manifest.origin, str(path)),
        tokenizer_files=artifact.files(),
    )


def _check_about(config: dict[str, Any], path: Path) -> None:
    """Raise FormatError where what an artifact says of a model of the user's own is not of the type that its readers take."""
    for key in ("bos_id", "context_length"):
        if key in config and type(config[key]) is not int:
            raise FormatError(f"{path}: the model's {key} must be a whole number, got {config[key]!r:.40}")


def load_packed(path: Path, spec: str | None, device: torch.device) -> LoadedModel:
    """Return the built-in model of an artifact on `device`, its matrices still packed.

    Raises:
        ConfigError: a checkpoint, or a model of the user's own, which only computes with floats.
    """
    if not is_artifact(path):
        raise ConfigError(f"{path} is a checkpoint: only the weights of a .qlab file can stay packed")
    artifact = open_artifact(path)
    manifest = artifact.manifest
    if is_code(spec) or not _is_builtin(manifest):
        raise ConfigError(f"{path} has a model of its own: its weights cannot stay packed", hint="evaluate it with --decoded")
    model = packed_gpt(manifest, artifact.sections, device)
    return LoadedModel(
        model=model,
        state=model.state_dict(),
        vocab_size=model.config.vocab_size,
        config=manifest.model,
        name=str(path),
        tokenizer_sha256=manifest.tokenizer.get("sha256", ""),
        provenance=of_origin(manifest.origin, str(path)),
        tokenizer_files=artifact.files(),
    )


def stays_packed(path: Path, spec: str | None, device: torch.device) -> bool:
    """Return whether weights stay packed where the user does not say: artifacts of the built-in model on a GPU."""
    return device.type == "cuda" and not is_code(spec) and is_artifact(path) and _is_builtin(open_artifact(path).manifest)


def _is_builtin(manifest: Manifest) -> bool:
    return bool(manifest.model) and "adapter" not in manifest.model


def is_artifact(path: Path) -> bool:
    """Return whether the file starts with the .qlab magic or has its suffix. CheckpointError if there is no such file."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        return False
    with open_regular(path, CheckpointError) as file:
        return path.suffix == ".qlab" or file.read(len(MAGIC)) == MAGIC


def file_of(target: Source) -> Path | None:
    """Return the file that a model was or will be loaded from; None for a module in memory."""
    name = target.name if isinstance(target, LoadedModel) else target
    return Path(name) if isinstance(name, str | Path) and str(name) else None


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every part of the model in eval mode inside the block, and back as it was after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Take the gradients from the model's own weights inside the block; after it each has the flag that it had before."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def load_tokenizer(source: str | Path | Tokenizer, loaded: LoadedModel) -> Tokenizer:
    """Return the tokenizer with the model's number of ids, after checking that it belongs to the model.

    Args:
        source: a path, the name byte260, or a tokenizer in memory.

    Raises:
        ConfigError: the package that reads this kind of tokenizer is not installed.
        DataError: it is missing or damaged, has another vocabulary, or is not the one that the model was trained or packed
            with.
    """
    tokenizer = (source if isinstance(source, Tokenizer) else Tokenizer.load(source)).fitted(loaded.vocab_size)
    if loaded.tokenizer_sha256 and not tokenizer.sha256.startswith(loaded.tokenizer_sha256):
        kind = "artifact was packed" if loaded.name.endswith(".qlab") else "model was trained"
        raise DataError(
            f"tokenizer {tokenizer.name} ({tokenizer.sha256[:12]}) is not the one the {kind} with "
            f"({loaded.tokenizer_sha256[:12]})",
            hint="name the tokenizer that it was made with",
        )
    return tokenizer


def own_tokenizer(loaded: LoadedModel) -> Tokenizer | None:
    """Return the tokenizer in the model's folder, or that its artifact carries; None if there is none.

    Raises:
        ConfigError, DataError: see `load_tokenizer`.
    """
    found = tokenizer_in(loaded.tokenizer_files, loaded.name, loaded.tokenizer_sha256)
    return None if found is None else load_tokenizer(found, loaded)


def carried_files(loaded: LoadedModel, tokenizer: Tokenizer | None, wanted: bool | None) -> dict[str, bytes]:
    """Return the tokenizer's files that an artifact of this model will carry, by name.

    Args:
        tokenizer: one that was given; it replaces the model's own files of the same names.
        wanted: whether there are any; None for models of transformers and for artifacts that carry one, no others: the
            challenge does not count the tokenizer.
    Raises:
        ConfigError: files are wanted, but there are none.
    """
    files = loaded.tokenizer_files | (files_of(tokenizer) if tokenizer else {})
    if wanted and not files:
        raise ConfigError("there is no tokenizer for the artifact to carry", hint="pass --tokenizer FILE")
    is_usual = bool(loaded.tokenizer_files) or loaded.config.get("adapter") == ADAPTER
    return files if wanted or (wanted is None and is_usual) else {}
