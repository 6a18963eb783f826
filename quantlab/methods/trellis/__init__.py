"""The trellis method: row and column scales, error feedback on both sides, an entropy-coded trellis, one slope, tuning."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from quantlab.errors import ConfigError
from quantlab.format_rules import STATES, WIDE, WIDTHS
from quantlab.methods.method import Method, MethodOptions, Problem, Solver

TUNE_STEPS = 12
REFINE_STEPS = 12
EFFORTS: dict[str, dict[str, Any]] = {
    "fast": {"states": 4, "tune": False},
    "default": {"states": 8, "tune": True, "tune_steps": TUNE_STEPS},
    "best": {"states": 64, "tune": True, "tune_steps": 4 * TUNE_STEPS, "refine_steps": REFINE_STEPS},
}
"""Options that each level of effort sets where they are not given."""
NARROWEST = 4
"""Bits: a trellis needs codes of every remainder by 4, and one more of each towards zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrellisOptions(MethodOptions):
    """Options of the trellis method."""

    allowed_widths: ClassVar[tuple[int, ...]] = (*WIDTHS, WIDE)
    can_tune: ClassVar[bool] = True
    widths: tuple[int, ...] = (5, 6, 8, WIDE)
    """Code widths in bits that a tensor may take; the entropy coder decides the bytes, so a wide container costs nothing."""
    effort: Literal["fast", "default", "best"] = "default"
    """Level that `method_options` puts in place of those of states, tune, tune_steps and refine_steps that are not given."""
    states: int = 8
    """States of the trellis: 1 (plain rounding), 4, 8, 16, 32, 64 or 256; more are slower."""
    tune: bool = True
    """Whether norms, gains and scales are tuned after rounding by KL to the float model."""
    tune_steps: int = TUNE_STEPS
    """Batches of tuning."""
    refine_steps: int = 0
    """Batches of learning after each group of matrices is rounded; 0 rounds all of them at once."""
    time_limit: float | None = None
    """Seconds for the whole packing: less effort where it would take longer, and an error where the least would."""
    row_scales: bool = True
    """Whether steps have row scales; benchmarks leave out one part at a time."""
    column_scales: bool = True
    """Whether steps have column scales."""
    row_feedback: bool = True
    """Whether errors are fed back between rows."""

    def __post_init__(self) -> None:
        if max(self.widths, default=NARROWEST) < NARROWEST:
            raise ConfigError(f"the widest of widths must be {NARROWEST} bits or more for the trellis, got {max(self.widths)}")
        if self.effort not in EFFORTS:
            raise ConfigError(f"effort must be one of {', '.join(EFFORTS)}, got {self.effort!r}")
        if self.states not in STATES:
            raise ConfigError(f"states must be one of {', '.join(map(str, STATES))}, got {self.states}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ConfigError(f"time limit must be above 0 seconds, got {self.time_limit:g}")
        if self.tune_steps < 0:
            raise ConfigError(f"tune_steps must be 0 or more, got {self.tune_steps}")
        if self.refine_steps < 0:
            raise ConfigError(f"refine_steps must be 0 or more, got {self.refine_steps}")

    @classmethod
    def with_presets(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return plain values together with those of their level of effort; given values stay."""
        level = values.get("effort", "default")
        return {**EFFORTS.get(level, {}), **values} if isinstance(level, str) else values

    @property
    def limit_s(self) -> float | None:
        """Seconds that the whole packing may take; None without a limit."""
        return self.time_limit

    def lighter(self) -> "TrellisOptions | None":
        """Return the same without refinement, then without tuning, then with fewer and fewer states; None at the least."""
        if self.refine_steps:
            return replace(self, refine_steps=0)
        if self.batches:
            return replace(self, tune=False)
        fewer = [states for states in STATES if states < self.states]
        return replace(self, states=max(fewer)) if fewer else None

    def forecast(self, shapes: Mapping[str, tuple[int, ...]], token_s: float) -> dict[str, float]:
        """Return the seconds that rounding and tuning will take, by rounding two small matrices."""
        from quantlab.methods.trellis.effort import stage_seconds  # numba takes a second to load

        return stage_seconds(self, shapes, token_s)

    def learning_bytes(self, squares: int, weights: int) -> int:
        """Return the bytes of the inverse factors, and of the weights that learn with their gradients and means."""
        return 4 * squares + 12 * weights if self.refine_steps else 0

    @property
    def batches(self) -> int:
        """Batches of tuning that will be done."""
        return self.tune_steps if self.tune else 0


class TrellisMethod:
    """The trellis method: two-sided error feedback on an entropy-coded trellis, with row and column scales."""

    options = TrellisOptions
    predictor = "kronecker"
    needs_products = False
    has_decoder = True

    def solver(self, problem: Problem, options: TrellisOptions) -> Solver:
        """Return a solver of the problem."""
        from quantlab.methods.trellis.solver import TrellisSolver

        return TrellisSolver(problem, options)


METHODS: dict[str, Method] = {"trellis": TrellisMethod()}
