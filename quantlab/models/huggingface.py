"""Models of transformers: a saved folder (config.json and safetensors), or an artifact that was packed from one.

The folder's files are data: nothing is downloaded, no code of the folder runs, pickled weights are not read. Sizes in
config.json are compared with the weights before anything of these sizes is made.

Names and shapes are those of the module's parameters, tied ones once, but for GPT-2's Conv1D: its weights [I, O] are handled
as those of a linear layer, [O, I].
"""

import importlib
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.errors import CheckpointError, ConfigError, QuantlabError, first_line
from quantlab.fields import read_json_object
from quantlab.models.checkpoint import checked_state
from quantlab.models.huggingface_files import TensorHeader, tensor_headers

ADAPTER = "huggingface"
"""Value of the key `adapter` in the manifest's model."""
CONFIG, GENERATION = "config.json", "generation_config.json"
NOT_STORED = re.compile(r"_.*|transformers_version|(attn|experts)_implementation")
"""Keys of config.json that say nothing of the model: paths, versions, and names of kernels, which could name code to fetch."""
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
SPARE_ELEMENTS = 1 << 24
"""Values that tables of a model (positions, masks) may hold beyond the number of its weights."""
CACHE_NAMES = ("past_key_values", "cache")
"""Names that versions of transformers give to the argument for a cache."""
CAUSAL_HINT = "name a model that predicts the next token, such as Llama or GPT-2, not an encoder"
FIT_HINT = "fetch the folder again; config.json must be the one that was saved with the weights"
PROBE_TOKENS = 8
CAUSAL_TOLERANCE = 1e-3
"""Largest change of logits, relative to the largest one, when a later token changes: rounding of float32, not a leak."""

Module = Any
"""A module of transformers, which has no types."""


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder with a config.json."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_folder(folder: Path) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Return the model of a saved folder, its state dict, and what an artifact must say of it.

    Returns:
        A module in eval mode, float32, on the CPU, that maps ids int64 [B, T] to logits [B, T, V]; its parameters and
        persistent buffers by name, tied ones once; plain JSON types for `build`.
    Raises:
        CheckpointError: the folder is damaged or incomplete, or holds no causal language model that transformers knows.
        ConfigError: transformers is not installed.
    """
    about, headers = read_about(folder), tensor_headers(folder)
    config = _config_of(about, folder, headers)
    with library_for(folder) as library:
        module, found = library.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    for key, problem in (("missing_keys", "lack"), ("unexpected_keys", "have, but the model has not,")):
        if names := sorted(map(str, found[key])):
            told = f"checkpoint {folder}: its weights {problem} {names[0]} ({len(names)} such tensors)"
            raise CheckpointError(told, hint=FIT_HINT)
    adapted = _adapted(module, folder)  # it decides the shapes of the state
    return adapted, checked_state(folder, _state_of(adapted)), about


def read_about(folder: Path) -> dict[str, Any]:
    """Return what an artifact says of the model of a folder: its config, how it generates, BOS, and its context length.

    Raises:
        CheckpointError: config.json is damaged, or its model cannot be packed.
    """
    generation = read_json_object(folder / GENERATION, CheckpointError) if (folder / GENERATION).is_file() else {}
    return _about(read_json_object(folder / CONFIG, CheckpointError), generation, folder)


def build(about: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model of an artifact with its tensors, as `read_folder` does, and what is known of it.

    Args:
        about: what `read_folder` returned, as the artifact holds it.
        path: names the artifact in errors.
    Raises:
        CheckpointError: the config is damaged, or does not fit the tensors.
        ConfigError: transformers is not installed.
    """
    config, generation = about.get("config"), about.get("generation_config", {})
    if not isinstance(config, dict) or not isinstance(generation, dict):
        raise CheckpointError(f"{path}: its model config must be an object, got {type(config).__name__}")
    checked = _about(config, generation, path)
    return _adapted(build_plain(checked, state, path), path), checked


def build_plain(about: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> Module:
    """Return the same as a module of transformers that is not changed: it can be saved. The errors are those of `build`."""
    headers = {name: TensorHeader(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    config = _config_of(about, path, headers)
    with library_for(path) as library:
        module = library.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    transposed = {f"{name}.weight" for name, part in module.named_modules() if _is_conv1d(part)}
    own = _state_of(module)
    if odd := sorted(own.keys() ^ state.keys()):
        raise CheckpointError(f"{path}: tensor {odd[0]} is {'missing' if odd[0] in own else 'not one of its model'}")
    for name, tensor in own.items():
        given = state[name].T if name in transposed else state[name]
        if given.shape != tensor.shape:
            raise CheckpointError(f"{path}: tensor {name} has shape {list(given.shape)}, its model {list(tensor.shape)}")
        tensor.copy_(given)
    return module.eval()


def _about(config: dict[str, Any], generation: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what an artifact says of a model. CheckpointError where it is known from the config that it cannot be packed."""
    if not isinstance(kind := config.get("model_type"), str):
        raise CheckpointError(f"{path}: {CONFIG} has no model_type", hint="pass --model path/to/file.py:factory")
    if config.get("is_encoder_decoder"):
        problem = f"{path}: {kind} is an encoder with a decoder, only causal language models can be packed"
        raise CheckpointError(problem, hint=CAUSAL_HINT)
    if config.get("quantization_config"):
        raise CheckpointError(f"{path}: its weights are quantized already", hint="pack the model that they were made from")
    about: dict[str, Any] = {"adapter": ADAPTER, "config": _stored(config)}
    if generation:
        about["generation_config"] = _stored(generation)
    ids: tuple[Any, ...] = (config.get("bos_token_id"), config.get("eos_token_id"), generation.get("eos_token_id"))
    size = config.get("vocab_size")
    vocab_size = size if type(size) is int else 1
    flat: list[Any] = [i for value in ids for i in (value if isinstance(value, list) else [value])]
    known: Iterator[int] = (i for i in flat if type(i) is int and 0 <= i < vocab_size)
    if (bos_id := next(known, None)) is not None:
        about["bos_id"] = bos_id
    lengths: Iterator[Any] = (config.get(key) for key in ("max_position_embeddings", "n_positions", "n_ctx"))
    if length := next((n for n in lengths if type(n) is int and n > 0), None):
        about["context_length"] = length
    return about


def _stored(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if not NOT_STORED.fullmatch(key)}


def _config_of(about: Mapping[str, Any], path: Path, headers: Mapping[str, TensorHeader]) -> Any:
    """Return transformers' config after checking on a model without memory that the weights' sizes are those it asks for."""
    raw = dict(about["config"])
    for key in LAYER_COUNTS:
        layers = raw.get(key, 0)
        if type(layers) is not int or layers > len(headers):
            told = f"{path}: {CONFIG} has {key} {layers!r}, but there are {len(headers)} tensors"
            raise CheckpointError(told, hint=FIT_HINT)
    with library_for(path) as library:
        config_class = _config_class(library, raw.pop("model_type"), path, is_foreign="auto_map" in raw)
        raw.pop("auto_map", None)
        config = config_class.from_dict(raw)
        with torch.device("meta"):
            module = library.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wanted, given = sum(p.numel() for p in module.parameters()), sum(header.size for header in headers.values())
    if wanted > given:
        told = f"{path}: {CONFIG} describes {wanted} weights, there are {given}: they do not belong together"
        raise CheckpointError(told, hint=FIT_HINT)
    if (tables := sum(b.numel() for b in module.buffers())) > given + SPARE_ELEMENTS:
        raise CheckpointError(f"{path}: {CONFIG} asks for tables of {tables} values beside {given} weights")
    return config


def _config_class(library: Any, kind: str, path: Path, *, is_foreign: bool) -> Any:
    """Return the class of a model type's config. CheckpointError unless transformers has a language model of the type."""
    if kind in library.CONFIG_MAPPING and library.CONFIG_MAPPING[kind] in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        return library.CONFIG_MAPPING[kind]
    if is_foreign:
        raise CheckpointError(
            f"{path}: model type {kind!r} needs the folder's own Python code, which is not run",
            hint="pass --model path/to/file.py:factory if you trust the code",
        )
    raise CheckpointError(
        f"{path}: transformers {library.__version__} has no causal language model of type {kind!r}",
        hint="a newer transformers may have it; otherwise pass --model path/to/file.py:factory",
    )


@contextmanager
def library_for(path: Path) -> Iterator[Any]:
    """Yield transformers, without progress bars and warnings; its errors become CheckpointError, random numbers stay untouched.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        library: Any = importlib.import_module("transformers")
        messages: Any = importlib.import_module("transformers.utils.logging")
    except ImportError as error:
        raise ConfigError(
            f"{path} is a model of transformers, which is not installed", hint='pip install "transformers>=5,<6"'
        ) from error
    level, has_bar = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity(logging.CRITICAL)
    messages.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield library
    except QuantlabError:
        raise
    except Exception as error:  # a damaged config fails in any way: KeyError, ZeroDivisionError, RuntimeError, ...
        raise CheckpointError(f"{path}: transformers cannot build the model: {first_line(error)}") from error
    finally:
        messages.set_verbosity(level)
        if has_bar:
            messages.enable_progress_bar()


def _state_of(module: Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, each once, weights of Conv1D as they are in the module."""
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach()
    return state


def _adapted(module: Module, path: Path) -> nn.Module:
    """Return the module with a forward that maps ids to logits, and linear layers for Conv1D.

    Raises:
        CheckpointError: a logit depends on a later token.
    """
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if _is_conv1d(part):
                setattr(parent, name, _linear_of(part))
    module.__class__ = _logits_class(type(module))
    _check_causal(module, path)
    adapted: nn.Module = module.eval()
    return adapted


def _is_conv1d(part: nn.Module) -> bool:
    return type(part).__name__ == "Conv1D" and type(part).__module__.startswith("transformers.")


def _linear_of(conv: Module) -> nn.Linear:
    """Return the linear layer that computes what GPT-2's Conv1D does."""
    columns, rows = conv.weight.shape
    linear = nn.Linear(columns, rows, bias=conv.bias is not None, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().T.contiguous())
    linear.bias = conv.bias
    return linear


def _logits_class(base: type) -> type:
    """Return a subclass of a model of transformers that maps ids [B, T] to logits [B, T, V], with a cache where it has one."""
    plain: Any = base
    parameters = inspect.signature(plain.forward).parameters
    cache_name = next((name for name in CACHE_NAMES if name in parameters), None)

    def forward(self: Any, ids_BT: Tensor, cache: Any = None) -> Tensor:
        cached = {cache_name: cache} if cache_name else {}
        logits: Tensor = plain.forward(self, input_ids=ids_BT, use_cache=cache is not None, **cached).logits
        return logits

    def new_cache(self: Any, batch: int, length: int) -> Any:
        """Return an empty cache of keys and values, which grows as it is used."""
        return importlib.import_module("transformers").DynamicCache(config=self.config)

    methods = {"forward": forward, "new_cache": new_cache} if cache_name else {"forward": forward}
    return type(f"{base.__name__}Logits", (base,), methods)


@torch.no_grad()
def _check_causal(module: Module, path: Path) -> None:
    ids_1T = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64)
    changed_1T = ids_1T.clone()
    changed_1T[0, -1] = 1
    try:
        before, after = module.eval()(ids_1T)[:, :-1], module(changed_1T)[:, :-1]
    except Exception as error:
        raise CheckpointError(f"{path}: the model fails on {PROBE_TOKENS} tokens: {first_line(error)}") from error
    if float((before - after).abs().max()) > CAUSAL_TOLERANCE * float(before.abs().max()):
        problem = f"{path}: the model sees later tokens, only causal language models can be packed"
        raise CheckpointError(problem, hint=CAUSAL_HINT)
