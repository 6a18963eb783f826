"""A quantizer for transformers that only stores: from_pretrained on a folder with packed weights decodes them to plain ones.

`register()` tells transformers of it, through its own registry. Such a folder has a config.json whose quantization_config names
the method, and a model.safetensors with one tensor: the bytes of the artifact. The artifact is read with all its checks.
"""

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.artifact.decode import decode_artifact, parse_artifact
from quantlab.errors import CheckpointError, ConfigError

METHOD = "quantlab"
"""Value of quant_method in the quantization_config."""
TENSOR = "quantlab_artifact"
"""Name of the tensor, uint8, that holds the artifact."""


@cache
def register() -> None:
    """Make transformers' from_pretrained read folders that `quantlab unpack --packed` wrote; once is enough.

    Raises:
        ConfigError: transformers is not installed.
    """
    try:
        auto: Any = importlib.import_module("transformers.quantizers.auto")
    except ImportError as error:
        raise ConfigError("transformers is not installed", hint='pip install "transformers>=5,<6"') from error
    auto.register_quantization_config(METHOD)(_config_class())
    auto.register_quantizer(METHOD)(_quantizer_class())


def artifact_tensor(data: bytes) -> Tensor:
    """Return the bytes of an artifact as the tensor uint8 [N] of a packed folder."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _config_class() -> type:
    mixin: Any = importlib.import_module("transformers.utils.quantization_config").QuantizationConfigMixin

    class QuantlabConfig(mixin):  # type: ignore[misc]
        """The quantization_config of a packed folder."""

        def __init__(self, quant_method: str = METHOD, **rest: Any) -> None:
            if rest:
                raise ConfigError(f"quantization_config has {min(rest)!r:.60}, which {METHOD} does not know")
            self.quant_method = quant_method

    return QuantlabConfig


def _quantizer_class() -> type:
    base: Any = importlib.import_module("transformers.quantizers.base").HfQuantizer
    loading: Any = importlib.import_module("transformers.core_model_loading")

    class Decode(loading.ConversionOps):  # type: ignore[misc]
        """Turns the artifact into all parameters and persistent buffers of the model."""

        def convert(self, input_dict: dict[str, Any], model: Any = None, **rest: Any) -> dict[str, Tensor]:
            """Return the tensors by name, in the dtypes of the model's own."""
            found = input_dict[TENSOR]
            return decoded(found[0] if isinstance(found, list) else found, model)

    def after_loading(self: Any, model: Any, **rest: Any) -> Any:
        self.remove_quantization_config(model)  # its weights are plain ones now
        return model

    def before_loading(self: Any, model: Any, **rest: Any) -> Any:
        self.names = wanted_names(model)
        return model

    def get_weight_conversions(self: Any) -> list[Any]:
        return [loading.WeightConverter(TENSOR, list(self.names), [Decode()])]

    methods = {
        "requires_calibration": False,
        "is_serializable": lambda self: False,
        "is_trainable": False,
        "_process_model_before_weight_loading": before_loading,
        "_process_model_after_weight_loading": after_loading,
        "get_weight_conversions": get_weight_conversions,
        "__doc__": "Decodes an artifact while a model is loaded.",
    }
    return type("QuantlabQuantizer", (base,), methods)


def wanted_names(model: Any) -> list[str]:
    """Return the names of parameters and persistent buffers of a model of transformers, of tied ones that of the source."""
    return [name for name in model.state_dict() if name not in model.all_tied_weights_keys]


def decoded(packed: Tensor, model: Any) -> dict[str, Tensor]:
    """Return the tensors of an artifact by name, in the shapes and dtypes of a model's.

    Args:
        packed: bytes of the artifact, uint8 [N].
    Raises:
        FormatError: the artifact is damaged.
        CheckpointError: it is of another model.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 1:
        raise CheckpointError(f"{TENSOR} must be uint8 [N], got {packed.dtype} {list(packed.shape)}")
    manifest, sections = parse_artifact(packed.cpu().numpy().tobytes())
    tensors = {name: torch.from_numpy(array) for name, array in decode_artifact(manifest, sections).items()}
    for name, source in model.all_tied_weights_keys.items():
        if name in tensors and source not in tensors:
            tensors[source] = tensors.pop(name)
    own = model.state_dict()
    if odd := sorted(tensors.keys() ^ set(wanted_names(model))):
        raise CheckpointError(f"{TENSOR}: tensor {odd[0]} is {'not one of the model' if odd[0] in tensors else 'missing'}")
    return {name: _fitted(name, tensor, own, _conv1d_names(model)) for name, tensor in tensors.items()}


def _conv1d_names(model: nn.Module) -> frozenset[str]:
    """Return the names of weights of Conv1D, which an artifact has transposed."""
    return frozenset(f"{name}.weight" for name, part in model.named_modules() if type(part).__name__ == "Conv1D")


def _fitted(name: str, tensor: Tensor, own: Mapping[str, Tensor], transposed: frozenset[str]) -> Tensor:
    tensor = tensor.T.contiguous() if name in transposed else tensor
    if tensor.shape != own[name].shape:
        raise CheckpointError(
            f"{TENSOR}: tensor {name} has shape {list(tensor.shape)}, the model's has {list(own[name].shape)}"
        )
    return tensor.to(own[name].dtype)
