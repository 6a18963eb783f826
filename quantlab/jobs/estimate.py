"""Estimate: what files of several sizes would lose, from one rounding for each, before any is packed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantlab.artifact.writer import EncodedArtifact, Payload, encode_artifact
from quantlab.budget import parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import Statistics
from quantlab.errors import BudgetError, ConfigError
from quantlab.jobs.calibrate import measure_statistics, warn_of_collapse, within_context
from quantlab.jobs.devices import find_device, on_device
from quantlab.jobs.pack import refuse_calibration
from quantlab.jobs.pack_config import PackConfig
from quantlab.jobs.packer import given_statistics, manifest_facts
from quantlab.jobs.problem import problem_of, split_model
from quantlab.jobs.tokenizers import usable_tokenizer
from quantlab.methods.method import Estimate, Point, Solver, find_method, method_options
from quantlab.models.loading import LoadedModel, Source, carried_files, in_eval_mode, load
from quantlab.progress import Progress, silent
from quantlab.report.estimates import Estimates, SizeEstimate, TensorEstimate

RANGE_POINTS = 5
"""Sizes of a range FROM:TO, in equal ratios."""
DEFAULT_BITS = (2.0, 6.0)
"""Bits a weight of the smallest and the largest size where no budgets are given."""
SURE_BITS, LOW_BITS = 3.0, 1.5
"""From SURE_BITS a weight the band is narrow, at LOW_BITS wide: where errors are large, the second order is not enough."""
BAND_ABOVE, BAND_BELOW = (1.25, 2.0), (0.8, 0.7)
"""Largest and smallest measured KL as a multiple of the predicted one, at SURE_BITS and at LOW_BITS."""
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
    split = split_model(loaded)
    config = PackConfig(
        budget_bytes=split.weights,  # of no consequence: every size is a budget of its own
        method=method,
        options=method_options(method, options),
        calibration=CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed),
        device=device,
    )
    if stats is not None:
        refuse_calibration(config.calibration)
    with in_eval_mode(loaded.model), on_device(loaded.model, find_device(device)):
        known = _statistics(loaded, stats, config, progress)
        about = {**manifest_facts(loaded, known, config, usable_tokenizer(loaded)), "files": carried_files(loaded, None, None)}

        def encode(payloads: Sequence[Payload], *, draft: bool = False) -> EncodedArtifact:
            return encode_artifact(payloads, draft=draft, shapes=split.shapes, aliases=split.aliases, **about)

        problem = problem_of(loaded, split, known, encode, progress=progress)
        solver = find_method(method).solver(problem, config.options)
        smallest = solver.smallest_bytes()
        sizes = parse_sizes(budgets, split.weights, smallest)
        if sizes[0] < smallest:
            problem_text = f"the smallest reachable artifact is {smallest} bytes, {sizes[0]} are asked for"
            raise BudgetError(problem_text, smallest_bytes=smallest, hint="ask for more")
        points = _curve(solver, sizes, split.weights, {name: tuple(w.shape) for name, w in problem.matrices.items()})
    return Estimates(checkpoint=loaded.name, method=method, smallest_bytes=smallest, n_params=split.weights, points=points)


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
    loaded: LoadedModel, given: str | Path | Statistics | None, config: PackConfig, progress: Progress
) -> Statistics:
    if given is None:
        drawn, plain = within_context(config.calibration, loaded), find_method(config.method).needs_products
        return measure_statistics(loaded, drawn, usable_tokenizer(loaded), progress, plain=plain)
    known = given_statistics(given, loaded, config)
    warn_of_collapse(known)
    return known


def _curve(solver: Solver, sizes: Sequence[int], n_params: int, shapes: dict[str, tuple[int, ...]]) -> tuple[SizeEstimate, ...]:
    """Return what each size would lose: a rounding near each, carried to the size itself along the curve of all of them."""
    found = [solver.estimate(size) for size in sizes]
    points = []
    for n, (size, here) in enumerate(zip(sizes, found, strict=True)):
        beside = found[n - 1] if n else (found[1] if len(found) > 1 else None)
        gap = size - here.file_bytes
        carried = gap if abs(gap) <= FARTHEST * size else 0  # no method fills any size
        kl = here.predicted_kl * math.exp(_slope(here, beside, n_params) * carried)
        below, above = _band(8 * size / n_params)
        points.append(
            SizeEstimate(
                total_bytes=size,
                bpw=8 * size / n_params,
                predicted_kl=kl,
                low=below * kl,
                high=above * kl,
                tensors=tuple(_tensors(here, beside, shapes)),
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


def _band(bits: float) -> tuple[float, float]:
    """Return the smallest and the largest multiple of the predicted KL, by bits a weight."""
    share = min(max((SURE_BITS - bits) / (SURE_BITS - LOW_BITS), 0.0), 1.0)
    below, above = (sure + share * (far - sure) for sure, far in (BAND_BELOW, BAND_ABOVE))
    return below, above


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
