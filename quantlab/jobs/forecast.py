"""The time and memory that a packing will take, from the model's sizes and short measurements on this machine.

Each stage is counted in a unit that is timed: tokens that the model reads, steps of sampling, products of symmetric matrices,
and what the method says of itself.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from quantlab.calib.passes import SUM_BYTES, sum_entries
from quantlab.calib.recompute import blocks_of
from quantlab.calib.sources import BATCH, CalibrationConfig, other_draw, sample_sequences
from quantlab.errors import TimeLimitError
from quantlab.jobs.devices import memory_of_process, peak_of_process
from quantlab.jobs.held_out import HELD_OUT_TOKENS
from quantlab.jobs.memory import free_bytes, pass_bytes, passes_of
from quantlab.jobs.problem import matrix_shapes
from quantlab.methods.method import MethodOptions
from quantlab.models.loading import LoadedModel
from quantlab.progress import duration_text

SAMPLE_TOKENS = 256
"""Most tokens of the pass that is timed; a large model reads fewer, so that its pass takes a fraction of a second."""
SAMPLE_FLOP = 2e10
PRODUCT = (1024, 512)
"""Tokens and columns of the product that is timed."""
STEPS = 3
"""Steps of sampling that are timed, at the beginning of sequences."""
LONG_CACHE = 1.4
"""Time of a step in the middle of a sequence over that of one at its beginning."""
BACKWARD = 3.5
"""Passes whose time statistics take beside products: forward, backward to the activations, labels and sums."""
FRESH_PROCESS_S = 4.0
"""Seconds in which a fresh process loads its libraries to read the file back."""
MARGIN = 0.8
"""Share of a time limit that may be planned: machines are noisy."""
SEQUENCE = 512
"""Tokens of a calibration sequence where the statistics were measured before."""
LIBRARY_BYTES = 600_000_000
"""Memory of the process with all libraries loaded."""
WEIGHT_BYTES = 45
"""Bytes that rounding holds of each weight: float copies, steps, and codes of the roundings that are still in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The time and memory that a packing will take."""

    stages_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage."""
    peak_bytes: int = 0
    """Largest memory of the process."""
    limit_bytes: int | None = None
    """Memory that the process may have, with what it has already; None where nothing says."""
    passes: int = 1
    """Passes over the calibration tokens, each for the matrices whose statistics fit into memory together."""

    @property
    def total_s(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages_s.values())

    def line(self) -> str:
        """Return the forecast as one line."""
        stages = ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in self.stages_s.items())
        passes = f", statistics in {self.passes} passes" if self.passes > 1 else ""
        memory = f"peak memory about {self.peak_bytes / 1e9:.1f} GB{passes}"
        return f"forecast: about {duration_text(self.total_s)} ({stages}), {memory}"

    def warning(self) -> str | None:
        """Return a line where the memory that the process may have is less than what it will take; otherwise None."""
        if self.limit_bytes is None or self.peak_bytes <= self.limit_bytes:
            return None
        return f"memory may not be enough: about {self.peak_bytes / 1e9:.1f} GB of {self.limit_bytes / 1e9:.1f} GB"


@dataclass(frozen=True, slots=True)
class Plan:
    """The options that a packing uses after its time limit was considered, and what it will take with them."""

    options: MethodOptions
    forecast: Forecast


def plan_effort(
    loaded: LoadedModel,
    options: MethodOptions,
    calibration: CalibrationConfig | None,
    *,
    plain: bool,
    keep: Sequence[str] = (),
) -> Plan:
    """Return `options`, or the first lighter ones whose forecast keeps their time limit, and the forecast.

    Args:
        calibration: the tokens to measure on; None where there are statistics.
        plain: whether statistics have the products that GPTQ and RTN need.
        keep: patterns of names of tensors that are not quantized.
    Raises:
        TimeLimitError: not even the least work fits into the time limit.
    """
    token_s, shapes = _seconds_per_token(loaded, calibration), matrix_shapes(loaded, keep)
    groups = [dict(shapes)]
    if calibration is not None:
        groups = passes_of(loaded.model, shapes, loaded.vocab_size, plain=plain)
    before = {} if calibration is None else _calibration_seconds(loaded.model, groups, calibration, token_s, plain=plain)
    after = {"held-out KL": _held_out_seconds(loaded, calibration, token_s), "reading back": FRESH_PROCESS_S}
    statistics_bytes = 0
    if calibration is not None:
        largest = max(_squares(group, plain=plain) for group in groups)
        blocks = len(blocks_of(loaded.model)) if len(groups) > 1 else 1
        statistics_bytes = SUM_BYTES * largest + pass_bytes(shapes, loaded.vocab_size, blocks=max(1, blocks))
    free = free_bytes()
    limit_bytes = None if free is None else free + memory_of_process()

    def forecast(options: MethodOptions) -> Forecast:
        stages_s = before | options.forecast(shapes, token_s) | after
        now_bytes = sum(t.numel() * t.element_size() for t in loaded.state.values()) + LIBRARY_BYTES
        weights = sum(O * I for O, I in shapes.values())
        learning_bytes = options.learning_bytes(_squares(shapes, plain=False), weights)
        peak_bytes = max(peak_of_process(), now_bytes + max(statistics_bytes, _rounding_bytes(shapes) + learning_bytes))
        rounded_s = {name: round(seconds, 2) for name, seconds in stages_s.items()}
        return Forecast(stages_s=rounded_s, peak_bytes=peak_bytes, limit_bytes=limit_bytes, passes=len(groups))

    return _within_limit(options, forecast)


def _within_limit(options: MethodOptions, forecast: Callable[[MethodOptions], Forecast]) -> Plan:
    """Return the most work whose forecast keeps the limit by MARGIN, or the least work if that keeps it at all."""
    plan, limit_s = Plan(options, forecast(options)), options.limit_s
    if limit_s is None:
        return plan
    while plan.forecast.total_s > MARGIN * limit_s and (lighter := plan.options.lighter()) is not None:
        plan = Plan(lighter, forecast(lighter))
    if plan.forecast.total_s > limit_s:
        least, limit = duration_text(plan.forecast.total_s), duration_text(limit_s)
        raise TimeLimitError(
            f"the time limit of {limit} cannot be kept: the least effort takes about {least}", hint="raise --time-limit"
        )
    return plan


def changes(wanted: MethodOptions, chosen: MethodOptions) -> str:
    """Return the options in which `chosen` differs from `wanted`, as text; empty if there are none."""
    before, after = asdict(wanted), asdict(chosen)
    return ", ".join(f"{name} {value} instead of {before[name]}" for name, value in after.items() if value != before[name])


def _calibration_seconds(
    model: nn.Module,
    groups: Sequence[Mapping[str, tuple[int, ...]]],
    config: CalibrationConfig,
    token_s: float,
    *,
    plain: bool,
) -> dict[str, float]:
    """Return the seconds of sampling, where the model writes its own text, and of statistics."""
    tokens = config.tokens // config.seq_len * config.seq_len
    seconds = {"sampling": _sampling_seconds(model, config, token_s)} if config.source == "self" else {}
    flop = tokens * sum(_squares(group, plain=plain) for group in groups)  # half of a product: sums are symmetric
    # every pass but the first runs backward through a part of the model: half of it, on average
    passes = 1 + (len(groups) - 1) * (1 + BACKWARD) / 2 / BACKWARD
    return seconds | {"statistics": passes * BACKWARD * tokens * token_s + flop / _product_rate()}


def _held_out_seconds(loaded: LoadedModel, calibration: CalibrationConfig | None, token_s: float) -> float:
    """Return the seconds in which KL is measured on text that the statistics do not use, and that text is sampled."""
    known = calibration or CalibrationConfig(seq_len=min(SEQUENCE, loaded.context_length or SEQUENCE))
    sampling = 0.0
    if known.source == "self":
        sampling = _sampling_seconds(loaded.model, other_draw(known, loaded.model, HELD_OUT_TOKENS), token_s)
    return sampling + 2 * HELD_OUT_TOKENS * token_s


def _squares(shapes: Mapping[str, tuple[int, ...]], *, plain: bool) -> int:
    """Return the entries of all matrices of sums: inputs with inputs, and outputs with outputs where those are kept."""
    return sum(sum_entries(shape, plain=plain) for shape in shapes.values())


def _sampling_seconds(model: nn.Module, config: CalibrationConfig, token_s: float) -> float:
    """Return the seconds to sample all sequences, by a few timed steps, or by the tokens read where there is no cache."""
    count, length = config.tokens // config.seq_len, config.seq_len
    if not hasattr(model, "new_cache"):
        return count * length * (length - 1) / 2 * token_s
    batch = min(count, BATCH)
    sample_sequences(model, batch, 2)
    step_s = _seconds(lambda: sample_sequences(model, batch, STEPS + 1)) / STEPS
    return math.ceil(count / BATCH) * (length - 1) * step_s * LONG_CACHE


@torch.no_grad()
def _seconds_per_token(loaded: LoadedModel, config: CalibrationConfig | None) -> float:
    """Return the seconds in which the model reads one token of a sequence."""
    model = loaded.model
    parameters = sum(p.numel() for p in model.parameters())
    longest = config.seq_len if config else loaded.context_length or SAMPLE_TOKENS
    tokens = max(8, min(SAMPLE_TOKENS, longest, int(SAMPLE_FLOP / (2 * parameters + 1))))
    ids_1T = (torch.arange(tokens, device=next(model.parameters()).device) % loaded.vocab_size)[None]
    model(ids_1T[:, :2])
    return (_seconds(lambda: model(ids_1T)) + _seconds(lambda: model(ids_1T))) / 2 / tokens


def _product_rate() -> float:
    """Return the floating-point operations a second of a product xᵀ x in float32."""
    x_TI = torch.ones(PRODUCT)
    return 2 * PRODUCT[0] * PRODUCT[1] ** 2 / min(_seconds(lambda: x_TI.T @ x_TI) for _ in range(3))


def _rounding_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the bytes of the weights on their way; triangular factors wait in a file."""
    return WEIGHT_BYTES * sum(O * I for O, I in shapes.values())


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
