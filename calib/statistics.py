"""Calibration statistics as a file: measured once, used for many budgets."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantlab.checkpoint.write import write_safetensors
from quantlab.errors import StatisticsError

STATISTICS_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What rounding needs to know of each matrix W [O, I].

    For a matrix that multiplies (a linear layer, a tied head) H is the mean over tokens of x xᵀ of its input and g the mean
    squared gradient of the loss at its output. For one that is only looked up (an untied embedding, O = vocabulary) a row is
    used as often as its token occurs: g is the token's frequency and H the diagonal of mean squared gradients at the output.
    Either way ½ Σ_i g_i e_iᵀ H e_i predicts the KL in nats per token that an error e costs.
    """

    H: dict[str, Tensor]
    """float32 [I, I] by tensor name."""
    g: dict[str, Tensor]
    """float32 [O] by tensor name."""
    tokens: int
    """Calibration tokens measured."""
    model_fingerprint: str
    """Fingerprint of the state dict that was measured."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where the tokens came from: kind, seed, sequence length, and their SHA-256."""

    @property
    def fingerprint(self) -> str:
        """32 hex digits that name the model, the tokens and the way they were measured."""
        about = json.dumps([STATISTICS_VERSION, self.model_fingerprint, self.tokens, self.source], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:32]

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise StatisticsError, naming the tensor, unless every shape [O, I] has finite, non-zero statistics."""
        for name, (rows, columns) in shapes.items():
            if name not in self.H or name not in self.g:
                raise StatisticsError(f"tensor {name} has no calibration statistics: the model never used it")
            if self.H[name].shape != (columns, columns) or self.g[name].shape != (rows,):
                got = f"{list(self.H[name].shape)} and {list(self.g[name].shape)}"
                raise StatisticsError(f"tensor {name} is [{rows}, {columns}] but its statistics are {got}")
            for label, value in (("Hessian", self.H[name]), ("output gradient", self.g[name])):
                if not torch.isfinite(value).all():
                    raise StatisticsError(f"tensor {name}: its {label} is not finite")
                if not value.any():
                    raise StatisticsError(f"tensor {name}: its {label} is zero on all {self.tokens} calibration tokens")

    def check_model(self, model_fingerprint: str, path: Path) -> None:
        """Raise StatisticsError unless the statistics were measured on this state dict."""
        if self.model_fingerprint != model_fingerprint:
            raise StatisticsError(
                f"statistics {path} were measured on checkpoint {self.model_fingerprint[:12]}, this one is "
                f"{model_fingerprint[:12]}",
                hint="run quantlab calibrate on this checkpoint",
            )


def write_statistics(path: Path, stats: Statistics) -> None:
    """Save as safetensors: tensors `H.<name>` and `g.<name>`, the rest as JSON in the header."""
    about = {
        "version": STATISTICS_VERSION,
        "tokens": stats.tokens,
        "model_fingerprint": stats.model_fingerprint,
        "source": stats.source,
    }
    tensors = {f"H.{n}": t for n, t in stats.H.items()} | {f"g.{n}": t for n, t in stats.g.items()}
    write_safetensors(path, tensors, {"quantlab_statistics": json.dumps(about, sort_keys=True)})


def read_statistics(path: Path) -> Statistics:
    """Inverse of `write_statistics`. StatisticsError if the file is missing, damaged or something else."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = json.loads((file.metadata() or {}).get("quantlab_statistics", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise StatisticsError(f"cannot read statistics {path}: {error}") from error
    if not isinstance(about, dict) or about.get("version") != STATISTICS_VERSION:
        raise StatisticsError(f"{path} is not a statistics file of version {STATISTICS_VERSION}")
    return Statistics(
        H={key[2:]: t for key, t in tensors.items() if key.startswith("H.")},
        g={key[2:]: t for key, t in tensors.items() if key.startswith("g.")},
        tokens=about["tokens"],
        model_fingerprint=about["model_fingerprint"],
        source=about["source"],
    )
