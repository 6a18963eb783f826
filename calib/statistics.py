"""Calibration statistics of a model and the file that holds them: measured once, used for many budgets."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantlab.calib.fisher import Use
from quantlab.errors import StatisticsError, first_line
from quantlab.tensor_file import write_safetensors

STATISTICS_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Sensitivities of each matrix W [O, I], by the ways in which the model uses it."""

    products: dict[str, Use]
    """Matrices that multiply (a linear layer, a head tied to an embedding): H is the mean over tokens of x xᵀ of the input,
    float32 [I, I], and g the mean squared gradient of the loss at the output, float32 [O]."""
    lookups: dict[str, Use]
    """Embeddings (O is the vocabulary), tied or not: a row is used as often as its token occurs, so g is the token's frequency,
    float32 [O], estimated with a prior count, and H the diagonal of mean squared gradients at the output, float32 [I]."""
    fishers: dict[str, Use]
    """The same products with Kronecker factors of the Fisher information: each token is weighted by its squared length on the
    other side, and g has its off-diagonal, float32 [O, O] (embeddings and very tall matrices have the diagonal alone)."""
    ids_NT: Tensor
    """The calibration sequences themselves, int32 [N, T]: tuning after rounding learns on them."""
    model_fingerprint: str
    """Fingerprint of the state dict that was measured."""
    row_agreement: dict[str, float] = field(default_factory=dict)
    """By tensor: correlation over rows of log g between two halves of the sample; near 1 means the sample is large enough."""
    source: dict[str, Any] = field(default_factory=dict)
    """Origin of the tokens: kind, seed, sequence length, and their SHA-256."""

    @property
    def tokens(self) -> int:
        """Number of calibration tokens measured."""
        return self.ids_NT.numel()

    @property
    def matrices(self) -> int:
        """Number of matrices measured."""
        return len(self.fishers.keys() | self.lookups.keys())

    @property
    def fingerprint(self) -> str:
        """Hash, 32 hex digits, of the model, the tokens and the way they were measured."""
        about = json.dumps([STATISTICS_VERSION, self.model_fingerprint, self.tokens, self.source], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:32]

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise StatisticsError, naming the tensor, unless every shape [O, I] has finite, non-zero statistics."""
        for name, (rows, columns) in shapes.items():
            if name not in self.fishers and name not in self.lookups:
                raise StatisticsError(f"tensor {name} has no calibration statistics: the model never used it")
            for use in (*self.uses(name), *self.fisher_uses(name)):
                if use.H_II.shape[-1:] != (columns,) or use.g_O.shape[-1:] != (rows,):
                    got = f"{list(use.H_II.shape)} and {list(use.g_O.shape)}"
                    raise StatisticsError(f"tensor {name} is [{rows}, {columns}] but its statistics are {got}")
                self._check_values(name, "Hessian", use.H_II)
                self._check_values(name, "output gradient", use.g_O)

    def uses(self, name: str) -> tuple[Use, ...]:
        """Return every way in which the model uses a matrix; a tied embedding is both multiplied and looked up."""
        return tuple(uses[name] for uses in (self.products, self.lookups) if name in uses)

    @property
    def is_plain(self) -> bool:
        """Whether `products` has every matrix that multiplies, as the GPTQ and RTN baselines need."""
        return self.products.keys() == self.fishers.keys()

    def fisher_uses(self, name: str) -> tuple[Use, ...]:
        """Return the same as `uses`, with the Kronecker factors in place of the product."""
        return tuple(uses[name] for uses in (self.fishers, self.lookups) if name in uses)

    def _check_values(self, name: str, label: str, value: Tensor) -> None:
        if not torch.isfinite(value).all():
            raise StatisticsError(f"tensor {name}: its {label} is not finite")
        if not value.any():
            raise StatisticsError(f"tensor {name}: its {label} is zero on all {self.tokens} calibration tokens")

    def check_model(self, model_fingerprint: str, path: str | Path) -> None:
        """Raise StatisticsError unless the statistics were measured on this state dict."""
        if self.model_fingerprint != model_fingerprint:
            raise StatisticsError(
                f"statistics {path} were measured on model {self.model_fingerprint[:12]}, this one is {model_fingerprint[:12]}",
                hint="run quantlab calibrate on this checkpoint, with the same --model",
            )


def write_statistics(path: Path, stats: Statistics) -> None:
    """Write a safetensors file.

    Its tensors are `product.H.<name>`, `product.g.<name>`, `lookup.H.<name>`, `lookup.g.<name>`, `fisher.H.<name>`,
    `fisher.g.<name>` and the sequences `ids`; the rest is JSON in the header.
    """
    about = {
        "version": STATISTICS_VERSION,
        "model_fingerprint": stats.model_fingerprint,
        "source": stats.source,
        "row_agreement": stats.row_agreement,
    }
    tensors: dict[str, Tensor] = {"ids": stats.ids_NT}
    for kind, uses in (("product", stats.products), ("lookup", stats.lookups), ("fisher", stats.fishers)):
        for name, use in uses.items():
            tensors |= {f"{kind}.H.{name}": use.H_II, f"{kind}.g.{name}": use.g_O}
    write_safetensors(path, tensors, {"quantlab_statistics": json.dumps(about, sort_keys=True)})


def read_statistics(path: Path) -> Statistics:
    """Read a file of `write_statistics`. StatisticsError if it is missing, damaged or something else."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = json.loads((file.metadata() or {}).get("quantlab_statistics", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise StatisticsError(f"cannot read statistics {path}: {error}") from error
    if not isinstance(about, dict) or about.get("version") != STATISTICS_VERSION:
        raise StatisticsError(f"{path} is not a statistics file of version {STATISTICS_VERSION}")
    try:
        return _from_parts(about, tensors)
    except (KeyError, TypeError) as error:
        raise StatisticsError(f"statistics {path} are damaged: {first_line(error)}") from error


def _from_parts(about: dict[str, Any], tensors: dict[str, Tensor]) -> Statistics:
    return Statistics(
        products=_read_uses(tensors, "product"),
        lookups=_read_uses(tensors, "lookup"),
        fishers=_read_uses(tensors, "fisher"),
        ids_NT=tensors["ids"],
        model_fingerprint=about["model_fingerprint"],
        source=about["source"],
        row_agreement=about["row_agreement"],
    )


def _read_uses(tensors: dict[str, Tensor], kind: str) -> dict[str, Use]:
    names = [key.removeprefix(f"{kind}.H.") for key in tensors if key.startswith(f"{kind}.H.")]
    return {name: Use(tensors[f"{kind}.H.{name}"], tensors[f"{kind}.g.{name}"]) for name in names}
