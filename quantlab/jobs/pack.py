"""The main job: a model and a number of bytes in, one file that never exceeds the number out."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab.artifact.emit import emit_decoder as decoder_source
from quantlab.budget import code_bytes, parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import Statistics
from quantlab.errors import ConfigError
from quantlab.files import refuse_existing, write_whole
from quantlab.jobs.packer import PackConfig, pack_with
from quantlab.methods.method import find_method, method_options, methods, options_dict
from quantlab.models.loading import LoadedModel, Source, load, load_tokenizer
from quantlab.progress import Progress, silent
from quantlab.report.pack_report import PackReport, report_path
from quantlab.text.tokenizer import Tokenizer


def pack(
    source: Source,
    *,
    budget: int | str,
    output: str | Path,
    method: str = "trellis",
    stats: str | Path | Statistics | None = None,
    calib: str = "self",
    calib_tokens: int = 65536,
    calib_seq_len: int = 512,
    seed: int = 0,
    tokenizer: str | Path | Tokenizer | None = None,
    with_tokenizer: bool | None = None,
    model: str | None = None,
    code: str | Path | Iterable[str | Path] = (),
    emit_decoder: str | Path | None = None,
    report: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> PackReport:
    """Pack a model into a byte budget: write the artifact and its report, and prove that the file decodes to what was measured.

    A killed packing leaves its finished work in a folder beside the output; with `resume` the next one goes on from there.

    Args:
        source: a checkpoint's path or a module (see `quantlab.load`).
        budget: bytes of artifact and counted code: a number, or a text like "16MB" (10^6) or "16MiB" (2^20).
        output: the .qlab file to write.
        method: trellis, gptq, rtn, or any other folder of quantlab.methods.
        stats: statistics of an earlier `quantlab.calibrate`; without them `calib`, `calib_tokens` and `calib_seq_len` say
            what to measure on.
        seed: seed of everything that is drawn.
        tokenizer: file or folder of a tokenizer, or byte260; its hash is recorded in the artifact. Default: the one in a folder
            of transformers, or that an artifact carries.
        with_tokenizer: whether the artifact carries the tokenizer's files, counted in its bytes, so that evaluation needs no
            other. By default those of a folder of transformers, and of an artifact that carries them; no others, since the
            challenge does not count them.
        model: path/to/file.py:factory of a checkpoint of another architecture; this runs that file.
        code: code files that count towards the budget.
        emit_decoder: Python file to write that decodes the artifact with numpy and torch alone; name it in `code` to count it.
        report: the JSON file of the report; default: M.report.json beside M.qlab.
        device: cpu or cuda, where the model samples, is measured and tuned; None for a GPU where there is one. Rounding is work
            for processors.
        resume: whether to go on where a killed packing with the same options stopped.
        force: whether existing outputs are replaced.
        options: options of the method, such as effort (fast, default or best), states, tune, time_limit (seconds) and widths
            of the trellis.
    Raises:
        BudgetError: the budget is below the smallest reachable size, which it names.
        TimeLimitError: not even the least effort is forecast to keep the time limit; nothing was begun.
        ConfigError: an option is unknown or out of range, there is no such device, or an output exists.
        StatisticsError, CheckpointError, DataError: see `quantlab.calibrate`.
        FormatError: the written file does not decode to the measured tensors; nothing is left behind.
    """
    plan = plan_pack(
        budget=budget,
        output=output,
        method=method,
        options=options,
        stats=stats,
        calibration=CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed),
        code=code,
        emit_decoder=emit_decoder,
        report=report,
        device=device,
        with_tokenizer=with_tokenizer,
        force=force,
    )
    loaded = load(source, model=model)
    known = load_tokenizer(tokenizer, loaded) if tokenizer else None
    return plan.run(loaded, known, resume=resume, progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPlan:
    """A packing whose options and outputs are checked."""

    config: PackConfig
    output: Path
    report: Path
    stats: str | Path | Statistics | None

    def run(
        self, loaded: LoadedModel, tokenizer: Tokenizer | None, *, resume: bool = False, progress: Progress = silent
    ) -> PackReport:
        """Do the work."""
        return pack_with(
            self.config,
            loaded,
            self.output,
            report=self.report,
            tokenizer=tokenizer,
            statistics=self.stats,
            resume=resume,
            progress=progress,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides the packing besides model and tokenizer, as a recorded run keeps it."""
        config = asdict(self.config)
        settings = options_dict(self.config.options)
        rest = {key: value for key, value in config.items() if key != "options"}
        if self.stats is not None:
            del rest["calibration"]  # the statistics bring their own
        return rest | settings


def plan_pack(
    *,
    budget: int | str,
    output: str | Path,
    method: str = "trellis",
    options: Mapping[str, Any] | None = None,
    stats: str | Path | Statistics | None = None,
    calibration: CalibrationConfig | None = None,
    code: str | Path | Iterable[str | Path] = (),
    emit_decoder: str | Path | None = None,
    report: str | Path | None = None,
    device: str | None = None,
    with_tokenizer: bool | None = None,
    force: bool = False,
) -> PackPlan:
    """Check what `pack` was asked for, then write the decoder if one is wanted; the arguments are those of `pack`."""
    output = Path(output)
    report = report_path(output) if report is None else Path(report)
    decoder = None if emit_decoder is None else Path(emit_decoder)
    calibration = calibration or CalibrationConfig()
    chosen, budget_bytes = method_options(method, options or {}), _budget_bytes(budget)
    if stats is not None and calibration != CalibrationConfig(seed=calibration.seed):
        raise ConfigError(
            f"the statistics bring their own calibration, {calibration.tokens} {calibration.source} tokens in "
            f"sequences of {calibration.seq_len} cannot be used with them",
            hint="leave out either the statistics or the options of calibration",
        )
    _check_outputs(output, report, decoder, method, force=force)
    if decoder is not None:
        _write_decoder(decoder, force=force)  # before code is counted: it may be one of the files
    files = [code] if isinstance(code, str | Path) else code
    config = PackConfig(
        budget_bytes=budget_bytes,
        method=method,
        options=chosen,
        code=code_bytes(map(Path, files)),
        calibration=calibration,
        device=device,
        with_tokenizer=with_tokenizer,
    )
    return PackPlan(config=config, output=output, report=report, stats=stats)


def _budget_bytes(budget: int | str) -> int:
    """Return a budget in bytes. ConfigError unless it is a whole number or a text like 16MB."""
    if isinstance(budget, str):
        return parse_bytes(budget)
    if type(budget) is not int:
        raise ConfigError(f"budget must be a whole number of bytes or a text like 16MB, got {budget!r}")
    return budget


def _check_outputs(output: Path, report: Path, decoder: Path | None, method: str, *, force: bool) -> None:
    """Raise ConfigError where an output exists, two are one file, or the method has no decoder."""
    if report.resolve() == output.resolve():
        raise ConfigError(f"artifact and report are both {output}", hint="name another report")
    refuse_existing([output, report], force=force)
    if decoder is None:
        return
    if not find_method(method).has_decoder:
        able = ", ".join(name for name, known in methods().items() if known.has_decoder)
        raise ConfigError(f"the decoder is for artifacts of method {able}, got {method}", hint="leave out the decoder")
    if decoder.resolve() in (output.resolve(), report.resolve()):
        raise ConfigError(f"the decoder and another output are both {decoder}", hint="name another file for the decoder")


def _write_decoder(path: Path, *, force: bool) -> None:
    """Write the decoder, unless the file holds it already, as it does where a killed packing goes on."""
    data = decoder_source()
    if not path.is_file() or path.read_bytes() != data:
        refuse_existing([path], force=force)
        write_whole(path, data)
