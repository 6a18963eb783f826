"""A copy of config and results for an experiment tracker, sent when a run has ended: trackio or Weights & Biases."""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from quantlab.errors import ConfigError
from quantlab.runs.record import RunRecord, plain

TRACKERS = ("trackio", "wandb")
"""Packages; both have the same init, log and finish."""
PROJECT = "quantlab"


@dataclass(frozen=True, slots=True)
class Mirror:
    """One tracker's project."""

    tracker: str
    project: str = PROJECT

    def send(self, name: str, record: RunRecord) -> None:
        """Make a run `name` with the record's options as its config and its numbers as its results."""
        module = importlib.import_module(self.tracker)
        module.init(project=self.project, name=name, config=config_of(record))
        module.log(results_of(record))
        module.finish()


def open_mirror(text: str) -> Mirror:
    """The mirror of `trackio`, `wandb`, or one of them with :PROJECT. ConfigError if it is another or not installed."""
    tracker, _, project = text.partition(":")
    if tracker not in TRACKERS:
        raise ConfigError(f"mirror must be one of {', '.join(TRACKERS)}, got {text!r}")
    if importlib.util.find_spec(tracker) is None:
        raise ConfigError(f"mirror {tracker}: the package {tracker} is not installed", hint=f"pip install {tracker}")
    return Mirror(tracker, project or PROJECT)


def config_of(record: RunRecord) -> dict[str, Any]:
    """What went in."""
    names = ("kind", "status", "options", "seeds", "versions", "environment", "git", "checkpoint")
    config: dict[str, Any] = plain({name: getattr(record, name) for name in names})
    return config


def results_of(record: RunRecord) -> dict[str, float]:
    """The numbers that came out."""
    found: dict[str, Any] = {"seconds": record.seconds, **record.metrics}
    if record.packing:
        found |= {"total_bytes": record.packing.total_bytes, "budget_bytes": record.packing.budget_bytes}
        found |= {"bpw": record.packing.bpw, "distortion": record.packing.distortion}
    for evaluation in record.evaluations:
        found |= {"val_bpb": evaluation.val_bpb, "val_loss": evaluation.val_loss}
    return {key: value for key, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)}
