"""The protocol of a quantization method: options, the smallest file that it can make, and a solution within a byte budget.

A method is a folder beside this file. Its package defines METHODS, a dict from name to `Method`, and loads neither torch nor
numba before a solver is asked for. Nothing else has to be edited: `methods()` finds the folder.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from quantlab import methods as folder
from quantlab.artifact.whole import part_names, whole_tensors
from quantlab.errors import ConfigError
from quantlab.fields import dataclass_from_dict
from quantlab.format_rules import WIDTHS
from quantlab.methods.tasks import Crew, StepProgress, T, Task
from quantlab.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from quantlab.artifact.layout import Layout
    from quantlab.artifact.writer import EncodedArtifact, Payload, RawPayload
    from quantlab.calib.statistics import Statistics

    Codes = NDArray[np.int16]
    Tensors = tuple[dict[str, Tensor], dict[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodOptions:
    """Options that every method has; a method's own class adds its own."""

    allowed_widths: ClassVar[tuple[int, ...]] = WIDTHS
    """Widths that the method can store."""
    can_tune: ClassVar[bool] = False
    """Whether the method can tune unquantized tensors."""

    widths: tuple[int, ...] = (5, 6, 8)
    """Code widths in bits that a tensor may take."""
    tune: bool = False
    """Whether norms, gains and scales are tuned after rounding by KL to the float model; not every method can."""

    @classmethod
    def with_presets(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return plain values together with those that a preset among them stands for; given values stay."""
        return values

    def capped(self, limit: int | None) -> tuple[int, ...]:
        """Return the widths that a tensor may take whose codes have at most `limit` bits; all widths without a limit."""
        return self.widths if limit is None else tuple(sorted({min(width, limit) for width in self.widths}))

    @property
    def limit_s(self) -> float | None:
        """Seconds that the whole packing may take; None without a limit."""
        return None

    def lighter(self) -> Self | None:
        """Return options of a little less work; None where there are none."""
        return None

    def forecast(self, shapes: Mapping[str, tuple[int, ...]], token_s: float) -> dict[str, float]:
        """Return the seconds that each stage of the method will take, by short measurements on this machine.

        Args:
            shapes: [O, I] of each matrix, by name.
            token_s: seconds in which the model reads one token.
        Returns:
            An empty dict where the method knows nothing of it.
        """
        return {}

    def learning_bytes(self, squares: int, weights: int) -> int:
        """Return the bytes of memory that the method takes beside factors and weights while it learns.

        Args:
            squares: values of the factors of both sides of all matrices, Σ (I² + O²), without those that are diagonal.
            weights: weights of all matrices.
        """
        return 0

    def check(self, method: str) -> None:
        """Raise ConfigError unless the method with this name can take the widths and `tune`.

        `method_options` calls it. What needs no name of a method belongs in `__post_init__`.
        """
        if not self.widths or any(width not in self.allowed_widths for width in self.widths):
            allowed, got = (",".join(map(str, widths)) for widths in (self.allowed_widths, self.widths))
            raise ConfigError(f"widths of method {method} must be among {allowed}, got {got or 'none'}")
        if self.tune and not self.can_tune:
            raise ConfigError(f"tune: method {method} does not tune unquantized tensors", hint="leave it out")


@dataclass(frozen=True, slots=True)
class Point:
    """One way to store one tensor: what it costs and what it loses."""

    bits: int
    """Width of the codes' container."""
    setting: float
    """Clip of a row grid in root mean squares of a row, or the step scale c in square roots of nats."""
    bytes: int
    """Coded stream; an estimate where a search coded others alone."""
    predicted_kl: float
    """Nats per token."""


class Memo(Protocol):
    """Results of an earlier, killed attempt at the same work: each call returns what is known or computes and keeps it."""

    def codes(self, key: bytes, compute: "Callable[[], Codes]") -> "Codes":
        """Return the codes int16 [O, I] of one rounding."""

    def note(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a small JSON object."""

    def tensors(self, name: str, compute: "Callable[[], Tensors]") -> "Tensors":
        """Return named tensors, and strings that describe them."""


class Encode(Protocol):
    """Turns payloads into a file."""

    def __call__(self, payloads: "Sequence[Payload]", /, *, draft: bool = False) -> "EncodedArtifact":
        """Return the file; a draft has its length alone, nearly."""


class NoMemo:
    """A Memo that keeps nothing."""

    def codes(self, key: bytes, compute: "Callable[[], Codes]") -> "Codes":
        """Compute."""
        return compute()

    def note(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Compute."""
        return compute()

    def tensors(self, name: str, compute: "Callable[[], Tensors]") -> "Tensors":
        """Compute."""
        return compute()


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """The input of a method: a model, its matrices, how sensitive they are, and how the file is written."""

    model: "nn.Module"
    """In eval mode; `whole` gives tensors the names and shapes of its parameters."""
    matrices: "dict[str, Tensor]"
    """Matrices to quantize, float32 [O, I], by name; `name.k` is matrix k of a stacked parameter."""
    passthrough: "dict[str, RawPayload]"
    """Tensors that are stored unquantized, by name, as the file will store them."""
    statistics: "Statistics"
    encode: "Encode"
    """Turns the payloads of all tensors into the whole file, or into a draft of it (artifact.writer.encode_artifact)."""
    bits: dict[str, int] = field(default_factory=dict)
    """Most bits that the codes of a matrix may have, by name; others may take any of the method's widths."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each parameter that is stored as matrices `name.0`, `name.1` and so on, or in another shape."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Name of each parameter that is not stored, with that of the equal one that is."""
    scratch: "Path | None" = None
    """Folder for nameless files that hold what is large; None keeps it in memory."""
    progress: Progress = silent
    memo: Memo = field(default_factory=NoMemo)

    crew: Crew | None = None
    """The processes that share what the method hands out; None for this one alone."""

    def together(self, task: Task[T], progress: StepProgress | None = None) -> T:
        """Run a task in all processes, and return its result."""
        from quantlab.calib.processes import Alone

        return task.run(self.model, Alone(), progress) if self.crew is None else self.crew.run(task, progress)

    def whole(self, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Return tensors of the file as parameters of the model; those of no parameter are left out.

        Args:
            tensors: any of the file's tensors. Of a stack that is among them, the matrices that are not quantized may be left
                out: they are those of `passthrough`. A stack of which others are missing is left out.
        """
        import torch

        stacks = {n: part_names(n, shape) for n, shape in self.shapes.items() if n not in tensors}
        stored = {n: [self.aliases.get(part, part) for part in parts] for n, parts in stacks.items()}
        left_out = {n for n, parts in stored.items() if not any(part in tensors for part in parts)}
        left_out |= {n for n, parts in stored.items() if any(p not in tensors and p not in self.passthrough for p in parts)}
        kept = [part for n in stacks.keys() - left_out for part in stacks[n] if part in self.passthrough]
        given = {part: self.passthrough[part].value for part in kept} | dict(tensors)
        shapes = {n: shape for n, shape in self.shapes.items() if n not in left_out}
        whole = whole_tensors(given, shapes, self.aliases, torch.cat)
        return {name: whole[name] for name in sorted(whole.keys() & self.parameters)}

    def names_in_model(self) -> "Iterator[str]":
        """Yield the names under which parameters may be stored, in the order of the model."""
        for name, _ in self.model.named_parameters(remove_duplicate=False):
            yield name
            yield from part_names(name, self.shapes.get(name, (0, 0, 0)))

    @property
    def parameters(self) -> set[str]:
        """Names of the model's parameters; buffers (position tables, masks) are not among them."""
        return {name for name, _ in self.model.named_parameters(remove_duplicate=False)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A file within the budget, and what a reader of it must get."""

    data: bytes
    """The whole file."""
    layout: "Layout"
    """Places of the bytes of the file."""
    points: dict[str, Point]
    """Setting, bytes and predicted KL of each quantized tensor."""
    tensors: "dict[str, Tensor]"
    """Values of every tensor as they were measured, made without the file."""
    effort: dict[str, int] = field(default_factory=dict)
    """Work that the method spent, by name."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """kl_before, kl_after (nats per token on held-out calibration sequences) and accepted; empty without tuning."""
    refined: list[dict[str, Any]] = field(default_factory=list)
    """The same facts of each stage of refinement; empty without it."""
    rounded_weights: int = 0
    """Weights that were rounded in all, each as often as it was; 0 where the method does not count."""
    measured: dict[str, list[Point]] = field(default_factory=dict)
    """Other points that the search measured of each quantized tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a file of about a number of bytes would cost and lose, without the file."""

    file_bytes: int
    """Length of the file, nearly."""
    points: dict[str, Point]
    """Setting, bytes and predicted KL of each quantized tensor."""
    tensors: "dict[str, Tensor]"
    """Values of the quantized tensors, so that their KL can be measured."""

    @property
    def predicted_kl(self) -> float:
        """Predicted KL of all tensors, nats per token."""
        return sum(point.predicted_kl for point in self.points.values())


class Solver(Protocol):
    """One method at work on one problem."""

    def smallest_bytes(self) -> int:
        """Return the length of the smallest file that the method can make."""

    def estimate(self, budget_bytes: int) -> Estimate:
        """Return what a file of about `budget_bytes`, no less than the smallest, would be, in a fraction of the time."""

    def solve(self, budget_bytes: int) -> Solution:
        """Return the best file of at most `budget_bytes`. BudgetError if none was found."""


class Method(Protocol):
    """A quantization method."""

    @property
    def options(self) -> type[MethodOptions]:
        """Class of its options."""

    @property
    def predictor(self) -> str:
        """Information that its predicted KL uses: kronecker (both factors of the Fisher information) or diagonal."""

    @property
    def needs_products(self) -> bool:
        """Whether it needs the unweighted second moments of inputs (calib.statistics, `products`)."""

    @property
    def has_decoder(self) -> bool:
        """Whether the decoder of one file (artifact.emit) reads its artifacts."""

    def solver(self, problem: Problem, options: Any) -> Solver:
        """Return a solver; `options` is an instance of `self.options`."""


@cache
def methods() -> dict[str, Method]:
    """Return every method by its name, in order of their folders."""
    found: dict[str, Method] = {}
    for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda module: module.name):
        if module.ispkg:
            found |= importlib.import_module(f"{folder.__name__}.{module.name}").METHODS
    return found


def find_method(name: str) -> Method:
    """Return the method with this name. ConfigError for any other name."""
    known = methods()
    if name not in known:
        raise ConfigError(f"method must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def method_options(name: str, values: Mapping[str, Any], where: str = "") -> MethodOptions:
    """Return the options of a method out of plain values; the others have their defaults.

    Args:
        where: put before every key in errors, as `pack.`.
    Raises:
        ConfigError: there is no such method, it has no such option (the hint names the nearest), or a value is out of range.
    """
    cls = find_method(name).options
    for key in values:
        if key not in option_names(cls):
            raise _unknown_option(name, key, where)
    options = dataclass_from_dict(cls, cls.with_presets(values), where=where)
    options.check(name)
    return replace(options, widths=tuple(sorted(set(options.widths))))


def _unknown_option(name: str, key: str, where: str) -> ConfigError:
    """Return the error about an option that a method lacks; its hint names the methods that have it, or the nearest option."""
    if owners := [other for other, method in methods().items() if key in option_names(method.options)]:
        hint = f"leave it out, or choose method {' or '.join(owners)}"
        return ConfigError(f"{where}{key} is not an option of method {name}", hint=hint)
    known = option_names(find_method(name).options)
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {where}{near[0]}?" if near else f"known options: {', '.join(known)}"
    return ConfigError(f"method {name} has no option {where}{key}", hint=hint)


def option_names(options: type[MethodOptions]) -> list[str]:
    """Return the names of a method's options."""
    return [f.name for f in fields(options)]


def options_dict(options: MethodOptions) -> dict[str, Any]:
    """Return the options as plain JSON types."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}
