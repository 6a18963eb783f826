"""The stages calibrate, pack, evaluate and report, the model that they are about, and all stages of one pipeline together."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from quantlab.artifact.container import VERSION
from quantlab.artifact.emit import emit_decoder
from quantlab.artifact.reader import open_artifact
from quantlab.budget import code_bytes
from quantlab.calib.statistics import STATISTICS_VERSION, write_statistics
from quantlab.child_process import run_child
from quantlab.errors import ConfigError, QuantlabError
from quantlab.evaluation.evaluation_record import EvaluationRecord, read_evaluation
from quantlab.evaluation.windows import as_mode, stride_of
from quantlab.fields import read_fields
from quantlab.files import write_whole
from quantlab.jobs.calibrate import measure_statistics
from quantlab.jobs.compare import file_facts
from quantlab.jobs.packer import pack_with
from quantlab.methods.method import options_dict
from quantlab.models.loading import LoadedModel, load, load_tokenizer
from quantlab.pipeline.hashes import FileHashes
from quantlab.pipeline.pipeline_config import (
    TRAINING_TOKENS,
    CalibrateOptions,
    EvaluateOptions,
    PackOptions,
    PipelineConfig,
    ReportOptions,
)
from quantlab.pipeline.stage import Stage, StageJob, StageOutcome
from quantlab.pipeline.training_stages import DataStage, TrainStage
from quantlab.report.comparison import compare_entries
from quantlab.report.entry import Entry
from quantlab.report.pack_report import PackReport, read_report
from quantlab.report.tables import render_report
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.training_loop import MODEL_NAME

STATISTICS_NAME = "statistics.safetensors"
ARTIFACT_NAME, REPORT_NAME, DECODER_NAME = "model.qlab", "model.report.json", "decoder.py"
EVALUATION_NAME = "model.eval.json"
TEXT_NAME, PAGE_NAME = "report.txt", "report.html"
TEXT_WIDTH = 140
"""Characters in a line of report.txt."""


class Subject:
    """The float model that is calibrated, packed and scored against: the one that was trained, or a checkpoint."""

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
        """Return the model's file or folder."""
        return self.trained.stage.folder(root) / MODEL_NAME if self.trained else self._checkpoint

    def tokenizer(self, root: Path) -> Path | None:
        """Return the tokenizer's file; None if there is none."""
        if self.trained:
            return self.trained.data.tokenizer(root)
        return Path(self._tokenizer) if self._tokenizer else None

    def load(self, root: Path) -> tuple[LoadedModel, Tokenizer | None]:
        """Return the model and its tokenizer."""
        loaded, path = load(self.checkpoint(root), model=self.spec), self.tokenizer(root)
        return loaded, load_tokenizer(path, loaded) if path else None


class CalibrateStage:
    """Measures statistics once for any budget and method, as `quantlab calibrate` does."""

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
        if options.keep:
            inputs["keep"] = list(options.keep)
        if path:
            inputs["files"] = hashes.of_source(options.source, "calibrate.source")
        after = subject.after
        if options.source == TRAINING_TOKENS and subject.trained:
            after = (subject.trained.data.stage, *after)
        self.stage = Stage(name="calibrate", inputs=inputs, after=after, work=self._work)

    def statistics(self, root: Path) -> Path:
        """Return the file of the statistics."""
        return self.stage.folder(root) / STATISTICS_NAME

    def _work(self, job: StageJob) -> StageOutcome:
        source = self.options.source
        if source == TRAINING_TOKENS and self.subject.trained:
            source = self.subject.trained.data.training(job.root)
        loaded, tokenizer = self.subject.load(job.root)
        config, keep = self.options.config(source), self.options.keep
        stats = measure_statistics(loaded, config, tokenizer, job.progress, keep=keep, scratch=job.folder)
        write_statistics(job.folder / STATISTICS_NAME, stats)
        return StageOutcome(outputs=[STATISTICS_NAME])


class PackStage:
    """Packs the model into the budget; after a kill packing goes on from its finished tensors."""

    def __init__(
        self, options: PackOptions, subject: Subject, calibrated: CalibrateStage | None, seed: int, hashes: FileHashes
    ) -> None:
        """Name everything that decides the artifact.

        Args:
            calibrated: None where options.stats is given.
            seed: seed of the calibration.
        """
        self.options, self.subject, self.calibrated, self.seed = options, subject, calibrated, seed
        config = options.config({}, seed=seed)
        inputs: dict[str, Any] = {
            **subject.inputs,
            "budget_bytes": config.budget_bytes,
            "method": config.method,
            "options": options_dict(config.options),
            "code": hashes.of_files(map(Path, options.code), "pack.code"),
            "emit_decoder": options.emit_decoder,
            "format": VERSION,
        }
        if options.keep or options.bits:
            inputs |= {"keep": list(options.keep), "bits": options.bits}
        if options.stats:
            inputs["stats"] = hashes.of(Path(options.stats), "pack.stats")
        after = (*subject.after, calibrated.stage) if calibrated else subject.after
        self.stage = Stage(name="pack", inputs=inputs, after=after, work=self._work)

    def artifact(self, root: Path) -> Path:
        """Return the artifact's file."""
        return self.stage.folder(root) / ARTIFACT_NAME

    def report(self, root: Path) -> Path:
        """Return the file of the report of packing."""
        return self.stage.folder(root) / REPORT_NAME

    def _work(self, job: StageJob) -> StageOutcome:
        counted, outputs = [Path(path) for path in self.options.code], [ARTIFACT_NAME]
        if self.options.emit_decoder:
            write_whole(job.folder / DECODER_NAME, emit_decoder())
            counted.append(job.folder / DECODER_NAME)
            outputs.append(DECODER_NAME)
        loaded, tokenizer = self.subject.load(job.root)
        pack_with(
            self.options.config(code_bytes(counted), seed=self.seed),
            loaded,
            job.folder / ARTIFACT_NAME,
            report=job.folder / REPORT_NAME,
            tokenizer=tokenizer,
            statistics=self.calibrated.statistics(job.root) if self.calibrated else Path(self.options.stats),
            resume=True,
            progress=job.progress,
        )
        return StageOutcome(outputs=outputs, logs=[REPORT_NAME])


class EvaluateStage:
    """Scores the artifact's file in a process of its own, and compares it with the float model."""

    def __init__(self, options: EvaluateOptions, packed: PackStage, hashes: FileHashes) -> None:
        self.options, self.packed = options, packed
        self.subject: Subject = packed.subject
        trained = self.subject.trained
        mode = as_mode(options.mode)
        self.seq_len = options.seq_len or (trained.options.config.seq_len if trained else None)
        inputs: dict[str, Any] = {
            **self.subject.inputs,
            "mode": mode,
            "seq_len": self.seq_len,
            "stride": stride_of(mode, self.seq_len, options.stride) if self.seq_len else options.stride,
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
        """Return the file of the evaluation's record."""
        return self.stage.folder(root) / EVALUATION_NAME

    def _work(self, job: StageJob) -> StageOutcome:
        module, processes = "quantlab.jobs.evaluate", self.options.processes
        answer = run_child(module, self._request(job.root), processes=processes, progress=job.progress, lock=job.lock)
        record = read_fields(EvaluationRecord, answer, module)
        # the peak of memory is another one in every process, and the same work shall give the same file
        write_whole(job.folder / EVALUATION_NAME, replace(record, memory=None).to_json())
        return StageOutcome(outputs=[EVALUATION_NAME])

    def _request(self, root: Path) -> dict[str, Any]:
        """Return the keyword arguments of `jobs.evaluate.evaluate`."""
        options, trained = self.options, self.subject.trained
        tokens = options.tokens
        if trained and not (options.text or tokens):
            tokens = trained.data.validation(root).removeprefix("tokens:")
        return {
            "target": str(self.packed.artifact(root)),
            "text": options.text or None,
            "tokens": tokens or None,
            "tokenizer": options.tokenizer or str(self.subject.tokenizer(root)),
            "against": str(self.subject.checkpoint(root)),
            "seq_len": self.seq_len,
            "mode": options.mode,
            "stride": options.stride,
            "packed": options.packed,
            "model": self.subject.spec,
        }


class ReportStage:
    """Writes every tensor, every byte and the scores of the artifact for people, as text and as a page for a browser."""

    def __init__(self, options: ReportOptions, packed: PackStage, evaluated: EvaluateStage | None) -> None:
        self.options, self.packed, self.evaluated = options, packed, evaluated
        after = (packed.stage, evaluated.stage) if evaluated else (packed.stage,)
        self.stage = Stage(name="report", inputs={"html": options.html}, after=after, work=self._work)

    def check(self) -> None:
        """Raise ConfigError if the page needs a package that is not installed: before hours are spent."""
        if not self.options.html:
            return
        from quantlab.report.assets import check_packages

        try:
            check_packages()
        except QuantlabError as error:
            raise ConfigError(f"report.html: {error}", hint=f"{error.hint}, or set report.html = false") from error

    def _work(self, job: StageJob) -> StageOutcome:
        packing = read_report(self.packed.report(job.root))
        write_whole(job.folder / TEXT_NAME, report_text(packing).encode())
        if not self.options.html:
            return StageOutcome(outputs=[TEXT_NAME])
        write_whole(job.folder / PAGE_NAME, self._page(job.root, packing).encode())
        return StageOutcome(outputs=[TEXT_NAME, PAGE_NAME])

    def _page(self, root: Path, packing: PackReport) -> str:
        from quantlab.report.page import render_page  # jinja2 is an extra

        artifact = open_artifact(self.packed.artifact(root))
        evaluation = read_evaluation(self.evaluated.evaluation(root)) if self.evaluated else None
        # the page shows the path, and the same work in another folder shall give the same page
        entry = Entry(path=ARTIFACT_NAME, file=file_facts(artifact), report=packing, evaluation=evaluation)
        return render_page(compare_entries([entry]), [entry], [artifact.code_counts()])


def report_text(packing: PackReport) -> str:
    """Return the report as `quantlab pack` prints it; in a notebook too, where rich would show it in place of writing it."""
    text = io.StringIO()
    console = Console(file=text, width=TEXT_WIDTH, highlight=False, markup=False, emoji=False, force_jupyter=False)
    console.print(render_report(packing))
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages of one cell; None where there is none of that kind."""

    train: TrainStage | None
    calibrate: CalibrateStage | None
    pack: PackStage
    evaluate: EvaluateStage | None
    report: ReportStage

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in the order in which they run."""
        data = self.train.data if self.train else None
        parts = (data, self.train, self.calibrate, self.pack, self.evaluate, self.report)
        return tuple(part.stage for part in parts if part is not None)


def build(config: PipelineConfig, hashes: FileHashes) -> Pipeline:
    """Return the stages of `config`, with the keys of everything that decides their results; input files are hashed.

    Raises:
        DataError: an input file is missing.
        ConfigError: options of two stages contradict each other.
    """
    trained = None
    if config.train is not None and config.data is not None:
        trained = TrainStage(config.train, DataStage(config.data, config.train.config, hashes), hashes)
    subject = Subject(config.pack, trained, hashes)
    calibrated = None if config.pack.stats else CalibrateStage(config.calibrate, subject, hashes)
    packed = PackStage(config.pack, subject, calibrated, config.calibrate.seed, hashes)
    evaluated = EvaluateStage(config.evaluate, packed, hashes) if config.is_scored else None
    return Pipeline(trained, calibrated, packed, evaluated, ReportStage(config.report, packed, evaluated))
