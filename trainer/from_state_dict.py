"""Recognise the baseline GPT in a state dict: its shape is read from the tensors, and every misfit is named."""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantlab.errors import CheckpointError, ConfigError
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import SMEAR_WINDOW, GPTConfig

_HINT = "for another architecture pass --model path/to/file.py:factory, a function from state dict to nn.Module"


def config_from_state_dict(state: Mapping[str, Tensor]) -> GPTConfig:
    """The `GPTConfig` of the baseline that fits these tensors; what leaves no trace in shapes (softcap, RoPE base) has its
    default. A model with later options needs its config beside it.

    Raises:
        CheckpointError: the first tensor that is missing, unexpected or misshapen, with what was expected.
    """
    vocab_size, model_dim = _shape(state, "tok_emb.weight", 2)
    (num_heads,) = _shape(state, "blocks.0.attn.q_gain", 1)
    kv_dim, _ = _shape(state, "blocks.0.attn.c_k.weight", 2)
    mlp_hidden, _ = _shape(state, "blocks.0.mlp.fc.weight", 2)
    if num_heads < 1 or model_dim % num_heads or kv_dim % (model_dim // num_heads):
        raise _no_match(f"{num_heads} query gains do not divide width {model_dim} into heads that fit c_k's {kv_dim} rows")
    try:
        config = GPTConfig(
            vocab_size=vocab_size,
            num_layers=_count_layers(state),
            model_dim=model_dim,
            num_heads=num_heads,
            num_kv_heads=kv_dim // (model_dim // num_heads),
            mlp_hidden=mlp_hidden,
            tie_embeddings="lm_head.weight" not in state,
        )
    except ConfigError as error:
        raise _no_match(str(error)) from error
    check_state_dict(state, config)
    return config


def gpt_from_state_dict(state: Mapping[str, Tensor], config: GPTConfig | None = None) -> GPT:
    """The `GPT` with these weights, copied as float32, in eval mode, on the CPU.

    Args:
        state: floating tensors with the baseline's names and shapes; other names only on tensors that are not floating.
        config: given when softcap, RoPE base or tying differ from what `config_from_state_dict` finds.
    Raises:
        CheckpointError: a tensor is missing, unexpected or has another shape or dtype.
    """
    if config is None:
        config = config_from_state_dict(state)
    else:
        check_state_dict(state, config)
    model = GPT(config)
    model.load_state_dict({name: state[name].float() for name in expected_shapes(config)})
    return model.eval()


def expected_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the state dict of `GPT(config)`, in its order."""
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
        "tok_emb.weight": (config.vocab_size, dim),
    }
    shapes |= {f"blocks.{i}.{name}": shape for i in range(config.num_layers) for name, shape in block.items()}
    shapes |= _options(config)
    return shapes if config.tie_embeddings else shapes | {"lm_head.weight": (config.vocab_size, dim)}


def _options(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if config.skip_gates:
        shapes["skip_gates"] = (config.num_skips, config.model_dim)
    if config.smear_gate:
        shapes |= {"smear.gate.weight": (1, SMEAR_WINDOW), "smear.scale": (1,)}
    if config.bigram_buckets:
        shapes |= {
            "bigram.embed.weight": (config.bigram_buckets, config.bigram_dim),
            "bigram.proj.weight": (config.model_dim, config.bigram_dim),
            "bigram.scale": (),
        }
    return shapes


def check_state_dict(state: Mapping[str, Tensor], config: GPTConfig) -> None:
    """Raise CheckpointError for the first tensor that does not fit `GPT(config)`; unknown integer tensors pass."""
    if (layers := _count_layers(state)) != config.num_layers:
        raise _no_match(f"the config has {config.num_layers} layers, the tensors are of {layers}")
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if _shape(state, name, len(shape)) != shape:
            raise _no_match(f"{name} has shape {list(state[name].shape)}, expected {list(shape)}")
    for name, tensor in state.items():
        if name not in expected and torch.is_floating_point(tensor):
            raise _no_match(f"{name} {list(tensor.shape)} is unexpected, the model has no such tensor")


def _shape(state: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    if name not in state:
        raise _no_match(f"{name} is missing")
    tensor = state[name]
    if tensor.ndim != ndim:
        raise _no_match(f"{name} has shape {list(tensor.shape)}, expected {ndim} dimension{'s' * (ndim > 1)}")
    if not torch.is_floating_point(tensor):
        raise _no_match(f"{name} is {tensor.dtype}, expected floating point")
    return tuple(tensor.shape)


def _count_layers(state: Mapping[str, Tensor]) -> int:
    """Different block numbers; a gap in them shows later as a missing tensor."""
    numbers = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return len(numbers)


def _no_match(what: str) -> CheckpointError:
    return CheckpointError(f"no model matches: {what}", hint=_HINT)
