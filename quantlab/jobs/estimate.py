"""Estimate: what files of several sizes would lose, from one rounding for each, before any is packed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from quantlab.artifact.writer import EncodedArtifact, Payload, encode_artifact
from quantlab.budget import parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import Statistics
from quantlab.errors import BudgetError, ConfigError
from quantlab.jobs.calibrate import measure_statistics, warn_of_collapse, within_context
from quantlab.jobs.devices import find_device, on_device
from quantlab.jobs.forecast import Plan, plan_effort
from quantlab.jobs.held_out import calibration_of, held_out_text
from quantlab.jobs.pack import refuse_calibration
from quantlab.jobs.pack_config import PackConfig
from quantlab.jobs.packer import bits_by_matrix, check_budget, given_statistics, manifest_facts
from quantlab.jobs.problem import problem_of, split_model
from quantlab.jobs.tokenizers import usable_tokenizer
from quantlab.methods.method import Estimate, Point, Solver, find_method, method_options
from quantlab.methods.rounded_model import RoundedModel
from quantlab.models.loading import LoadedModel, Source, carried_files, in_eval_mode, load
from quantlab.progress import Progress, silent, stage
from quantlab.report.estimates import Estimates, SizeEstimate, TensorEstimate
from quantlab.text.tokenizer import Tokenizer

RANGE_POINTS = 5
"""Sizes of a range FROM:TO, in equal ratios."""
DEFAULT_BITS = (2.0, 6.0)
"""Bits a weight of the smallest and the largest size where no budgets are given."""
TUNED = 0.94
"""KL after tuning over that before it, where the packing will tune (benchmarks/estimate.py)."""
BAND = (0.8, 1.25)
"""Ends of the band as multiples of the estimated KL."""
APART = 1.15
"""Ratio of the two sizes between which `sensitivity` takes slopes: about half a bit a weight."""
FARTHEST = 0.1
"""Share of a size over which KL is carried along the curve: beyond, the file is as good as the method can make it."""
STEEPEST = 4.0
"""Steepest slope that is believed, as a multiple of that at high rates: unquantized tensors take a share of a small file."""
NATS_PER_BIT = 2 * math.log(2)
"""By how much ln KL falls for each bit a weight at high rates."""


def estimate(
    source: Source,
    *,
    budgets: str | Sequence[int | str] | None = None,
    method: str = "trellis",
    stats: str | Path | Statistics | None = None,
    calib: str = "self",
    calib_tokens: int = 65536,
    calib_seq_len: int = 512,
    seed: int = 0,
    model: str | None = None,
    device: str | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Estimates:
    """Return what files of several sizes would lose. Nothing is written.

    Args:
        source: a checkpoint's path or a module (see `quantlab.load`).
        budgets: sizes as numbers or texts; or one text "1MB,2MB", or "8MB:24MB" for five sizes in equal ratios; by default
            sizes from 2 to 6 bits a weight.
        method: trellis, gptq or rtn.
        stats: statistics of an earlier `quantlab.calibrate`; without them `calib`, `calib_tokens` and `calib_seq_len` say what
            to measure on.
        seed: seed of everything that is drawn.
        model: path/to/file.py:factory of a checkpoint of another architecture; this runs that file.
        device: cpu or cuda, where the model is measured; None for a GPU where there is one.
        options: options of the method.
    Raises:
        BudgetError: a size is below the smallest reachable one, which it names.
        ConfigError: an option is unknown or out of range.
        StatisticsError, CheckpointError, DataError: see `quantlab.calibrate`.
    """
    loaded = load(source, model=model)
    config = PackConfig(
        budget_bytes=split_model(loaded).weights,  # of no consequence: every size is a budget of its own
        method=method,
        options=method_options(method, options),
        calibration=CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed),
        device=device,
    )
    if stats is not None:
        refuse_calibration(config.calibration)
    forecast = forecast_of(loaded, config, has_statistics=stats is not None).forecast
    with solving(loaded, config, stats, progress=progress) as ready:
        sizes = parse_sizes(budgets, ready.n_params, smallest := ready.solver.smallest_bytes())
        if sizes[0] < smallest:
            problem_text = f"the smallest reachable artifact is {smallest} bytes, {sizes[0]} are asked for"
            raise BudgetError(problem_text, smallest_bytes=smallest, hint="ask for more")
        points = ready.curve(sizes)
    return Estimates(
        checkpoint=loaded.name,
        method=method,
        smallest_bytes=smallest,
        n_params=ready.n_params,
        points=points,
        pack_seconds=round(forecast.total_s, 1),
        peak_memory_bytes=forecast.peak_bytes,
    )


def forecast_of(loaded: LoadedModel, config: PackConfig, *, has_statistics: bool) -> Plan:
    """Return the effort and the forecast of a packing. TimeLimitError if not even the least work keeps its limit."""
    plain = find_method(config.method).needs_products
    drawn = None if has_statistics else within_context(config.calibration, loaded)
    with in_eval_mode(loaded.model), on_device(loaded.model, find_device(config.device)):
        return plan_effort(loaded, config.options, drawn, plain=plain, keep=config.keep)


@dataclass(frozen=True, kw_only=True, slots=True)
class Solving:
    """A method at work on a measured model."""

    solver: Solver
    statistics: Statistics
    shapes: dict[str, tuple[int, ...]]
    """[O, I] of each matrix, by name."""
    n_params: int
    has_tokenizer: bool
    """Whether the artifact carries the tokenizer."""
    is_tuned: bool
    """Whether the packing will tune what is not quantized."""
    kl_of: Callable[[Mapping[str, Tensor]], float]
    """Measures KL to the float model on held-out text, with values in place of matrices; nats per token."""

    def curve(self, sizes: Sequence[int]) -> tuple[SizeEstimate, ...]:
        """Return what each size, ascending, would lose: one rounding for each."""
        return _curve(self, sizes)


@contextmanager
def solving(
    loaded: LoadedModel,
    config: PackConfig,
    stats: str | Path | Statistics | None,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Progress = silent,
) -> Iterator[Solving]:
    """Measure the model, unless there are statistics, and yield what a packing with this config would solve.

    Raises:
        BudgetError: the budget lacks its unit, see `packer.check_budget`.
        ConfigError: a pattern of the config matches no tensor.
        StatisticsError, CheckpointError, DataError: see `quantlab.calibrate`.
    """
    split = split_model(loaded, config.keep)
    bits, files = bits_by_matrix(config, split), carried_files(loaded, tokenizer, config.with_tokenizer)
    tokenizer = tokenizer or usable_tokenizer(loaded)
    check_budget(loaded, split, config, files)
    with in_eval_mode(loaded.model), on_device(loaded.model, find_device(config.device)):
        known = _statistics(loaded, stats, config, tokenizer, progress)
        about = {**manifest_facts(loaded, known, config, tokenizer), "files": files}

        def encode(payloads: Sequence[Payload], *, draft: bool = False) -> EncodedArtifact:
            return encode_artifact(payloads, draft=draft, shapes=split.shapes, aliases=split.aliases, **about)

        problem = problem_of(loaded, split, known, encode, bits=bits, progress=progress)
        drawn = config.calibration if stats is None else calibration_of(known, config.calibration)
        held_out_NT, _ = held_out_text(loaded, within_context(drawn, loaded), tokenizer, progress)

        def kl_of(values: Mapping[str, Tensor]) -> float:
            stored = {**{name: raw.value for name, raw in problem.passthrough.items()}, **values}
            return RoundedModel(loaded.model, stored, problem.whole).mean_kl({}, held_out_NT, stage(progress, "measure KL"))

        yield Solving(
            solver=find_method(config.method).solver(problem, config.options),
            statistics=known,
            shapes={name: tuple(w.shape) for name, w in problem.matrices.items()},
            n_params=split.weights,
            has_tokenizer=bool(files),
            is_tuned=config.options.tune,
            kl_of=kl_of,
        )


def sensitivity(source: Source, *, budget: int | str | None = None, **given: Any) -> SizeEstimate:
    """Return where the bytes of one size would go and what they lose, and what more bytes would save in each tensor.

    Args:
        budget: size in bytes, or a text; 4 bits a weight by default.
        given: what `estimate` takes besides `budgets`.
    Raises:
        QuantlabError: see `estimate`.
    """
    loaded = load(source, model=given.pop("model", None))
    size = split_model(loaded).weights // 2 if budget is None else parse_bytes(budget) if isinstance(budget, str) else budget
    return estimate(loaded, budgets=[size, round(APART * size)], **given).points[0]


def parse_sizes(budgets: str | Sequence[int | str] | None, n_params: int, smallest: int = 0) -> list[int]:
    """Return sizes in bytes, ascending, each once; the default ones are no less than the smallest reachable one.

    ConfigError if a text or a range cannot be read.

    >>> parse_sizes("1MB:4MB", 0), parse_sizes("2kB,1000", 0), parse_sizes(None, 1000)[0]
    ([1000000, 1414214, 2000000, 2828427, 4000000], [1000, 2000], 250)
    """
    if budgets is None:
        low, high = (round(bits * n_params / 8) for bits in DEFAULT_BITS)
        return _ratios(max(low, smallest), max(high, 2 * smallest))
    if isinstance(budgets, str) and ":" in budgets:
        low, high = (parse_bytes(text) for text in budgets.split(":", 1))
        if not low < high:
            raise ConfigError(f"budgets {budgets}: {low} bytes is not below {high}")
        return _ratios(low, high)
    listed = budgets.split(",") if isinstance(budgets, str) else budgets
    sizes = sorted({parse_bytes(size) if isinstance(size, str) else int(size) for size in listed})
    if not sizes:
        raise ConfigError("budgets must name at least one size")
    return sizes


def _ratios(low: int, high: int) -> list[int]:
    return [round(low * (high / low) ** (n / (RANGE_POINTS - 1))) for n in range(RANGE_POINTS)]


def _statistics(
    loaded: LoadedModel,
    given: str | Path | Statistics | None,
    config: PackConfig,
    tokenizer: Tokenizer | None,
    progress: Progress,
) -> Statistics:
    if given is None:
        drawn, plain = within_context(config.calibration, loaded), find_method(config.method).needs_products
        return measure_statistics(loaded, drawn, tokenizer, progress, plain=plain, keep=config.keep)
    known = given_statistics(given, loaded, config)
    warn_of_collapse(known)
    return known


def _curve(ready: Solving, sizes: Sequence[int]) -> tuple[SizeEstimate, ...]:
    """Return what each size would lose: a rounding near each, carried to the size itself along the curve of all of them."""
    found, measured = [], []
    for size in sizes:
        here = ready.solver.estimate(size)
        measured.append(ready.kl_of(here.tensors))
        found.append(replace(here, tensors={}))  # the values of all sizes together may not fit into memory
    points = []
    for n, (size, here, kl) in enumerate(zip(sizes, found, measured, strict=True)):
        beside = found[n - 1] if n else (found[1] if len(found) > 1 else None)
        gap = size - here.file_bytes
        carried = gap if abs(gap) <= FARTHEST * size else 0  # no method fills any size
        factor = math.exp(_slope(here, beside, ready.n_params) * carried)
        expected = kl * factor * (TUNED if ready.is_tuned else 1.0)
        points.append(
            SizeEstimate(
                total_bytes=size,
                bpw=8 * size / ready.n_params,
                predicted_kl=here.predicted_kl * factor,
                kl=expected,
                low=BAND[0] * expected,
                high=BAND[1] * expected,
                tensors=tuple(_tensors(here, beside, ready.shapes)),
            )
        )
    return tuple(points)


def _slope(here: Estimate, beside: Estimate | None, n_params: int) -> float:
    """Return the change of ln KL for each byte more; that of high rates where two sizes do not tell it."""
    usual = -NATS_PER_BIT * 8 / n_params
    if beside is None or min(here.predicted_kl, beside.predicted_kl) <= 0 or here.file_bytes == beside.file_bytes:
        return usual
    slope = math.log(here.predicted_kl / beside.predicted_kl) / (here.file_bytes - beside.file_bytes)
    return min(max(slope, STEEPEST * usual), 0.0)


def _tensors(here: Estimate, beside: Estimate | None, shapes: dict[str, tuple[int, ...]]) -> list[TensorEstimate]:
    return [
        TensorEstimate(
            name=name,
            shape=(shapes[name][0], shapes[name][1]),
            bytes=point.bytes,
            predicted_kl=point.predicted_kl,
            kl_per_kilobyte=_per_kilobyte(point, beside.points[name]) if beside else None,
        )
        for name, point in here.points.items()
    ]


def _per_kilobyte(here: Point, beside: Point) -> float | None:
    """Return the nats that 1,000 bytes save at a point, where ln KL is linear in bytes between two."""
    if here.bytes == beside.bytes or min(here.predicted_kl, beside.predicted_kl) <= 0:
        return None
    slope = math.log(here.predicted_kl / beside.predicted_kl) / (beside.bytes - here.bytes)
    return 1000 * here.predicted_kl * slope
