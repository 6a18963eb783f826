"""From a pipeline's config to its stages, each with the key of everything that decides its result."""

from dataclasses import dataclass

from quantlab.pipeline.stages.calibrate import CalibrateStage
from quantlab.pipeline.stages.data import DataStage
from quantlab.pipeline.stages.evaluate import EvaluateStage
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.options import PipelineConfig
from quantlab.pipeline.stages.pack import PackStage
from quantlab.pipeline.stages.report import ReportStage
from quantlab.pipeline.stages.stage import Stage
from quantlab.pipeline.stages.subject import Subject
from quantlab.pipeline.stages.train import TrainStage


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
