"""The stage calibrate: statistics measured once for any number of budgets."""

from pathlib import Path
from typing import Any

from quantlab.calib.statistics import STATISTICS_VERSION, write_statistics
from quantlab.pipeline.calibrate import measure_statistics
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.options import TRAINING_TOKENS, CalibrateOptions
from quantlab.pipeline.stages.stage import Done, Job, Stage
from quantlab.pipeline.stages.subject import Subject

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
