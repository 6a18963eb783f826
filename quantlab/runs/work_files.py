"""The files of a recorded run where it worked: its artifact, and the folder of its training.

A record names them relative to the directory of the command, and by hash where they may have changed.
"""

from collections.abc import Mapping
from pathlib import Path

from quantlab.errors import ConfigError, QuantlabError
from quantlab.files import hash_file
from quantlab.runs.store import Run


def artifact_of(run: Run) -> Path:
    """Return the artifact of a run, which must be the recorded one.

    Raises:
        ConfigError: the run packed nothing.
        QuantlabError: the artifact is gone or has changed, or the record does not say where the command ran.
    """
    named = run.record.artifact
    if named is None or not named.path.endswith(".qlab"):
        raise ConfigError(f"run {run.name} has no packed model", hint="name a run of quantlab pack or run, or M.qlab")
    path = directory_of(run) / Path(named.path).expanduser()
    if not path.is_file():
        raise QuantlabError(f"run {run.name}: its artifact {path} is gone")
    if hash_file(path) != (named.bytes, named.sha256):
        raise QuantlabError(f"run {run.name}: {path} has changed since", hint="pack again")
    return path


def directory_of(run: Run) -> Path:
    """Return the working directory of a run's command. QuantlabError if the record does not say it."""
    if not run.record.directory:
        raise QuantlabError(f"run {run.name} does not say where it worked", hint="work where the runs were recorded")
    return run.folder / run.record.directory


def training_of(run: Run) -> Path | None:
    """Return the folder of the training of a pipeline's run; None where the run trained nothing."""
    stages = {s["stage"]: s for s in run.record.metrics.get("stages", ()) if isinstance(s, Mapping)}
    if "train" not in stages:
        return None
    return directory_of(run) / str(run.record.options["out"]) / f"train-{stages['train']['key']}"
