"""The main job: a model and a number of bytes in, one file that never exceeds the number out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab.artifact.emit import emit_decoder as decoder_source
from quantlab.artifact.emit import is_decoder
from quantlab.budget import code_bytes, parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import Statistics
from quantlab.errors import ConfigError, first_line
from quantlab.jobs.crew import PATIENCE, MainProcess, assist
from quantlab.jobs.input_files import input_files
from quantlab.jobs.pack_config import PackConfig
from quantlab.jobs.packer import pack_with
from quantlab.jobs.workspace import folder_of
from quantlab.methods.method import find_method, method_options, methods, options_dict
from quantlab.models.loading import LoadedModel, Source, load, load_tokenizer
from quantlab.outputs import check_outputs, claimed, is_same_file
from quantlab.progress import Progress, silent
from quantlab.report.pack_report import PackReport, report_path
from quantlab.runs.run_record import RECORD_NAME
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.world import close_world, open_world


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
    keep: str | Iterable[str] = (),
    bits: Mapping[str, int] | None = None,
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

    A packing that is killed, or that runs out of disk or memory, leaves its finished work in a folder beside the output; with
    `resume` the next one goes on from there. The outputs appear together at the end.

    The processes of torchrun share sampling, statistics and tuning; the main one rounds, and writes the outputs. All return the
    report.

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
        keep: patterns of tensors' names, as of a shell (`*.gate.weight`); what they match is stored unquantized.
        bits: pattern of tensors' names and the most bits N that their codes may have: these lie within ±(2**(N-1) - 1), by
            larger steps where the weights need it. The entropy coder takes fewer bits still.
        code: code files that count towards the budget.
        emit_decoder: Python file to write that decodes the artifact with numpy and torch alone; name it in `code` to count it.
        report: the JSON file of the report; default: M.report.json beside M.qlab.
        device: cpu or cuda, where the model samples, is measured and tuned; None for a GPU where there is one. Rounding is work
            for processors.
        resume: whether to go on where a killed packing with the same options stopped; a report that it left without its
            artifact is replaced.
        force: whether existing outputs are replaced, if they are regular files and no inputs.
        options: options of the method, such as effort (fast, default or best), states, tune, time_limit (seconds) and widths
            of the trellis.
    Raises:
        BudgetError: the budget is below the smallest reachable size, which it names.
        TimeLimitError: not even the least effort is forecast to keep the time limit; nothing was begun.
        ConfigError: an option is unknown or out of range, a pattern matches no tensor, there is no such device, or an output
            exists, is an input too, or is being written by another process.
        StatisticsError, CheckpointError, DataError: see `quantlab.calibrate`.
        FormatError: the written file does not decode to the measured tensors; nothing but the work folder is left behind.
    """
    plan = plan_pack(
        budget=budget,
        output=output,
        method=method,
        options=options,
        stats=stats,
        calibration=CalibrationConfig(source=calib, tokens=calib_tokens, seq_len=calib_seq_len, seed=seed),
        keep=keep,
        bits=bits,
        code=code,
        emit_decoder=emit_decoder,
        report=report,
        device=device,
        inputs=input_files(source, stats=stats, tokenizer=tokenizer, model=model, calib=calib),
        resume=resume,
        with_tokenizer=with_tokenizer,
        force=force,
    )
    loaded = load(source, model=model)
    known = load_tokenizer(tokenizer, loaded) if tokenizer else None
    return plan.run(loaded, known, progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOutputs:
    """The files that a packing writes."""

    artifact: Path
    report: Path
    decoder: Path | None = None
    inputs: Sequence[Path] = ()
    """Files that the packing reads, but for counted code."""
    code: Sequence[Path] = ()
    """Counted code; the decoder may be among it."""
    resume: bool = False
    force: bool = False

    def check(self) -> None:
        """Raise ConfigError unless all may be written: before any work, and again when no other process writes them."""
        if not self.artifact.name:  # of which there is no report either
            check_outputs([self.artifact], force=self.force)
        if self.report.name == RECORD_NAME:
            raise ConfigError(f"the report {self.report} has the name of a run's record", hint="name another report")
        others = [self.report] if self.decoder is None else [self.report, self.decoder]
        check_outputs([self.artifact, *others], inputs=self.inputs, force=True)
        check_outputs([self.artifact, self.report], inputs=self.code, force=True)
        check_outputs([self.artifact], force=self.force)
        check_outputs([self.report], force=self.force or self._is_left_over())
        if self.decoder is not None:
            self._check_decoder(self.decoder)

    def _is_left_over(self) -> bool:
        """Return whether the report is what a killed packing wrote just before its artifact."""
        is_own = self.report == report_path(self.artifact) or folder_of(self.artifact).is_dir()
        return self.resume and is_own and not self.artifact.exists()

    def _check_decoder(self, path: Path) -> None:
        """Raise ConfigError if the decoder would replace another file, without force or though it is counted code."""
        old = path.read_bytes() if path.is_file() else None
        if old is not None and not is_decoder(old) and any(is_same_file(path, code) for code in self.code):
            raise ConfigError(f"the decoder would replace the code file {path}", hint="name another file for the decoder")
        check_outputs([path], force=self.force or old == decoder_source())


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPlan:
    """A packing whose options and outputs are checked."""

    config: PackConfig
    outputs: PackOutputs
    stats: str | Path | Statistics | None

    def run(self, loaded: LoadedModel, tokenizer: Tokenizer | None, *, progress: Progress = silent) -> PackReport:
        """Do the work, as the only process that writes these outputs; the others of torchrun help, and get the report too."""
        world = open_world(self.config.device, patience=PATIENCE)
        try:
            if not world.is_main:
                return assist(world, loaded, self.config, tokenizer)
            if world.size == 1:
                return self._pack(loaded, tokenizer, None, progress)
            return self._lead(MainProcess(world, loaded), loaded, tokenizer, progress)
        finally:
            close_world(world)

    def _lead(self, crew: MainProcess, loaded: LoadedModel, tokenizer: Tokenizer | None, progress: Progress) -> PackReport:
        """Pack as the main process of several; the others stop with it."""
        report, error = None, ""
        try:
            report = self._pack(loaded, tokenizer, crew, progress)
            return report
        except BaseException as stopped:
            error = first_line(stopped)
            raise
        finally:
            crew.end(report, error)

    def _pack(
        self, loaded: LoadedModel, tokenizer: Tokenizer | None, crew: MainProcess | None, progress: Progress
    ) -> PackReport:
        outputs = self.outputs
        with claimed([outputs.artifact, outputs.report], outputs.check):
            return pack_with(
                self.config,
                loaded,
                outputs.artifact,
                report=outputs.report,
                decoder=outputs.decoder,
                tokenizer=tokenizer,
                statistics=self.stats,
                resume=outputs.resume,
                crew=crew,
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
    keep: str | Iterable[str] = (),
    bits: Mapping[str, int] | None = None,
    code: str | Path | Iterable[str | Path] = (),
    emit_decoder: str | Path | None = None,
    report: str | Path | None = None,
    device: str | None = None,
    inputs: Sequence[Path] = (),
    resume: bool = False,
    with_tokenizer: bool | None = None,
    force: bool = False,
) -> PackPlan:
    """Check what `pack` was asked for; nothing is written. The arguments are those of `pack`, and `inputs`: what it reads."""
    artifact = Path(output)
    counted = [Path(file) for file in ([code] if isinstance(code, str | Path) else code)]
    decoder = None if emit_decoder is None else Path(emit_decoder)
    if report is None:
        report = report_path(artifact) if artifact.name else artifact
    calibration = calibration or CalibrationConfig()
    chosen, budget_bytes = method_options(method, options or {}), _budget_bytes(budget)
    if stats is not None:
        refuse_calibration(calibration)
    if decoder is not None:
        _check_has_decoder(method)
    outputs = PackOutputs(
        artifact=artifact, report=Path(report), decoder=decoder, inputs=inputs, code=counted, resume=resume, force=force
    )
    outputs.check()
    config = PackConfig(
        budget_bytes=budget_bytes,
        method=method,
        options=chosen,
        keep=(keep,) if isinstance(keep, str) else tuple(keep),
        bits=dict(bits or {}),
        code=_code_bytes(counted, decoder),
        calibration=calibration,
        device=device,
        with_tokenizer=with_tokenizer,
    )
    return PackPlan(config=config, outputs=outputs, stats=stats)


def _budget_bytes(budget: int | str) -> int:
    """Return a budget in bytes. ConfigError unless it is a whole number or a text like 16MB."""
    if isinstance(budget, str):
        return parse_bytes(budget)
    if type(budget) is not int:
        raise ConfigError(f"budget must be a whole number of bytes or a text like 16MB, got {budget!r}")
    return budget


def _check_has_decoder(method: str) -> None:
    if not find_method(method).has_decoder:
        able = ", ".join(name for name, known in methods().items() if known.has_decoder)
        raise ConfigError(f"the decoder is for artifacts of method {able}, got {method}", hint="leave out the decoder")


def _code_bytes(files: Iterable[Path], decoder: Path | None) -> dict[str, int]:
    """Return the bytes of each counted file, by path; the decoder among them may not be written yet."""
    sizes: dict[str, int] = {}
    for file in files:
        is_emitted = decoder is not None and is_same_file(file, decoder)
        sizes |= {str(file): len(decoder_source())} if is_emitted else code_bytes([file])
    return sizes


def refuse_calibration(calibration: CalibrationConfig) -> None:
    """Raise ConfigError if a calibration is asked for beside statistics, which bring their own."""
    if calibration != CalibrationConfig(seed=calibration.seed):
        raise ConfigError(
            f"the statistics bring their own calibration, {calibration.tokens} {calibration.source} tokens in "
            f"sequences of {calibration.seq_len} cannot be used with them",
            hint="leave out either the statistics or the options of calibration",
        )
