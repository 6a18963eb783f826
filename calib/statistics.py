"""Calibration statistics of a model and the file that holds them: measured once, used for many budgets."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from quantlab.calib.collapse import Collapse, measure_collapse
from quantlab.calib.fisher import Use
from quantlab.calib.triangle import pack_triangle, triangle_size, unpack_triangle
from quantlab.errors import StatisticsError, first_line
from quantlab.fields import parse_json
from quantlab.files import check_regular
from quantlab.tensor_file import Layout, TensorFile, write_safetensors_in_parts

STATISTICS_VERSION = 4
KINDS = ("product", "lookup", "fisher")
_TRIANGLES = (("product", "H"), ("fisher", "H"))


class UsesOnDemand(Mapping[str, Use]):
    """Uses by name of the matrix that are computed or read whenever they are asked for, and not kept."""

    def __init__(self, names: Iterable[str], load: Callable[[str], Use]) -> None:
        self._names, self._load = dict.fromkeys(names), load

    def __getitem__(self, name: str) -> Use:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Sensitivities of each matrix W [O, I], by the ways in which the model uses it.

    Large matrices are symmetric and their values come on demand: keep a `Use` only as long as it is needed.
    """

    products: Mapping[str, Use]
    """Matrices that multiply (a linear layer, a head tied to an embedding): H is the mean over tokens of x xᵀ of the input,
    float32 [I, I], and g the mean squared gradient of the loss at the output, float32 [O]."""
    lookups: Mapping[str, Use]
    """Embeddings (O is the vocabulary), tied or not: a row is used as often as its token occurs, so g is the token's frequency,
    float32 [O], estimated with a prior count, and H the diagonal of mean squared gradients at the output, float32 [I]."""
    fishers: Mapping[str, Use]
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
    priors: tuple[str, ...] = ()
    """Matrices that no calibration token reached, such as experts: they have the mean statistics of their siblings."""
    apart: tuple[str, ...] = ()
    """Matrices of which the model multiplies by parts, at different tokens: what these have in common is not measured."""
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By matrix: names of equal ones that are rounded together with it, whose uses count as its own. Not in the file."""
    vocab_size: int = 0
    """Number of the model's ids; 0 in files that do not say."""

    @property
    def tokens(self) -> int:
        """Number of calibration tokens measured."""
        return self.ids_NT.numel()

    @property
    def collapse(self) -> Collapse:
        """How far the calibration text has collapsed."""
        return measure_collapse(self.ids_NT.numpy(), self.vocab_size)

    @property
    def matrices(self) -> int:
        """Number of matrices measured."""
        return len(self.fishers.keys() | self.lookups.keys())

    @property
    def fingerprint(self) -> str:
        """Hash, 32 hex digits, of the model, the tokens and the way they were measured."""
        about = json.dumps([STATISTICS_VERSION, self.model_fingerprint, self.tokens, self.source], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:32]

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise StatisticsError, naming the tensor, unless every shape [O, I] has finite, non-zero statistics."""
        for name, (rows, columns) in shapes.items():
            if name not in self.fishers and name not in self.lookups:
                raise StatisticsError(
                    f"tensor {name} has no calibration statistics: the model never used it",
                    hint=f"--keep {name} stores it unquantized",
                )
            for kind in (self.products, self.fishers, self.lookups):
                if name in kind:
                    self._check_use(name, kind[name], rows, columns)

    def _check_use(self, name: str, use: Use, rows: int, columns: int) -> None:
        if use.H_II.shape[-1:] != (columns,) or use.g_O.shape[-1:] != (rows,):
            got = f"{list(use.H_II.shape)} and {list(use.g_O.shape)}"
            raise StatisticsError(f"tensor {name} is [{rows}, {columns}] but its statistics are {got}")
        for label, value in (("Hessian", use.H_II), ("output gradient", use.g_O)):
            if not torch.isfinite(value.sum(dtype=torch.float64)):
                raise StatisticsError(f"tensor {name}: its {label} is not finite")
            if not value.any():
                raise StatisticsError(f"tensor {name}: its {label} is zero on all {self.tokens} calibration tokens")

    def uses(self, name: str) -> tuple[Use, ...]:
        """Return every way in which the model uses a matrix; a tied embedding is both multiplied and looked up."""
        return self._all_uses(name, (self.products, self.lookups))

    @property
    def is_plain(self) -> bool:
        """Whether `products` has every matrix that multiplies, as the GPTQ and RTN baselines need."""
        return self.products.keys() == self.fishers.keys()

    def fisher_uses(self, name: str) -> tuple[Use, ...]:
        """Return the same as `uses`, with the Kronecker factors in place of the product."""
        return self._all_uses(name, (self.fishers, self.lookups))

    def _all_uses(self, name: str, kinds: tuple[Mapping[str, Use], ...]) -> tuple[Use, ...]:
        names = (name, *self.tied.get(name, ()))
        return tuple(uses[other] for other in names for uses in kinds if other in uses)

    def check_model(self, model_fingerprint: str, path: str | Path) -> None:
        """Raise StatisticsError unless the statistics were measured on this state dict."""
        if self.model_fingerprint != model_fingerprint:
            raise StatisticsError(
                f"statistics {path} were measured on model {self.model_fingerprint[:12]}, this one is {model_fingerprint[:12]}",
                hint="run quantlab calibrate on this checkpoint, with the same --model",
            )


def write_statistics(path: Path, stats: Statistics) -> None:
    """Write a safetensors file, one matrix after another: no more than one is in memory.

    Its tensors are `product.H.<name>`, `product.g.<name>`, `lookup.H.<name>`, `lookup.g.<name>`, `fisher.H.<name>`,
    `fisher.g.<name>`, float32, and the sequences `ids`. Of a symmetric matrix of n rows the upper triangle is stored row by
    row, n (n + 1) / 2 values; a diagonal has n. The rest is JSON in the header, with the shape [O, I] of each matrix.

    Raises:
        QuantlabError: the file cannot be written.
    """
    uses = {f"{kind}.{name}": (uses, name) for kind, uses in zip(KINDS, _kinds(stats), strict=True) for name in uses}
    layout: Layout = {}
    shapes: dict[str, list[int]] = {}
    for key, (kind_uses, name) in uses.items():
        use, kind = kind_uses[name], key.partition(".")[0]
        layout |= {f"{kind}.H.{name}": _stored(use.H_II), f"{kind}.g.{name}": _stored(use.g_O)}
        shapes[name] = [len(use.g_O), len(use.H_II)]
    layout["ids"] = (torch.int32, tuple(stats.ids_NT.shape))
    about = {
        "version": STATISTICS_VERSION,
        "model_fingerprint": stats.model_fingerprint,
        "source": stats.source,
        "row_agreement": stats.row_agreement,
        "priors": list(stats.priors),
        **({"apart": list(stats.apart)} if stats.apart else {}),
        "vocab_size": stats.vocab_size,
        "shapes": shapes,
    }
    write_safetensors_in_parts(path, layout, _parts(stats), {"quantlab_statistics": json.dumps(about, sort_keys=True)})


def _kinds(stats: Statistics) -> tuple[Mapping[str, Use], ...]:
    return stats.products, stats.lookups, stats.fishers


def _stored(value: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return torch.float32, (triangle_size(len(value)) if value.ndim == 2 else len(value),)


def _parts(stats: Statistics) -> Iterator[Tensor]:
    for uses in _kinds(stats):
        for name in uses:
            use = uses[name]
            yield from (pack_triangle(value) if value.ndim == 2 else value for value in (use.H_II, use.g_O))
    yield stats.ids_NT


def read_statistics(path: Path) -> Statistics:
    """Read a file of `write_statistics`, which stays open: matrices are read from it when they are asked for.

    Raises:
        StatisticsError: the file is missing, damaged or something else.
    """
    try:
        file = _StatisticsFile(path)
        about = file.about
        return Statistics(
            products=file.uses("product"),
            lookups=file.uses("lookup"),
            fishers=file.uses("fisher"),
            ids_NT=file.ids_NT,
            model_fingerprint=str(about["model_fingerprint"]),
            source=dict(about["source"]),
            vocab_size=int(about.get("vocab_size", 0)),
            row_agreement={str(name): float(value) for name, value in about["row_agreement"].items()},
            priors=tuple(map(str, list(about["priors"]))),
            apart=tuple(map(str, list(about.get("apart", [])))),
        )
    except (SafetensorError, OSError) as error:
        raise StatisticsError(f"cannot read statistics {path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StatisticsError(f"statistics {path} are damaged: {first_line(error)}") from error


class _StatisticsFile:
    """An open file of `write_statistics`, whose header is checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_regular(path, StatisticsError, "statistics")
        self._file = TensorFile(path)
        text = self._file.metadata.get("quantlab_statistics", "null")
        self.about: dict[str, Any] = parse_json(text, f"statistics {path}", StatisticsError)
        if not isinstance(self.about, dict) or self.about.get("version") != STATISTICS_VERSION:
            raise StatisticsError(f"{path} is not a statistics file of version {STATISTICS_VERSION}")
        self._shapes = {str(name): (int(rows), int(columns)) for name, (rows, columns) in self.about["shapes"].items()}
        self._keys = [key for key in self._file.headers if key != "ids"]
        for key in self._keys:
            self._check_layout(key)
        dtype, shape = self._file.headers.get("ids", ("absent", ()))
        if dtype != "I32" or len(shape) != 2:
            raise StatisticsError(f"statistics {path}: ids are {dtype} {list(shape)}, not I32 [N, T]")
        self.ids_NT = self._file.read("ids")

    def uses(self, kind: str) -> UsesOnDemand:
        """Return the uses of one kind, which are read on demand."""
        prefix = f"{kind}.H."
        names = [key.removeprefix(prefix) for key in self._keys if key.startswith(prefix)]
        return UsesOnDemand(names, lambda name: Use(self._read(kind, "H", name), self._read(kind, "g", name)))

    def _check_layout(self, key: str) -> None:
        """Raise StatisticsError unless the tensor is a triangle or diagonal of the side of the matrix that its name says."""
        kind, _, rest = key.partition(".")
        side, _, name = rest.partition(".")
        if kind not in KINDS or side not in ("H", "g") or name not in self._shapes:
            raise StatisticsError(f"statistics {self.path} hold an unknown tensor {key}")
        size, (dtype, shape) = self._shapes[name][side == "H"], self._file.headers[key]
        is_full = (kind, side) in _TRIANGLES
        allowed = [triangle_size(size)] if is_full else [size, triangle_size(size)] if kind == "fisher" else [size]
        if dtype != "F32" or shape not in [(values,) for values in allowed]:
            got, wanted = f"{dtype} {list(shape)}", " or ".join(map(str, allowed))
            raise StatisticsError(f"statistics {self.path}: {key} is {got}, not F32 [{wanted}]")
        if side == "H" and f"{kind}.g.{name}" not in self._file.headers:
            raise StatisticsError(f"statistics {self.path} have {key} but no {kind}.g.{name}")

    def _read(self, kind: str, side: str, name: str) -> Tensor:
        size = self._shapes[name][side == "H"]
        try:
            value = self._file.read(f"{kind}.{side}.{name}")
        except (OSError, EOFError) as error:
            raise StatisticsError(f"cannot read statistics {self.path}: {error}") from error
        if not torch.isfinite(value.sum(dtype=torch.float64)):
            raise StatisticsError(f"tensor {name}: its {'Hessian' if side == 'H' else 'output gradient'} is not finite")
        is_triangle = (kind, side) in _TRIANGLES or (kind == "fisher" and len(value) != size)
        return unpack_triangle(value, size) if is_triangle else value
