"""How much memory a model and a process take."""

import resource
import sys
from typing import Any

import torch

from quantlab.pipeline.models import Loaded
from quantlab.trainer.packed import PackedWeight, weight_bytes


def memory_of(loaded: Loaded, device: torch.device) -> dict[str, Any]:
    """What the model's weights take, packed or decoded, and the peak so far: of tensors on a GPU, of the process on a CPU."""
    is_packed = any(isinstance(module, PackedWeight) for module in loaded.model.modules())
    return {
        "weights": "packed" if is_packed else "decoded",
        "weight_bytes": weight_bytes(loaded.model),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_of_process(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
