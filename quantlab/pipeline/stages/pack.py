"""The stage pack: the model and its statistics into one file within the budget."""

from pathlib import Path
from typing import Any

from quantlab.artifact.container import VERSION
from quantlab.artifact.emit import emit_decoder
from quantlab.budget import code_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.files import write_whole
from quantlab.pipeline.pack import pack
from quantlab.pipeline.stages.calibrate import CalibrateStage
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.options import PackOptions
from quantlab.pipeline.stages.stage import Done, Job, Stage
from quantlab.pipeline.stages.subject import Subject

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
