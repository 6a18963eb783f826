"""What is calibrated, packed and scored against: the model that was trained, or a checkpoint that was there.

The stage calibrate: statistics measured once for any number of budgets.

The stage pack: the model and its statistics into one file within the budget.

The stage evaluate: a fresh process scores the file that was written, against the float model.

The stage report: the artifact for people, as text and as a page for a browser.

From a pipeline's config to its stages, each with the key of everything that decides its result."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from quantlab.artifact.container import VERSION
from quantlab.artifact.emit import emit_decoder
from quantlab.budget import code_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import STATISTICS_VERSION, write_statistics
from quantlab.child_process import run_quantlab
from quantlab.errors import ConfigError, QuantlabError
from quantlab.evaluation.evaluation_record import read_evaluation, record_path
from quantlab.evaluation.windows import as_mode, stride_of
from quantlab.files import write_whole
from quantlab.jobs.calibrate import measure_statistics
from quantlab.jobs.compare import read_code_counts, read_facts
from quantlab.jobs.pack import pack
from quantlab.models.loading import Loaded, load_checkpoint, load_tokenizer
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.pipeline_config import (
    TRAINING_TOKENS,
    CalibrateOptions,
    EvaluateOptions,
    PackOptions,
    PipelineConfig,
    ReportOptions,
)
from quantlab.pipeline.stage import Done, Job, Stage
from quantlab.pipeline.training_stages import DataStage, TrainStage
from quantlab.report.comparison import compare_entries
from quantlab.report.entry import Entry
from quantlab.report.pack_report import PackReport, read_report
from quantlab.report.tables import render_report
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.training_loop import MODEL_NAME


class Subject:
    """The float model."""

    def __init__(self, options: PackOptions, trained: TrainStage | None, hashes: FileHashes) -> None:
        self.trained = trained
        self.after: tuple[Stage, ...] = (trained.stage,) if trained else ()
        self.spec = options.model or None
        self.inputs: dict[str, Any] = {}
        self._checkpoint, self._tokenizer = Path(options.checkpoint), options.tokenizer
        if trained is None:
            self.inputs["checkpoint"] = hashes.of_checkpoint(self._checkpoint, "pack.checkpoint")
        if options.tokenizer:
            self.inputs["tokenizer"] = hashes.of(Path(options.tokenizer), "pack.tokenizer")
        if options.model:
            file, _, factory = options.model.rpartition(":")
            self.inputs["model"] = [hashes.of(Path(file), "pack.model"), factory]

    def checkpoint(self, root: Path) -> Path:
        """Its file or folder."""
        return self.trained.stage.folder(root) / MODEL_NAME if self.trained else self._checkpoint

    def tokenizer(self, root: Path) -> Path | None:
        """Its tokenizer's file, if there is one."""
        if self.trained:
            return self.trained.data.tokenizer(root)
        return Path(self._tokenizer) if self._tokenizer else None

    def load(self, root: Path) -> tuple[Loaded, Tokenizer | None]:
        """The model and its tokenizer."""
        loaded, path = load_checkpoint(self.checkpoint(root), self.spec), self.tokenizer(root)
        return loaded, load_tokenizer(path, loaded) if path else None


STATISTICS_NAME = "statistics.safetensors"


class CalibrateStage:
    """Measures as `quantlab calibrate` does, for every method of packing."""

    def __init__(self, options: CalibrateOptions, subject: Subject, hashes: FileHashes) -> None:
        self.options, self.subject = options, subject
        kind, _, path = options.source.partition(":")
        inputs: dict[str, Any] = {
            **subject.inputs,
            "source": f"{kind}:{Path(path).name}" if path else kind,  # the name is part of the statistics
            "tokens": options.tokens,
            "seq_len": options.seq_len,
            "temperature": options.temperature,
            "seed": options.seed,
            "format": STATISTICS_VERSION,
        }
        if path:
            inputs["files"] = hashes.of_source(options.source, "calibrate.source")
        after = subject.after
        if options.source == TRAINING_TOKENS and subject.trained:
            after = (subject.trained.data.stage, *after)
        self.stage = Stage(name="calibrate", inputs=inputs, after=after, work=self._work)

    def statistics(self, root: Path) -> Path:
        """The file."""
        return self.stage.folder(root) / STATISTICS_NAME

    def _work(self, job: Job) -> Done:
        source = self.options.source
        if source == TRAINING_TOKENS and self.subject.trained:
            source = self.subject.trained.data.training(job.root)
        loaded, tokenizer = self.subject.load(job.root)
        stats = measure_statistics(loaded, self.options.config(source), tokenizer, job.progress)
        write_statistics(job.folder / STATISTICS_NAME, stats)
        return Done(outputs=[STATISTICS_NAME])


ARTIFACT_NAME, REPORT_NAME, DECODER_NAME = "model.qlab", "model.report.json", "decoder.py"


class PackStage:
    """A killed attempt goes on from its finished tensors."""

    def __init__(
        self, options: PackOptions, subject: Subject, calibrated: CalibrateStage | None, seed: int, hashes: FileHashes
    ) -> None:
        """`calibrated`: None where options.stats is given; `seed`: of the calibration."""
        self.options, self.subject, self.calibrated, self.seed = options, subject, calibrated, seed
        config = options.config({}, CalibrationConfig())
        inputs: dict[str, Any] = {
            **subject.inputs,
            "budget_bytes": config.budget_bytes,
            "method": config.method,
            "states": config.rounding.states,
            "tune_steps": config.tune_steps,
            "time_limit_s": config.time_limit_s,
            "widths": config.allowed_widths,
            "code": hashes.of_files(map(Path, options.code), "pack.code"),
            "emit_decoder": options.emit_decoder,
            "format": VERSION,
        }
        if options.stats:
            inputs["stats"] = hashes.of(Path(options.stats), "pack.stats")
        after = (*subject.after, calibrated.stage) if calibrated else subject.after
        self.stage = Stage(name="pack", inputs=inputs, after=after, work=self._work)

    def artifact(self, root: Path) -> Path:
        """The file."""
        return self.stage.folder(root) / ARTIFACT_NAME

    def report(self, root: Path) -> Path:
        """The report beside it."""
        return self.stage.folder(root) / REPORT_NAME

    def _work(self, job: Job) -> Done:
        counted, outputs = [Path(path) for path in self.options.code], [ARTIFACT_NAME]
        if self.options.emit_decoder:
            write_whole(job.folder / DECODER_NAME, emit_decoder())
            counted.append(job.folder / DECODER_NAME)
            outputs.append(DECODER_NAME)
        loaded, tokenizer = self.subject.load(job.root)
        pack(
            loaded,
            self.options.config(code_bytes(counted), CalibrationConfig(seed=self.seed)),
            job.folder / ARTIFACT_NAME,
            checkpoint=self.subject.checkpoint(job.root),
            report=job.folder / REPORT_NAME,
            tokenizer=tokenizer,
            statistics=self.calibrated.statistics(job.root) if self.calibrated else Path(self.options.stats),
            resume=True,
            progress=job.progress,
        )
        return Done(outputs=outputs, logs=[REPORT_NAME])


EVALUATION_NAME = "model.eval.json"
SEQ_LEN = 1024
"""Where nothing says otherwise, as `quantlab eval` has it."""


class EvaluateStage:
    """Runs what a user would type: quantlab eval model.qlab --against checkpoint --save."""

    def __init__(self, options: EvaluateOptions, packed: PackStage, hashes: FileHashes) -> None:
        self.options, self.packed = options, packed
        self.subject: Subject = packed.subject
        trained = self.subject.trained
        mode = as_mode(options.mode)
        self.seq_len = options.seq_len or (trained.options.config.seq_len if trained else SEQ_LEN)
        inputs: dict[str, Any] = {
            **self.subject.inputs,
            "mode": mode,
            "seq_len": self.seq_len,
            "stride": stride_of(mode, self.seq_len, options.stride),
            "packed": options.packed,
            "processes": options.processes,
        }
        after = (*self.subject.after, packed.stage)
        if options.text:
            inputs["text"] = hashes.of_files([Path(options.text)], "evaluate.text")
        elif options.tokens:
            inputs["tokens"] = hashes.of_shards(options.tokens, "evaluate.tokens")
        elif trained:
            after = (trained.data.stage, *after)
        if options.tokenizer:
            inputs["tokenizer"] = hashes.of(Path(options.tokenizer), "evaluate.tokenizer")
        self.stage = Stage(name="evaluate", inputs=inputs, after=after, work=self._work)

    def evaluation(self, root: Path) -> Path:
        """The record of the evaluation."""
        return self.stage.folder(root) / EVALUATION_NAME

    def _work(self, job: Job) -> Done:
        artifact = self.packed.artifact(job.root)
        target = job.folder / artifact.name  # its record lies beside it
        write_whole(target, artifact.read_bytes())
        run_quantlab(self._arguments(target, job.root), processes=self.options.processes, progress=job.progress, lock=job.lock)
        record_path(target).replace(job.folder / EVALUATION_NAME)
        target.unlink()
        return Done(outputs=[EVALUATION_NAME])

    def _arguments(self, target: Path, root: Path) -> list[str]:
        options, subject = self.options, self.subject
        tokenizer = options.tokenizer or subject.tokenizer(root)
        arguments = ["eval", str(target), "--against", str(subject.checkpoint(root)), "--tokenizer", str(tokenizer)]
        if options.text:
            arguments += ["--text", options.text]
        elif options.tokens or subject.trained:
            validation = "" if subject.trained is None else subject.trained.data.validation(root)
            arguments += ["--tokens", options.tokens or validation.removeprefix("tokens:")]
        arguments += ["--seq-len", str(self.seq_len), "--mode", options.mode]
        arguments += ["--stride", str(options.stride)] if options.stride is not None else []
        arguments += ["--packed" if options.packed else "--decoded"] if options.packed is not None else []
        arguments += ["--model", subject.spec] if subject.spec else []
        return [*arguments, "--save", "--force", "--no-run"]


TEXT_NAME, PAGE_NAME = "report.txt", "report.html"
WIDTH = 140


class ReportStage:
    """Every tensor and byte of the artifact, and what it scored."""

    def __init__(self, options: ReportOptions, packed: PackStage, evaluated: EvaluateStage | None) -> None:
        self.options, self.packed, self.evaluated = options, packed, evaluated
        after = (packed.stage, evaluated.stage) if evaluated else (packed.stage,)
        self.stage = Stage(name="report", inputs={"html": options.html}, after=after, work=self._work)

    def check(self) -> None:
        """Raise ConfigError if the page needs packages that are not installed: before hours are spent."""
        if not self.options.html:
            return
        from quantlab.report.page import check_packages

        try:
            check_packages()
        except QuantlabError as error:
            raise ConfigError(f"report.html: {error}", hint=f"{error.hint}, or set report.html = false") from error

    def _work(self, job: Job) -> Done:
        packing = read_report(self.packed.report(job.root))
        write_whole(job.folder / TEXT_NAME, report_text(packing).encode())
        if not self.options.html:
            return Done(outputs=[TEXT_NAME])
        write_whole(job.folder / PAGE_NAME, self._page(job.root, packing).encode())
        return Done(outputs=[TEXT_NAME, PAGE_NAME])

    def _page(self, root: Path, packing: PackReport) -> str:
        from quantlab.report.page import render_page  # plotly takes a second to load

        artifact = self.packed.artifact(root)
        evaluation = read_evaluation(self.evaluated.evaluation(root)) if self.evaluated else None
        entry = Entry(path=ARTIFACT_NAME, file=read_facts(artifact), report=packing, evaluation=evaluation)
        return render_page(compare_entries([entry]), [entry], [read_code_counts(artifact)])


def report_text(packing: PackReport) -> str:
    """The report as `quantlab pack` prints it; in a notebook too, where rich would show it instead of writing it."""
    text = io.StringIO()
    Console(file=text, width=WIDTH, highlight=False, markup=False, emoji=False, force_jupyter=False).print(
        render_report(packing)
    )
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages of one cell, by what they do; None where there is none."""

    train: TrainStage | None
    calibrate: CalibrateStage | None
    pack: PackStage
    evaluate: EvaluateStage | None
    report: ReportStage

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run."""
        data = self.train.data if self.train else None
        parts = (data, self.train, self.calibrate, self.pack, self.evaluate, self.report)
        return tuple(part.stage for part in parts if part is not None)


def build(config: PipelineConfig, hashes: FileHashes) -> Pipeline:
    """The stages of `config`; files outside of the run folder are read for their hashes.

    Raises:
        DataError: such a file is missing.
        ConfigError: options of two stages do not go together.
    """
    trained = None
    if config.train is not None and config.data is not None:
        trained = TrainStage(config.train, DataStage(config.data, config.train.config, hashes))
    subject = Subject(config.pack, trained, hashes)
    calibrated = None if config.pack.stats else CalibrateStage(config.calibrate, subject, hashes)
    packed = PackStage(config.pack, subject, calibrated, config.calibrate.seed, hashes)
    evaluated = EvaluateStage(config.evaluate, packed, hashes) if config.is_scored else None
    return Pipeline(trained, calibrated, packed, evaluated, ReportStage(config.report, packed, evaluated))
