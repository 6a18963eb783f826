"""The built-in GPT from its tensors: from a state dict as floats, or from an artifact with its matrices still packed.

The config is read from the shapes of the tensors, and the first tensor that does not fit is named. What they do not tell is
that of the baseline, of a preset, or of a file of the user's.

Letters: O rows, I columns.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.artifact.container import Section
from quantlab.artifact.decode import decode_passthrough, decode_row_grids, decode_trellis
from quantlab.artifact.manifest import Manifest, RawTensor, TrellisTensor
from quantlab.artifact.whole import whole_tensors, with_aliases
from quantlab.coding import rans, rans_device
from quantlab.coding.contexts import TensorContext
from quantlab.errors import CheckpointError, ConfigError, FormatError
from quantlab.format_rules import LOG_STEPS, SCALE_UNITS
from quantlab.kernels.packed import Packed, pack
from quantlab.models.presets import record_options
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import SMEAR_WINDOW, GPTConfig
from quantlab.trainer.packed_layers import pack_modules_

Array = NDArray[Any]

HINT = (
    "for another architecture pass --model path/to/file.py:factory, a function from state dict to nn.Module; for options that "
    "the tensors do not tell --model PRESET or FILE.toml"
)


def config_from_state_dict(
    state: Mapping[str, Tensor], options: Mapping[str, Any] | None = None, *, is_record: bool = False
) -> GPTConfig:
    """Return the `GPTConfig` that fits these tensors.

    Args:
        state: the tensors, with the model's names.
        options: the fields that leave no trace in the tensors; None for the baseline's, or for those of `record_options`.
        is_record: whether the checkpoint is of a later record than the baseline; one with skip gates is in any case.
    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; the first is named, with what was expected.
        ConfigError: an option is unknown, of another type or out of range.
    """
    shapes = _shape_fields(state)
    if options is not None:
        config = GPTConfig.from_dict({**options, **shapes})
    else:
        found = _record_options(state, shapes["num_layers"]) if is_record or "skip_gates" in state else {}
        try:
            config = GPTConfig.from_dict({**found, **shapes})
        except ConfigError as error:
            raise _no_match(str(error)) from error
    check_state_dict(state, config)
    return config


def _record_options(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Any]:
    """Return the preset's options, and those that the tensors' names tell."""
    options = record_options(num_layers, _shape(state, "skip_weights", 2)[0], has_lanes="parallel_post_lambdas" in state)
    if _shape_options(state, 0, 0).get("attn_gate") != "sparse":
        options = {key: value for key, value in options.items() if not key.startswith("attn_gate")}
    return {**options, "skip_gates": "skip_gates" in state, "smear_gate": "smear.gate.weight" in state}


def _shape_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of the config that the shapes tell."""
    vocab_size, table_dim = _shape(state, "tok_emb.weight", 2)
    model_dim, _ = _shape(state, "blocks.0.attn.proj.weight", 2)
    (num_heads,) = _shape(state, "blocks.0.attn.q_gain", 1)
    kv_dim, _ = _shape(state, "blocks.0.attn.c_k.weight", 2)
    mlp_hidden, _ = _shape(state, "blocks.0.mlp.fc.weight", 2)
    if num_heads < 1 or model_dim % num_heads or kv_dim % (model_dim // num_heads):
        raise _no_match(f"{num_heads} query gains do not divide width {model_dim} into heads that fit the {kv_dim} rows of c_k")
    return {
        "vocab_size": vocab_size,
        "num_layers": _count_layers(state),
        "model_dim": model_dim,
        "num_heads": num_heads,
        "num_kv_heads": kv_dim // (model_dim // num_heads),
        "mlp_hidden": mlp_hidden,
        "tie_embeddings": "lm_head.weight" not in state,
        **_shape_options(state, model_dim, table_dim),
    }


def _shape_options(state: Mapping[str, Tensor], model_dim: int, table_dim: int) -> dict[str, Any]:
    """Return the later fields that names and shapes tell; the first block of two lanes is not among them."""
    found: dict[str, Any] = {}
    if "embed_proj.weight" in state:
        found["embedding_dim"] = table_dim
    if "blocks.0.attn.attn_gate_w" in state:
        _, width = _shape(state, "blocks.0.attn.attn_gate_w", 2)
        found["attn_gate"] = "full" if width == model_dim else "sparse"
    elif "blocks.0.attn.attn_gate_proj.weight" in state:
        found["attn_gate"] = "double"
    if "ve_shared.embed.weight" in state:
        found["value_dim"] = _shape(state, "ve_shared.embed.weight", 2)[1]
        found["value_last_n"] = sum(name.startswith("ve_layer_scales.") for name in state)
    return found


def gpt_from_state_dict(state: Mapping[str, Tensor], config: GPTConfig | None = None) -> GPT:
    """Return a `GPT` with these weights, copied as float32, in eval mode, on the CPU.

    Args:
        state: floating tensors with the model's names and shapes; only tensors that are not floating may have other names.
        config: the model's config; None for what `config_from_state_dict` finds.
    Raises:
        CheckpointError: a tensor is missing, unexpected, or has another shape or dtype.
    """
    if config is None:
        config = config_from_state_dict(state)
    else:
        check_state_dict(state, config)
    model = GPT(config)
    model.load_state_dict({name: state[name].float() for name in expected_shapes(config)})
    return model.eval()


def expected_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the state dict of `GPT(config)`, by name, in its order."""
    dim, kv_dim = config.model_dim, config.num_kv_heads * config.head_dim
    block: dict[str, tuple[int, ...]] = {
        "attn_scale": (dim,),
        "mlp_scale": (dim,),
        "resid_mix": (2, dim),
        "attn.q_gain": (config.num_heads,),
        "attn.c_q.weight": (dim, dim),
        "attn.c_k.weight": (kv_dim, dim),
        "attn.c_v.weight": (kv_dim, dim),
        "attn.proj.weight": (dim, dim),
        "mlp.fc.weight": (config.mlp_hidden, dim),
        "mlp.proj.weight": (dim, config.mlp_hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "skip_weights": (config.num_skips, dim),
        "tok_emb.weight": (config.vocab_size, config.table_dim),
    }
    shapes |= {f"blocks.{i}.{name}": shape for i in range(config.num_layers) for name, shape in block.items()}
    shapes |= _shapes_of_options(config)
    return shapes if config.tie_embeddings else shapes | {"lm_head.weight": (config.vocab_size, config.table_dim)}


def _shapes_of_options(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if config.skip_gates:
        shapes["skip_gates"] = (config.num_skips, config.model_dim)
    if config.smear_gate:
        shapes |= {"smear.gate.weight": (1, SMEAR_WINDOW), "smear.scale": (1,)}
    heads, kv_dim = config.num_heads, config.num_kv_heads * config.head_dim
    gates = {"sparse": ("attn_gate_w", SMEAR_WINDOW), "full": ("attn_gate_w", config.model_dim)}
    if config.attn_gate != "none":
        name, width = gates.get(config.attn_gate, ("attn_gate_proj.weight", SMEAR_WINDOW))
        shapes |= {f"blocks.{i}.attn.{name}": (heads, width) for i in range(config.num_layers)}
    if config.lanes_from:
        layers = config.num_layers
        shapes |= {"parallel_post_lambdas": (layers, 2, 2), "parallel_resid_lambdas": (layers, 2)}
    if config.embedding_dim:
        wide, narrow = config.model_dim, config.embedding_dim
        shapes |= {"embed_proj.weight": (wide, narrow), "head_proj.weight": (narrow, wide)}
    if config.value_dim:
        table = {"ve_shared.embed.weight": (config.vocab_size, config.value_dim), "ve_shared.scale": ()}
        shapes |= {**table, "ve_shared.proj.weight": (kv_dim, config.value_dim)}
        shapes |= {f"ve_layer_scales.{n}": (1,) for n in range(config.value_last_n)}
    if config.bigram_buckets:
        shapes |= {
            "bigram.embed.weight": (config.bigram_buckets, config.bigram_dim),
            "bigram.proj.weight": (config.model_dim, config.bigram_dim),
            "bigram.scale": (),
        }
    return shapes


def check_state_dict(state: Mapping[str, Tensor], config: GPTConfig) -> None:
    """Raise CheckpointError for the first tensor that does not fit `GPT(config)`; unknown integer tensors are ignored."""
    if (layers := _count_layers(state)) != config.num_layers:
        raise _no_match(f"the config has {config.num_layers} layers, the tensors have {layers}")
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if _shape(state, name, len(shape)) != shape:
            raise _no_match(f"{name} has shape {list(state[name].shape)}, expected {list(shape)}")
    for name, tensor in state.items():
        if name not in expected and torch.is_floating_point(tensor):
            raise _no_match(f"{name} {list(tensor.shape)} is unexpected, the model has no such tensor")


def _shape(state: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    """Return the shape of a floating tensor with `ndim` dimensions. CheckpointError if it is missing or of another kind."""
    if name not in state:
        raise _no_match(f"{name} is missing")
    tensor = state[name]
    if tensor.ndim != ndim:
        raise _no_match(f"{name} has shape {list(tensor.shape)}, expected {ndim} dimension{'s' * (ndim > 1)}")
    if not torch.is_floating_point(tensor):
        raise _no_match(f"{name} is {tensor.dtype}, expected floating point")
    return tuple(tensor.shape)


def _count_layers(state: Mapping[str, Tensor]) -> int:
    """Return the number of different block numbers; a gap in them shows later as a missing tensor."""
    numbers = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return len(numbers)


def _no_match(what: str) -> CheckpointError:
    return CheckpointError(f"no model matches: {what}", hint=HINT)


def stored_config(manifest: Manifest) -> GPTConfig:
    """Return the config of the built-in model that an artifact holds. FormatError where it is none."""
    try:
        return GPTConfig.from_dict(manifest.model)
    except ConfigError as error:
        raise FormatError(f"the model config of the artifact is wrong: {error}") from error


def packed_gpt(manifest: Manifest, sections: list[Section], device: torch.device) -> GPT:
    """Return the built-in model in eval mode on `device`, its matrices packed; unquantized tensors are float32.

    The model computes with the file's codes, which are never decoded to floats as a whole. The weights that it uses differ
    from decoded ones by at most 2 units in the last place of float32.

    Raises:
        FormatError: a section is damaged.
        CheckpointError: the tensors are not those of the manifest's model.
    """
    config = stored_config(manifest)
    check_state_dict(_meta_tensors(manifest), config)
    matrices = with_aliases(dict(packed_matrices(manifest, sections, device)), manifest.aliases)
    model = GPT(config)
    pack_modules_(model, matrices)
    raw = with_aliases(decode_passthrough(manifest, sections), manifest.aliases)
    unquantized = {name: torch.from_numpy(array).float() for name, array in raw.items()}
    model.load_state_dict({name: unquantized[name] for name in model.state_dict()})
    return model.eval().to(device)


def _meta_tensors(manifest: Manifest) -> dict[str, Tensor]:
    """Return tensors without memory that have the shapes and dtypes of the decoded ones."""
    dtypes = {t.name: getattr(torch, t.dtype) if isinstance(t, RawTensor) else torch.float32 for t in manifest.tensors}
    stored = {t.name: torch.empty(t.shape, dtype=dtypes[t.name], device="meta") for t in manifest.tensors}
    return whole_tensors(stored, manifest.shapes, manifest.aliases, torch.cat)


def packed_matrices(manifest: Manifest, sections: list[Section], device: torch.device) -> Iterator[tuple[str, Packed]]:
    """Yield the name of each quantized matrix and the matrix, packed on `device`; on a GPU the code stream is decoded there."""
    decode = rans.decode if device.type == "cpu" else partial(rans_device.decode, device=device)
    for tensor, codes_OI, context, a_O, b_I in decode_trellis(manifest, sections, decode):
        codes = codes_OI if isinstance(codes_OI, Tensor) else torch.from_numpy(codes_OI)
        yield tensor.name, _packed_trellis(tensor, codes.to(device), context, a_O, b_I)
    for grid, codes_OI, step_O in decode_row_grids(manifest, sections):
        ones_I = torch.ones(grid.shape[1], device=device)
        yield grid.name, pack(torch.from_numpy(codes_OI).to(device), torch.from_numpy(step_O).to(device), ones_I)


def _packed_trellis(tensor: TrellisTensor, codes_OI: Tensor, context: TensorContext, a_O: Array, b_I: Array) -> Packed:
    """Pack the codes of a trellis tensor with step[i, j] = 2**((level + 16 a[i]) / 64) · 2**(b[j] / 4)."""
    device = codes_OI.device
    row_O = np.exp2((tensor.level + LOG_STEPS // SCALE_UNITS * a_O.astype(np.float64)) / LOG_STEPS).astype(np.float32)
    column_I = np.exp2(b_I.astype(np.float64) / SCALE_UNITS).astype(np.float32)
    row, column, row_class, column_class = (
        torch.from_numpy(side).to(device) for side in (row_O, column_I, context.rows_O, context.columns_I)
    )
    if context.states == 1:
        return pack(codes_OI, row, column)
    return pack(codes_OI, row, column, row_class_O=row_class, column_class_I=column_class)
