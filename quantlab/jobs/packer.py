"""Do one packing: measure, solve, write, read the file back in a fresh process, report."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from quantlab import __version__
from quantlab.artifact.decode import digest
from quantlab.artifact.emit import emit_decoder
from quantlab.artifact.verify import digest_in_fresh_process
from quantlab.artifact.writer import EncodedArtifact, Payload, encode_artifact
from quantlab.calib.statistics import Statistics
from quantlab.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    FormatError,
    QuantlabError,
    ShapeError,
    StatisticsError,
)
from quantlab.files import whole_file, write_whole
from quantlab.jobs.calibrate import measure_statistics, reuse_statistics, warn_of_collapse, within_context
from quantlab.jobs.crew import MainProcess
from quantlab.jobs.devices import find_device, on_device
from quantlab.jobs.forecast import Forecast, changes, plan_effort
from quantlab.jobs.held_out import calibration_of, measure_held_out
from quantlab.jobs.pack_config import PackConfig
from quantlab.jobs.packing_report import packing_report, seed_of
from quantlab.jobs.problem import passthrough_of, problem_of, split_model
from quantlab.jobs.tokenizers import usable_tokenizer
from quantlab.jobs.workspace import Workspace, folder_of
from quantlab.methods.method import Solution, find_method, method_options, options_dict
from quantlab.models.loading import LoadedModel, carried_files, in_eval_mode
from quantlab.models.provenance import Provenance
from quantlab.models.weights import Split, stored_names
from quantlab.progress import Progress, silent
from quantlab.report.pack_report import HeldOut, PackReport
from quantlab.text.document_sample import DocumentSample
from quantlab.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_OF_THE_INPUT = (BudgetError, CheckpointError, ConfigError, DataError, ShapeError, StatisticsError)
"""Errors that the same packing would meet again."""
KEPT_DOCUMENTS = 16
"""Documents of training and of calibration that an artifact names; its report names more."""
KEPT_CODES = 8
"""Bytes a weight of codes that the work folder keeps for a resumed packing: four to eight roundings, as many as most take."""


UNLIKELY_BYTES = 1000
"""A smaller budget is a number whose unit was forgotten, or so it is asked."""


def pack_with(
    config: PackConfig,
    loaded: LoadedModel,
    output: Path,
    *,
    report: Path | None = None,
    decoder: Path | None = None,
    tokenizer: Tokenizer | None = None,
    statistics: str | Path | Statistics | None = None,
    resume: bool = False,
    crew: MainProcess | None = None,
    progress: Progress = silent,
) -> PackReport:
    """Do what `pack` does, with options that are checked and a model that is loaded; existing outputs are replaced.

    The work folder goes when the artifact has its name, or with an error that the next attempt would meet again.

    Args:
        crew: the processes that share the work, of which this is the main one; None for this one alone.
    """
    watch = _Stopwatch()
    files = carried_files(loaded, tokenizer, config.with_tokenizer)
    tokenizer = tokenizer or usable_tokenizer(loaded)
    split = split_model(loaded, config.keep)
    bits_by_matrix(config, split)  # a pattern that matches nothing is an error before the work
    check_budget(loaded, split, config, files)
    if statistics is None:
        config = replace(config, calibration=within_context(config.calibration, loaded))
    with in_eval_mode(loaded.model), on_device(loaded.model, find_device(config.device) if crew is None else crew.world.device):
        given = None if statistics is None else given_statistics(statistics, loaded, config)
        most_bytes = KEPT_CODES * sum(tensor.numel() for tensor in loaded.state.values())
        workspace = Workspace(
            folder_of(output), _work_key(loaded, config, given, files, crew), resume=resume, most_bytes=most_bytes
        )
        try:
            with watch.time("forecast"):
                config, forecast = _plan(loaded, config, given, workspace)
            with watch.time("calibrate"):
                stats = _statistics(loaded, config, given, tokenizer, workspace, crew, progress)
            with watch.time("search"):
                about = {**manifest_facts(loaded, stats, config, tokenizer), "files": files}
                solution = _solve(loaded, split, stats, config, about, workspace, crew, progress)
            with watch.time("measure"):
                if given is not None:
                    warn_of_collapse(given)  # otherwise this was said when they were measured
                collapse = stats.collapse
                drawn = config.calibration if given is None else calibration_of(stats, config.calibration)
                values = split.whole(solution.tensors)
                measured = workspace.note(
                    "measured", lambda: asdict(measure_held_out(loaded, values, drawn, tokenizer, collapse, progress))
                )

            def report_of(tensors_sha256: str) -> PackReport:
                found = packing_report(loaded, config, forecast, stats, solution, tensors_sha256, output, watch.timings_s)
                calibration = found.calibration | {"collapse": collapse.to_dict()}
                return replace(found, measured=HeldOut(**measured), calibration=calibration)

            result = _publish(solution, values, output, report_of, report, decoder, watch)
        except QuantlabError as error:
            if _would_come_again(error):
                workspace.remove()
            elif error.hint is None and workspace.folder.is_dir():
                error.hint = "the finished work is kept: go on with --resume"
            raise
    workspace.remove()
    return result


def _would_come_again(error: QuantlabError) -> bool:
    """Return whether the input is to blame, not the disk, the memory or another process."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return isinstance(error, _OF_THE_INPUT) and not any(isinstance(cause, OSError | MemoryError) for cause in causes)


def _publish(
    solution: Solution,
    tensors: dict[str, Tensor],
    output: Path,
    report_of: Callable[[str], PackReport],
    report: Path | None,
    decoder: Path | None,
    watch: "_Stopwatch",
) -> PackReport:
    """Write the file, let a fresh process read it back, then give all outputs their names, the artifact last."""
    wanted = digest({name: tensor.numpy() for name, tensor in tensors.items()})
    with whole_file(output) as file:
        with watch.time("verify"):
            file.write(solution.data)
            file.flush()
            _verify(Path(file.name), wanted)
        result = report_of(wanted)
        if decoder is not None:
            write_whole(decoder, emit_decoder())
        if report is not None:
            write_whole(report, result.to_json())
    return result


class _Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the block's wall-clock time under `name`."""
        start = time.perf_counter()
        yield
        self.timings_s[name] = round(self.timings_s.get(name, 0.0) + time.perf_counter() - start, 3)


def _work_key(
    loaded: LoadedModel,
    config: PackConfig,
    stats: Statistics | None,
    files: Mapping[str, bytes],
    crew: MainProcess | None,
) -> dict[str, Any]:
    """Return everything that decides the bytes of the file."""
    origin = asdict(config.calibration) if stats is None else stats.fingerprint
    options = {**asdict(config), "calibration": origin}
    key = {"checkpoint": loaded.fingerprint, "options": json.loads(json.dumps(options)), "version": __version__}
    key |= {} if crew is None else {"processes": crew.world.size}
    return key | {"files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}}


def given_statistics(statistics: str | Path | Statistics, loaded: LoadedModel, config: PackConfig) -> Statistics:
    """Return statistics of an earlier calibration. StatisticsError unless they are of this model and serve the method."""
    given = reuse_statistics(statistics, loaded, config.keep)
    if find_method(config.method).needs_products and not given.is_plain:
        name = "in memory" if isinstance(statistics, Statistics) else statistics
        raise StatisticsError(
            f"statistics {name} were measured for the trellis alone, method {config.method} needs more",
            hint="run quantlab calibrate, whose statistics serve every method",
        )
    return given


def _plan(
    loaded: LoadedModel, config: PackConfig, given: Statistics | None, workspace: Workspace
) -> tuple[PackConfig, dict[str, Any]]:
    """Return the config with the effort that fits into the time limit, and the forecast; say both in a line each.

    With a time limit a resumed packing keeps its first choice, since that depends on how busy the machine was.
    """

    def plan() -> dict[str, Any]:
        calibration = config.calibration if given is None else None
        plain = find_method(config.method).needs_products
        found = plan_effort(loaded, config.options, calibration, plain=plain, keep=config.keep)
        return {"options": options_dict(found.options), "forecast": asdict(found.forecast)}

    noted = plan() if config.options.limit_s is None else workspace.note("plan", plan)
    chosen = replace(config, options=method_options(config.method, noted["options"]))
    if lighter := changes(config.options, chosen.options):
        _log.info("to keep the time limit: %s", lighter)
    forecast = Forecast(**noted["forecast"])
    _log.info("%s", forecast.line())
    if warning := forecast.warning():
        _log.warning("%s", warning)
    return chosen, {**noted["forecast"], "total_s": round(forecast.total_s, 2)}


def _statistics(
    loaded: LoadedModel,
    config: PackConfig,
    given: Statistics | None,
    tokenizer: Tokenizer | None,
    workspace: Workspace,
    crew: MainProcess | None,
    progress: Progress,
) -> Statistics:
    plain = find_method(config.method).needs_products
    if given is None:
        folder = workspace.folder.parent

        def measure() -> Statistics:
            world = None if crew is None else crew.begin_to_measure()
            return measure_statistics(
                loaded, config.calibration, tokenizer, progress, plain=plain, keep=config.keep, scratch=folder, world=world
            )

        return workspace.statistics(measure)
    return given


def _solve(
    loaded: LoadedModel,
    split: Split,
    stats: Statistics,
    config: PackConfig,
    about: dict[str, Any],
    workspace: Workspace,
    crew: MainProcess | None,
    progress: Progress,
) -> Solution:
    def encode(payloads: Sequence[Payload], *, draft: bool = False) -> EncodedArtifact:
        return encode_artifact(payloads, draft=draft, shapes=split.shapes, aliases=split.aliases, **about)

    more = {"scratch": workspace.folder.parent, "progress": progress, "memo": workspace, "crew": crew}
    problem = problem_of(loaded, split, stats, encode, bits=bits_by_matrix(config, split), **more)
    solver, budget = find_method(config.method).solver(problem, config.options), config.budget_bytes - config.code_bytes
    if (smallest := solver.smallest_bytes()) > budget:
        raise too_small(smallest, config, has_tokenizer=bool(about["files"]))
    solution = solver.solve(budget)
    if len(solution.data) > budget:  # no method may do this; a promise is checked where it is given
        over = f"made a file of {len(solution.data)} bytes for {budget}"
        raise BudgetError(f"method {config.method} {over}: it exceeds the budget", hint="raise the budget")
    return solution


def bits_by_matrix(config: PackConfig, split: Split) -> dict[str, int]:
    """Return the most bits of each matrix that has a limit. ConfigError where a pattern matches no matrix."""
    names = stored_names(config.bits, split.matrices, split.shapes, split.aliases, "bits")
    return {name: config.bits[pattern] for name, pattern in names.items()}


def manifest_facts(loaded: LoadedModel, stats: Statistics, config: PackConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return what the manifest says besides its tensors. Neither time nor path: the same input gives the same bytes."""
    origin = {
        "checkpoint": loaded.fingerprint,
        "statistics": stats.fingerprint,
        "method": config.method,
        "widths": list(config.options.widths),
        "seed": seed_of(stats, config),
    }
    if past := _provenance(loaded, stats).to_dict():
        origin["provenance"] = past
    sha256 = tokenizer.sha256[:32] if tokenizer else loaded.tokenizer_sha256
    known = {"sha256": sha256, "vocab_size": loaded.vocab_size} if sha256 else {}
    return {"model": loaded.config, "tokenizer": known, "origin": origin, "producer": f"quantlab {__version__}"}


def _provenance(loaded: LoadedModel, stats: Statistics) -> Provenance:
    """Return what the artifact says of the model's past: of its documents a few, for they count towards the budget."""

    def few(text: str) -> str:
        return DocumentSample.from_text(text, loaded.name or "model").smallest(KEPT_DOCUMENTS).to_text() if text else ""

    calibration = str(stats.source.get("documents", ""))
    past = replace(loaded.provenance, training=few(loaded.provenance.training), calibration=few(calibration))
    return replace(past, tokenizer_sha256="")  # the manifest has it already


def check_budget(loaded: LoadedModel, split: Split, config: PackConfig, files: Mapping[str, bytes]) -> None:
    """Raise BudgetError, before any work, where a number that lacks its unit is less than the unquantized tensors take."""
    if config.budget_bytes >= UNLIKELY_BYTES:
        return
    least = len(encode_artifact(list(passthrough_of(loaded, split).values()), model=loaded.config, files=dict(files)))
    if least + config.code_bytes > config.budget_bytes:
        raise BudgetError(
            f"budget {config.budget_bytes} bytes is below the smallest reachable size: the file has "
            f"{least + config.code_bytes} bytes without its quantized tensors",
            smallest_bytes=least + config.code_bytes,
            hint=_raise_the_budget(config.budget_bytes, least, has_tokenizer=bool(files)),
        )


def too_small(artifact_bytes: int, config: PackConfig, *, has_tokenizer: bool) -> BudgetError:
    """Return the error of a budget below the smallest artifact."""
    smallest = artifact_bytes + config.code_bytes
    code = f" (artifact {artifact_bytes}, code {config.code_bytes})" if config.code else ""
    return BudgetError(
        f"budget {config.budget_bytes} bytes is below the smallest reachable size, {smallest} bytes{code}",
        smallest_bytes=smallest,
        hint=_raise_the_budget(config.budget_bytes, smallest, has_tokenizer=has_tokenizer),
    )


def _raise_the_budget(budget_bytes: int, smallest: int, *, has_tokenizer: bool) -> str:
    """Return the hint of a budget that is too small; a number that may lack its unit is asked about."""
    units = [
        unit
        for unit, size in (("KB", 10**3), ("MB", 10**6))
        if budget_bytes < UNLIKELY_BYTES and budget_bytes * size >= smallest
    ]
    meant = f"did you mean {budget_bytes}{units[0]}? " if units else ""
    return f"{meant}raise the budget{', or leave out the tokenizer with --no-tokenizer' if has_tokenizer else ''}"


def _verify(trial: Path, wanted: str) -> None:
    """Raise FormatError unless a fresh process decodes the file to the tensors that were measured."""
    found = digest_in_fresh_process(trial)
    if found != wanted:
        raise FormatError(f"a fresh process decodes the file to other tensors ({found[:12]}, not {wanted[:12]})")
