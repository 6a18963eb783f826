"""The main job: a checkpoint and a number of bytes in, one file that is never over the number out."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.artifact.container import SECTION, Section
from quantlab.artifact.decode import CODES, digest, parse_artifact
from quantlab.artifact.describe import bytes_by_kind
from quantlab.artifact.encode import CodedPayload, encode_artifact, keep
from quantlab.artifact.manifest import WIDTHS, GridTensor, Manifest, RawTensor
from quantlab.artifact.verify import digest_in_fresh_process
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import Statistics
from quantlab.checkpoint.classify import split_state
from quantlab.coding.codecs import CODECS
from quantlab.errors import BudgetError, ConfigError, FormatError
from quantlab.files import write_whole
from quantlab.pipeline.calibrate import measure_statistics, reuse_statistics
from quantlab.pipeline.models import Loaded
from quantlab.pipeline.progress import Progress, silent, stage
from quantlab.report.packing import PackReport, TensorReport
from quantlab.search.frontier import Point
from quantlab.search.measure import METHODS, Method, TensorMeter
from quantlab.search.plan import Planner
from quantlab.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """Options of one packing."""

    budget_bytes: int
    """Artifact and counted code together may not exceed it."""
    method: Method = "gptq"
    """gptq (error feedback on row grids), rtn (round to nearest), or shaped (error feedback, steps that follow sensitivity)."""
    widths: tuple[int, ...] = (5, 6, 8)
    """Code widths in bits that a tensor may take."""
    code: dict[str, int] = field(default_factory=dict)
    """Counted code files and their bytes."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Used unless statistics are given."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not self.widths or any(w not in WIDTHS for w in self.widths):
            raise ConfigError(f"widths must be whole numbers from 2 to 8, got {','.join(map(str, self.widths)) or 'none'}")
        if self.code_bytes >= self.budget_bytes:
            raise BudgetError(f"the code files take {self.code_bytes} bytes, the budget is {self.budget_bytes}")

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


@dataclass(frozen=True, slots=True)
class Plan:
    """What the search decided, and what a reader of the file must get."""

    data: bytes
    """The whole file."""
    points: dict[str, Point]
    """Grid, bytes and distortion of each quantized tensor."""
    tensors_sha256: str
    """Digest of the tensors whose distortion was measured, made without the file."""


def pack(
    loaded: Loaded,
    config: PackConfig,
    output: Path,
    *,
    checkpoint: Path,
    report: Path | None = None,
    tokenizer: Tokenizer | None = None,
    statistics: Path | None = None,
    progress: Progress = silent,
) -> PackReport:
    """Quantize, search, write `output`, read it back in a fresh process, and report (to the file `report` if given).

    Raises:
        BudgetError: the budget is below the smallest reachable size, which it names.
        StatisticsError, CheckpointError, DataError: see the stages.
        FormatError: the written file does not decode to the measured tensors (never seen; nothing is left behind).
    """
    watch = Stopwatch()
    with watch.time("calibrate"):
        if statistics is None:
            stats = measure_statistics(loaded, config.calibration, tokenizer, progress)
        else:
            stats = reuse_statistics(statistics, loaded)
    with watch.time("search"):
        plan = _search(loaded, stats, config, tokenizer, progress)
    trial = output.with_name(f".{output.name}.{os.getpid()}.trial")
    try:
        with watch.time("verify"):
            write_whole(trial, plan.data)
            _verify(trial, plan)
        result = _report(loaded, config, stats, plan, checkpoint, output, watch.timings_s)
        if report is not None:
            write_whole(report, result.to_json())
        trial.replace(output)
    finally:
        trial.unlink(missing_ok=True)
    return result


def _search(loaded: Loaded, stats: Statistics, config: PackConfig, tokenizer: Tokenizer | None, progress: Progress) -> Plan:
    matrices, kept = split_state(loaded.state)
    parameters = {name for name, _ in loaded.model.named_parameters(remove_duplicate=False)}
    # buffers (position tables, masks) are not trained: half precision could break them
    raws = [keep(name, tensor, exact=name not in parameters) for name, tensor in kept.items()]
    about = _about(loaded, stats, config, tokenizer)

    def assemble(grids: list[CodedPayload]) -> bytes:
        return encode_artifact([*grids, *raws], **about)

    meters = [TensorMeter(n, w, stats.uses(n), config.method, config.widths) for n, w in matrices.items()]
    planner = Planner(meters, assemble, stage(progress, "search grids"))
    try:
        data, points = planner.solve(config.budget_bytes - config.code_bytes)
    except BudgetError as error:
        raise _all_in(error, config) from error
    tensors = {m.name: m.reconstruct(p) for m, p in zip(meters, points, strict=True)} | {r.entry.name: r.value for r in raws}
    return Plan(data, dict(zip(matrices, points, strict=True)), digest({n: t.numpy() for n, t in tensors.items()}))


def _about(loaded: Loaded, stats: Statistics, config: PackConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What the manifest says besides its tensors. Neither time nor path: the same input gives the same bytes."""
    origin = {
        "checkpoint": loaded.fingerprint,
        "statistics": stats.fingerprint,
        "method": config.method,
        "widths": list(config.widths),
        "seed": config.calibration.seed,
    }
    known = {"sha256": tokenizer.sha256[:32], "vocab_size": tokenizer.vocab_size} if tokenizer else {}
    return {"model": loaded.config, "tokenizer": known, "origin": origin, "producer": f"quantlab {__version__}"}


def _all_in(error: BudgetError, config: PackConfig) -> BudgetError:
    """The planner's refusal with the counted code added to it."""
    smallest = (error.smallest_bytes or 0) + config.code_bytes
    code = f" (artifact {error.smallest_bytes}, code {config.code_bytes})" if config.code else ""
    return BudgetError(
        f"budget {config.budget_bytes} bytes is below the smallest reachable size, {smallest} bytes{code}",
        smallest_bytes=smallest,
        hint="raise --budget, or allow a narrower width with --widths",
    )


def _verify(trial: Path, plan: Plan) -> None:
    """Raise FormatError unless a fresh process decodes the file to the tensors that were measured."""
    found = digest_in_fresh_process(trial)
    if found != plan.tensors_sha256:
        raise FormatError(f"a fresh process decodes the file to other tensors ({found[:12]}, not {plan.tensors_sha256[:12]})")


def _report(
    loaded: Loaded,
    config: PackConfig,
    stats: Statistics,
    plan: Plan,
    checkpoint: Path,
    output: Path,
    timings_s: dict[str, float],
) -> PackReport:
    data, points = plan.data, plan.points
    manifest, sections = parse_artifact(data)
    n_params = sum(t.numel() for t in loaded.state.values())
    total = len(data) + config.code_bytes
    return PackReport(
        checkpoint=str(checkpoint),
        artifact=str(output),
        method=config.method,
        seed=config.calibration.seed,
        widths=config.widths,
        budget_bytes=config.budget_bytes,
        artifact_bytes=len(data),
        code_bytes=config.code_bytes,
        total_bytes=total,
        slack_bytes=config.budget_bytes - total,
        n_params=n_params,
        bpw=8 * len(data) / n_params,
        distortion=sum(p.distortion for p in points.values()),
        bytes_by_kind=bytes_by_kind(len(data), sections),
        code_files=config.code,
        calibration={**stats.source, "tokens": stats.tokens, "fingerprint": stats.fingerprint},
        tensors_sha256=plan.tensors_sha256,
        timings_s={**timings_s, "total": round(sum(timings_s.values()), 3)},
        tensors=tuple(_tensor_reports(manifest, sections, points)),
        kept=tuple({"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in manifest.tensors if t.kind == "raw"),
        producer=manifest.producer,
    )


def _tensor_reports(manifest: Manifest, sections: Sequence[Section], points: dict[str, Point]) -> Iterator[TensorReport]:
    coded = [t for t in manifest.tensors if not isinstance(t, RawTensor)]
    for tensor, section in zip(coded, sections[CODES:], strict=True):
        side = 2 * tensor.shape[0] if isinstance(tensor, GridTensor) else sum(tensor.shape)
        size = len(section.stored) + SECTION.size + side
        point = points[tensor.name]
        yield TensorReport(
            name=tensor.name,
            shape=tensor.shape,
            width_bits=tensor.bits,
            grid_size=point.size,
            codec=CODECS[section.codec].name,
            bytes=size,
            bpw=8 * size / (tensor.shape[0] * tensor.shape[1]),
            distortion=point.distortion,
        )
