"""Training checkpoints: one safetensors file of weights and optimizer state, without pickle, whole or not at all.

Tensors are named `model.<parameter>`, `optimizer.<parameter>.<state>` and `extra.<name>`; the header's metadata holds
`TrainState` as JSON under "quantlab_train", and a digest of it and of the tensors under "digest": training never goes on from a
damaged file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from quantlab.errors import TrainingError
from quantlab.files import check_regular
from quantlab.tensor_file import fingerprint, write_safetensors

_KEY, _DIGEST = "quantlab_train", "digest"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """The state beside tensors from which a training continues."""

    step: int
    """Number of optimizer steps done."""
    elapsed_seconds: float
    """Training time in seconds, over all resumes."""
    config: dict[str, Any]
    """The training's `TrainConfig.to_dict()`, which includes the seed."""
    tokens: str
    """Fingerprint of the training tokens."""


def save_checkpoint(
    path: Path, model: nn.Module, optimizers: Sequence[Optimizer], state: TrainState, extra: Mapping[str, Tensor] | None = None
) -> None:
    """Replace the file at `path` by the current weights, the optimizer state and `extra` tensors.

    Raises:
        TrainingError: a weight is not finite; the file at `path` stays as it was.
    """
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    _check_finite(tensors, state.step)
    tensors |= {f"extra.{name}": t for name, t in (extra or {}).items()}
    for (name, key), t in _optimizer_tensors(model, optimizers).items():
        tensors[f"optimizer.{name}.{key}"] = t
    about = json.dumps(asdict(state), sort_keys=True)
    write_safetensors(path, tensors, {_KEY: about, _DIGEST: _digest(about, tensors)})


def load_checkpoint_(
    path: Path, model: nn.Module, optimizers: Sequence[Optimizer], expected: TrainState
) -> tuple[TrainState, dict[str, Tensor]]:
    """Fill model and optimizers from `path`, and return the state of that training and its extra tensors.

    Args:
        expected: has the config and the tokens that the checkpoint must have been trained with.
    Raises:
        TrainingError: the file is damaged, and nothing is filled; or it belongs to a training with other tokens or another
            config (the first key that differs is named).
    """
    check_regular(path, TrainingError, "training checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = _parse_state(path, metadata)
            _check_same_training(path, state, expected)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get(_DIGEST) != _digest(metadata[_KEY], tensors):
            raise TrainingError(
                f"training checkpoint {path} is damaged: its digest does not fit", hint="remove it, and train anew"
            )
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"training checkpoint {path} is damaged: {error}") from error
    try:
        model.load_state_dict(_under(tensors, "model."))
    except RuntimeError as error:
        raise TrainingError(f"training checkpoint {path} is damaged: its tensors do not fit its own config") from error
    _fill_optimizers_(model, optimizers, _under(tensors, "optimizer."))
    return state, _under(tensors, "extra.")


def _digest(about: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{about}\n{fingerprint(tensors)}".encode()).hexdigest()


def _check_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    for name, t in tensors.items():
        if not bool(t.isfinite().all()):
            raise TrainingError(f"{name} is not finite after step {step}", hint="lower the learning rates")


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[tuple[str, str], Tensor]:
    """Return the optimizer state by (parameter name, state name); every parameter belongs to one optimizer."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {(names[p], key): t for opt in optimizers for p, state in opt.state.items() for key, t in state.items()}


def _fill_optimizers_(model: nn.Module, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    params = dict(model.named_parameters())
    owner = {p: opt for opt in optimizers for group in opt.param_groups for p in group["params"]}
    for full_name, t in tensors.items():
        name, _, key = full_name.rpartition(".")
        p = params[name]
        owner[p].state[p][key] = t.to(p.device)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _parse_state(path: Path, metadata: Mapping[str, str]) -> TrainState:
    try:
        return TrainState(**json.loads(metadata[_KEY]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is not a training checkpoint of this version") from error


def _check_same_training(path: Path, found: TrainState, expected: TrainState) -> None:
    old, new = _flat(found.config), _flat(expected.config)
    for key in [*new, *old]:
        if old.get(key) != new.get(key):
            raise TrainingError(
                f"cannot resume {path}: it has {key} = {old.get(key)}, the config has {new.get(key)}",
                hint="give the same config, or start anew without resume",
            )
    if found.tokens != expected.tokens:
        raise TrainingError(
            f"cannot resume {path}: it was trained on other tokens ({found.tokens}, now {expected.tokens})",
            hint="give the same tokens, or start anew without resume",
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
