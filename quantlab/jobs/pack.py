"""The main job: a checkpoint and a number of bytes in, one file that is never over the number out."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.artifact.container import SECTION, Section
from quantlab.artifact.decode import CODES, digest, parse_artifact
from quantlab.artifact.layout import size_breakdown
from quantlab.artifact.manifest import WIDE, WIDTHS, GridTensor, Manifest, RawTensor
from quantlab.artifact.verify import digest_in_fresh_process
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import Statistics
from quantlab.coding.codecs import CODECS
from quantlab.errors import BudgetError, ConfigError, FormatError, QuantlabError, StatisticsError
from quantlab.files import write_whole
from quantlab.jobs.calibrate import measure_statistics, reuse_statistics
from quantlab.jobs.workspace import Workspace, folder_of
from quantlab.methods.classic.knapsack import Point
from quantlab.methods.method import METHODS, Method, Solution, SolveOptions, Solver
from quantlab.methods.trellis.rounder import RoundingOptions
from quantlab.methods.trellis.tuning import Tuned
from quantlab.models.loading import Loaded
from quantlab.progress import Progress, silent
from quantlab.report.pack_report import PackReport, TensorReport
from quantlab.text.tokenizer import Tokenizer

TUNE_STEPS = 24
NARROWEST = 4  # bits: a trellis needs codes of every remainder by 4, and one more of each towards zero


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """Options of one packing."""

    budget_bytes: int
    """Artifact and counted code together may not exceed it."""
    method: Method = "trellis"
    """trellis (shaped steps, feedback on both sides, entropy-coded trellis), gptq (error feedback on row grids), or rtn (round
    to nearest)."""
    widths: tuple[int, ...] | None = None
    """Code widths in bits that a tensor may take; None: 5, 6, 8, and 16 for the trellis."""
    rounding: RoundingOptions = field(default_factory=RoundingOptions)
    """Of the trellis method."""
    tune_steps: int = TUNE_STEPS
    """Batches on which the kept tensors are tuned after rounding with the trellis method; 0: not at all."""
    time_limit_s: float | None = None
    """Seconds for rounding and tuning with the trellis method: fewer states and steps where these would take longer."""
    code: dict[str, int] = field(default_factory=dict)
    """Counted code files and their bytes."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Used unless statistics are given."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        allowed = (*WIDTHS, WIDE) if self.method == "trellis" else (*WIDTHS,)
        if self.method == "trellis" and max(self.allowed_widths, default=8) < NARROWEST:
            raise ConfigError(f"the widest width of trellis must be {NARROWEST} bits or more, got {max(self.allowed_widths)}")
        if not self.allowed_widths or any(w not in allowed for w in self.allowed_widths):
            got = ",".join(map(str, self.allowed_widths)) or "none"
            raise ConfigError(f"widths of {self.method} must be among {','.join(map(str, allowed))}, got {got}")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise ConfigError(f"time limit must be above 0 seconds, got {self.time_limit_s:g}")
        if self.code_bytes >= self.budget_bytes:
            raise BudgetError(f"the code files take {self.code_bytes} bytes, the budget is {self.budget_bytes}")

    @property
    def allowed_widths(self) -> tuple[int, ...]:
        """Code widths in bits that a tensor may take."""
        return self.widths if self.widths is not None else ((5, 6, 8, WIDE) if self.method == "trellis" else (5, 6, 8))

    @property
    def code_bytes(self) -> int:
        """Bytes of all counted code files."""
        return sum(self.code.values())


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the block's wall-clock time under `name`."""
        start = time.perf_counter()
        yield
        self.timings_s[name] = round(self.timings_s.get(name, 0.0) + time.perf_counter() - start, 3)


def pack(
    loaded: Loaded,
    config: PackConfig,
    output: Path,
    *,
    checkpoint: Path,
    report: Path | None = None,
    tokenizer: Tokenizer | None = None,
    statistics: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> PackReport:
    """Quantize, search, write `output`, read it back in a fresh process, and report (to the file `report` if given).

    A killed run leaves its finished work in a folder beside `output`; with `resume` the next one goes on from there.

    Raises:
        BudgetError: the budget is below the smallest reachable size, which it names.
        StatisticsError, CheckpointError, DataError: see the stages.
        FormatError: the written file does not decode to the measured tensors (never seen; nothing is left behind).
    """
    watch = Stopwatch()
    with watch.time("calibrate"):
        given = None if statistics is None else reuse_statistics(statistics, loaded)
        workspace = Workspace(folder_of(output), _work_key(loaded, config, given), resume=resume)
        plain = config.method != "trellis"
        if given is not None and plain and not given.is_plain:
            raise StatisticsError(f"statistics {statistics} were measured for the trellis alone", hint="run quantlab calibrate")
        stats = given or workspace.statistics(
            lambda: measure_statistics(loaded, config.calibration, tokenizer, progress, plain=plain)
        )
    with watch.time("search"):
        try:
            solution = _solve(loaded, stats, config, tokenizer, workspace, progress)
        except QuantlabError:
            workspace.remove()  # it would fail again: nothing to resume
            raise
    wanted = digest({n: t.numpy() for n, t in solution.tensors.items()})
    trial = output.with_name(f".{output.name}.{os.getpid()}.trial")
    try:
        with watch.time("verify"):
            write_whole(trial, solution.data)
            workspace.remove()  # packing again would give the same file
            _verify(trial, wanted)
        result = _report(loaded, config, stats, solution, wanted, checkpoint, output, watch.timings_s)
        if report is not None:
            write_whole(report, result.to_json())
        trial.replace(output)
    finally:
        trial.unlink(missing_ok=True)
    return result


def _work_key(loaded: Loaded, config: PackConfig, stats: Statistics | None) -> dict[str, Any]:
    """Everything that decides the bytes of the file."""
    origin = asdict(config.calibration) if stats is None else stats.fingerprint
    options = {**asdict(config), "calibration": origin}
    return {"checkpoint": loaded.fingerprint, "options": json.loads(json.dumps(options)), "version": __version__}


def _solve(
    loaded: Loaded,
    stats: Statistics,
    config: PackConfig,
    tokenizer: Tokenizer | None,
    workspace: Workspace,
    progress: Progress,
) -> Solution:
    options = SolveOptions(
        method=config.method,
        widths=config.allowed_widths,
        rounding=config.rounding,
        tune_steps=config.tune_steps,
        time_limit_s=config.time_limit_s,
    )
    solver = Solver(loaded, stats, options, _about(loaded, stats, config, tokenizer), progress, workspace)
    try:
        return solver.solve(config.budget_bytes - config.code_bytes)
    except BudgetError as error:
        raise _all_in(error, config) from error


def _about(loaded: Loaded, stats: Statistics, config: PackConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What the manifest says besides its tensors. Neither time nor path: the same input gives the same bytes."""
    origin = {
        "checkpoint": loaded.fingerprint,
        "statistics": stats.fingerprint,
        "method": config.method,
        "widths": list(config.allowed_widths),
        "seed": config.calibration.seed,
    }
    known = {"sha256": tokenizer.sha256[:32], "vocab_size": tokenizer.vocab_size} if tokenizer else {}
    return {"model": loaded.config, "tokenizer": known, "origin": origin, "producer": f"quantlab {__version__}"}


def _all_in(error: BudgetError, config: PackConfig) -> BudgetError:
    """The planner's refusal with the counted code added to it."""
    if error.smallest_bytes is None:
        return error
    smallest = error.smallest_bytes + config.code_bytes
    code = f" (artifact {error.smallest_bytes}, code {config.code_bytes})" if config.code else ""
    return BudgetError(
        f"budget {config.budget_bytes} bytes is below the smallest reachable size, {smallest} bytes{code}",
        smallest_bytes=smallest,
        hint="raise --budget, or allow a narrower width with --widths",
    )


def _verify(trial: Path, wanted: str) -> None:
    """Raise FormatError unless a fresh process decodes the file to the tensors that were measured."""
    found = digest_in_fresh_process(trial)
    if found != wanted:
        raise FormatError(f"a fresh process decodes the file to other tensors ({found[:12]}, not {wanted[:12]})")


def _report(
    loaded: Loaded,
    config: PackConfig,
    stats: Statistics,
    solution: Solution,
    tensors_sha256: str,
    checkpoint: Path,
    output: Path,
    timings_s: dict[str, float],
) -> PackReport:
    data = solution.data
    manifest, sections = parse_artifact(data)
    n_params = sum(t.numel() for t in loaded.state.values())
    total = len(data) + config.code_bytes
    return PackReport(
        checkpoint=str(checkpoint),
        artifact=str(output),
        method=config.method,
        effort=asdict(solution.effort) if solution.effort else {},
        tuned=_tuned(solution.tuned),
        seed=config.calibration.seed,
        widths=config.allowed_widths,
        budget_bytes=config.budget_bytes,
        artifact_bytes=len(data),
        code_bytes=config.code_bytes,
        total_bytes=total,
        slack_bytes=config.budget_bytes - total,
        n_params=n_params,
        bpw=8 * len(data) / n_params,
        predicted_kl=sum(p.predicted_kl for p in solution.points.values()),
        size_breakdown=size_breakdown(len(data), sections),
        code_files=config.code,
        calibration={**stats.source, "tokens": stats.tokens, "fingerprint": stats.fingerprint},
        tensors_sha256=tensors_sha256,
        timings_s={**timings_s, "total": round(sum(timings_s.values()), 3)},
        tensors=tuple(_tensor_reports(manifest, sections, solution)),
        kept=tuple({"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in manifest.tensors if t.kind == "raw"),
        producer=manifest.producer,
        artifact_sha256=hashlib.sha256(data).hexdigest(),
    )


def _tuned(tuned: Tuned | None) -> dict[str, Any]:
    if tuned is None:
        return {}
    return {"kl_before": tuned.kl_before, "kl_after": tuned.kl_after, "kept": tuned.is_better}


def _tensor_reports(manifest: Manifest, sections: Sequence[Section], solution: Solution) -> Iterator[TensorReport]:
    """Bytes of a tensor: its codes, its steps and classes before their codec, and its line in the section table."""
    grids = iter(sections[CODES:])
    for tensor in manifest.tensors:
        if isinstance(tensor, RawTensor):
            continue
        point = solution.points[tensor.name]
        if isinstance(tensor, GridTensor):
            section = next(grids)
            codec, coded, side = CODECS[section.codec].name, len(section.stored), SECTION.size + 2 * tensor.shape[0]
        else:
            codec, coded, side = "rans", point.bytes, 2 * sum(tensor.shape)
        yield TensorReport(
            name=tensor.name,
            shape=tensor.shape,
            width_bits=tensor.bits,
            grid_size=point.size,
            codec=codec,
            bytes=coded + side,
            bpw=8 * (coded + side) / (tensor.shape[0] * tensor.shape[1]),
            predicted_kl=point.predicted_kl,
            code_bytes=coded,
            points=_other_points(solution.measured.get(tensor.name, []), point, coded + side - point.bytes),
        )


def _other_points(measured: Sequence[Point], chosen: Point, side_bytes: int) -> tuple[tuple[int, float], ...]:
    """What the search measured within an octave of the chosen point's bytes, but for what another point beats in both."""
    near = [p for p in measured if chosen.bytes / 2 < p.bytes < 2 * chosen.bytes and p != chosen]
    kept: list[tuple[int, float]] = []
    for point in sorted(near, key=lambda p: (p.bytes, p.predicted_kl)):
        cost = float(f"{point.predicted_kl:.4g}")  # the report is read by people too
        if not kept or cost < kept[-1][1]:
            kept.append((point.bytes + side_bytes, cost))
    return tuple(kept)
