"""The stage evaluate: a fresh process scores the file that was written, against the float model."""

from pathlib import Path
from typing import Any

from quantlab.files import write_whole
from quantlab.pipeline.stages.child import run_quantlab
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.options import EvaluateOptions
from quantlab.pipeline.stages.pack import PackStage
from quantlab.pipeline.stages.stage import Done, Job, Stage
from quantlab.pipeline.stages.subject import Subject
from quantlab.report.evaluation import record_path
from quantlab.trainer.windows import as_mode, stride_of

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
