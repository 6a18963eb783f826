"""The stage train: here, or in several processes that are started as torchrun starts them."""

import gc
import json
from dataclasses import asdict

import torch

from quantlab.files import write_whole
from quantlab.pipeline.data import DataConfig
from quantlab.pipeline.stages.child import run_quantlab
from quantlab.pipeline.stages.data import DataStage
from quantlab.pipeline.stages.options import TrainOptions
from quantlab.pipeline.stages.stage import Done, Job, Stage
from quantlab.pipeline.toml_file import to_toml
from quantlab.pipeline.train import TOKENIZER_NAME, train_to_folder
from quantlab.trainer.run import MODEL_NAME
from quantlab.trainer.run_log import LOG_NAME, METRICS_NAME

FILE_NAME = "train.toml"


class TrainStage:
    """A killed attempt goes on from its last checkpoint."""

    def __init__(self, options: TrainOptions, data: DataStage) -> None:
        self.options, self.data = options, data
        inputs = {**options.config.to_dict(), "processes": options.processes}
        self.stage = Stage(name="train", inputs=inputs, after=(data.stage,), work=self._work)

    def _work(self, job: Job) -> Done:
        data = DataConfig(
            train=self.data.training(job.root),
            val=self.data.validation(job.root),
            tokenizer=str(self.data.tokenizer(job.root)),
        )
        file = job.folder / FILE_NAME
        write_whole(file, to_toml({**self.options.config.to_dict(), "data": asdict(data)}).encode())
        if self.options.processes > 1:
            arguments = ["train", str(file), "--out", str(job.folder), "--resume", "--no-run", "--json"]
            seconds = _started(arguments, self.options.processes, job)
        else:
            result = train_to_folder(self.options.config, data, job.folder, resume=True, progress=job.progress)
            seconds = result.elapsed_seconds
            del result
            _free_memory()
        return Done(outputs=[MODEL_NAME, TOKENIZER_NAME], logs=[FILE_NAME, LOG_NAME, METRICS_NAME], inside_seconds=seconds)


def _started(arguments: list[str], processes: int, job: Job) -> float:
    summary = json.loads(run_quantlab(arguments, processes=processes, progress=job.progress, lock=job.lock))
    return float(summary["seconds"])


def _free_memory() -> None:
    """Of the GPU, which the stages to come need."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
