"""How a model adapts to a text while it is scored (test-time training): three kinds, each with its own options."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quantlab.errors import ConfigError
from quantlab.fields import dataclass_from_dict


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraAdaptation:
    """Adapters of low rank on every linear map, for each document alone: they begin anew at BOS, weights stay as they are.

    Source: openai/parameter-golf, records of PR 77, 1530 and 1767.
    """

    rank: int = 8
    """Rank of each adapter, at least 1."""
    alpha: float = 16.0
    """An adapter adds alpha / rank · B A x; positive."""
    lr: float = 0.003
    """AdamW's learning rate, 0 or more; 0 does not adapt."""
    beta1: float = 0.0
    """AdamW's decay rate of the mean gradient, below 1."""
    beta2: float = 0.999
    """AdamW's decay rate of the mean squared gradient, below 1."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, 0 or more."""
    steps: int = 1
    """Optimizer steps after each chunk; the first takes its gradient from the forward pass that scored the chunk."""
    chunk: int = 64
    """Tokens that are scored between two adaptations; must divide the sequence length."""
    documents: int = 16
    """Most documents that are scored side by side, each with adapters of its own."""
    seed: int = 0
    """Seed of the initial A, the same for every document; B begins at 0."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "rank", "steps", "chunk", "documents")
        _at_least(self, 0, "lr", "weight_decay", "seed")
        _positive(self, "alpha")
        _below_one(self, "beta1", "beta2")


@dataclass(frozen=True, kw_only=True, slots=True)
class SgdAdaptation:
    """Stochastic gradient descent on all weights, after each chunk of the text.

    Source: openai/parameter-golf, records of PR 461 and 549. The learning rate is constant: one that falls with the number of
    chunks left would depend on how much text is still to come.
    """

    lr: float = 0.002
    """Learning rate, 0 or more; 0 does not adapt."""
    momentum: float = 0.9
    """Momentum, below 1."""
    epochs: int = 3
    """Passes over each chunk after it is scored."""
    chunk: int = 32768
    """Scored tokens from one adaptation to the next, at least; windows are not cut."""
    batch_tokens: int = 8192
    """Tokens of one optimizer step, at least one sequence."""
    grad_clip: float = 1.0
    """Maximum gradient norm of a step; 0 for none."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "epochs", "chunk", "batch_tokens")
        _at_least(self, 0, "lr", "grad_clip")
        _below_one(self, "momentum")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasedAdaptation:
    """Adapters for each document, and after each phase descent on all weights over the documents that were scored so far.

    Source: openai/parameter-golf, records of PR 1610 and 1626. There the documents of a phase depended on the timing of the
    processes; here they are the first ones of the text.
    """

    phases: int = 3
    """Number of descents on all weights."""
    prefix: int = 2000
    """Documents before the last of them; the phases end after equal shares of these."""
    lora: LoraAdaptation = field(default_factory=LoraAdaptation)
    """The adapters."""
    sgd: SgdAdaptation = field(default_factory=lambda: SgdAdaptation(lr=0.001, epochs=1))
    """The descent; its chunk is not used, for a phase is one chunk."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "phases", "prefix")
        if self.prefix < self.phases:
            raise ConfigError(f"prefix must be at least the number of phases, {self.phases}, got {self.prefix}")
        if self.sgd.chunk != SgdAdaptation().chunk:
            raise ConfigError(
                f"sgd.chunk {self.sgd.chunk} has no effect: a phase ends after documents", hint="set prefix or phases"
            )

    @property
    def boundaries(self) -> list[int]:
        """Number of documents before each descent."""
        return [self.prefix * (n + 1) // self.phases for n in range(self.phases)]


Adaptation = LoraAdaptation | SgdAdaptation | PhasedAdaptation
KINDS: dict[str, type[Adaptation]] = {"lora": LoraAdaptation, "sgd": SgdAdaptation, "phased": PhasedAdaptation}
TABLES = ("lora", "sgd")
"""Options of phased that have options of their own."""


def read_adaptation(kind: str, options: Mapping[str, Any]) -> Adaptation:
    """Return the adaptation of a kind with options by name. ConfigError for an unknown kind or option, or one out of range."""
    if kind not in KINDS:
        raise ConfigError(f"ttt must be one of {', '.join(KINDS)}, got {kind!r}")
    return dataclass_from_dict(KINDS[kind], _with_defaults(kind, options))


def describe(adaptation: Adaptation) -> str:
    """Return the kind and all options on one line, so that two scores are told apart that adapted otherwise."""
    kind = next(name for name, cls in KINDS.items() if type(adaptation) is cls)
    return " ".join([kind, *_words(asdict(adaptation))])


def _with_defaults(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options; a table of phased keeps the defaults that phased has for it."""
    if kind != "phased":
        return dict(options)
    defaults = asdict(PhasedAdaptation())
    return {
        key: {**defaults[key], **value} if isinstance(value, Mapping) and key in TABLES else value
        for key, value in options.items()
    }


def _words(values: Mapping[str, Any], where: str = "") -> list[str]:
    parts = [_words(v, f"{where}{k}.") if isinstance(v, dict) else [f"{where}{k}={v:g}"] for k, v in values.items()]
    return [word for part in parts for word in part]


def _at_least(config: Any, low: int, *names: str) -> None:
    for name in names:
        if not low <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name} must be at least {low} and finite, got {getattr(config, name)}")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ConfigError(f"{name} must be positive and finite, got {getattr(config, name)}")


def _below_one(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(config, name)}")
