"""Pack with several processes that torchrun started: the main one packs, the others do their share of what it hands out.

Sampling, statistics and tuning are shared. Rounding is work for the processors of one machine, which the main process uses all.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from quantlab.calib.statistics import Statistics
from quantlab.errors import QuantlabError
from quantlab.jobs.calibrate import measure_statistics, within_context
from quantlab.jobs.devices import on_device
from quantlab.jobs.pack_config import PackConfig
from quantlab.methods.method import find_method
from quantlab.methods.tasks import StepProgress, Task
from quantlab.models.loading import LoadedModel, in_eval_mode
from quantlab.report.pack_report import PackReport
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.world import World

PATIENCE = timedelta(days=1)
"""Time that the other processes wait while the main one rounds; torchrun ends them at once if it dies."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measure:
    """The order to share the calibration."""


@dataclass(frozen=True, slots=True)
class End:
    """The order to stop: the packing is done, and this is its report, or it failed with this message."""

    report: PackReport | None = None
    error: str = ""


class MainProcess:
    """The crew as the main process sees it: it gives the orders."""

    def __init__(self, world: World, loaded: LoadedModel) -> None:
        self.world, self._loaded = world, loaded

    def run(self, task: Task[T], progress: StepProgress | None = None) -> T:
        """Run a task in all processes, and return its result."""
        self.world.from_main(task)
        return task.run(self._loaded.model, self.world, progress)

    def begin_to_measure(self) -> World:
        """Let the others begin with the calibration; return the processes that share it."""
        self.world.from_main(Measure())
        return self.world

    def end(self, report: PackReport | None, error: str) -> None:
        """Let the others stop."""
        self.world.from_main(End(report, error))


def assist(world: World, loaded: LoadedModel, config: PackConfig, tokenizer: Tokenizer | None) -> PackReport:
    """Do the share of a process that is not the main one until the packing ends; return its report.

    Raises:
        QuantlabError: the packing failed.
    """
    with in_eval_mode(loaded.model), on_device(loaded.model, world.device):
        while not isinstance(order := world.from_main(None), End):
            if isinstance(order, Measure):
                _measure(world, loaded, config, tokenizer)
            else:
                order.run(loaded.model, world)
    if order.report is None:
        raise QuantlabError(f"the main process of the packing stopped: {order.error}")
    return order.report


def _measure(world: World, loaded: LoadedModel, config: PackConfig, tokenizer: Tokenizer | None) -> Statistics:
    calibration = within_context(config.calibration, loaded)
    plain = find_method(config.method).needs_products
    return measure_statistics(loaded, calibration, tokenizer, plain=plain, keep=config.keep, world=world)
