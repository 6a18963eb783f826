"""Which stages will run and why: what the records in the run folder say about the keys of today."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import StageError
from quantlab.pipeline.stages.attempt import ATTEMPT_NAME
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.record import PRODUCER, StageRecord, check_outputs, read_record
from quantlab.pipeline.stages.stage import Stage


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be done about a stage."""

    stage: Stage
    record: StageRecord | None
    """Of its result if that is up to date; None if the stage will run."""
    why: str
    """Why it will run; empty if it is up to date."""
    is_forced: bool = False
    """Begin anew, whatever is there."""

    @property
    def runs(self) -> bool:
        """Whether there is work to do."""
        return self.record is None


class Planner:
    """Looks at one run folder; `forced`: names of stages to run again, once for each key."""

    def __init__(self, root: Path, hashes: FileHashes, forced: Collection[str] = ()) -> None:
        self.root, self.hashes, self.forced = root, hashes, forced
        self._done: dict[str, StageRecord] = {}
        """By key: what is up to date, or was made by this process."""
        self._others: dict[str, list[StageRecord]] = {}

    def plan(self, stage: Stage, runs_before: Collection[str] = ()) -> Planned:
        """The plan for a stage, where the stages with the keys `runs_before` run before it.

        Raises:
            StageError: its folder is damaged, and is not to be made anew.
        """
        if stage.key in self._done:
            return Planned(stage, self._done[stage.key], "")
        if stage.name in self.forced:
            return Planned(stage, None, f"forced by --from {self.forced_from}", is_forced=True)
        if running := [before.name for before in stage.after if before.key in runs_before]:
            return Planned(stage, None, f"{running[-1]} is new")
        record = read_record(stage.folder(self.root))
        if record is None:
            return Planned(stage, None, self._why_new(stage))
        check_outputs(record, stage, stage.folder(self.root), self.hashes)
        if stale := [name for name, digest in self.made_from(stage).items() if record.made_from.get(name) != digest]:
            return Planned(stage, None, f"made from another result of {stale[0]}")
        self._done[stage.key] = record
        return Planned(stage, record, "")

    @property
    def forced_from(self) -> str:
        """The stage that the user named."""
        return next(iter(self.forced), "")

    def made_from(self, stage: Stage) -> dict[str, str]:
        """Digests of what the stages before it have made; all of them are done."""
        return {before.name: self._done[before.key].digest for before in stage.after}

    def is_done(self, stage: Stage, record: StageRecord) -> None:
        """This process has run the stage."""
        self._done[stage.key] = record

    def _why_new(self, stage: Stage) -> str:
        if (stage.folder(self.root) / ATTEMPT_NAME).exists():
            return "unfinished"
        others = self._records(stage.name)
        if not others:
            return "no result yet"
        nearest = min(others, key=lambda other: len(_changes(other.inputs, stage.inputs)))
        changes = _changes(nearest.inputs, stage.inputs)
        if not changes:
            return "no result yet" if nearest.producer == PRODUCER else f"the last result is of {nearest.producer}"
        return ", ".join(changes[:2]) + (", ..." if len(changes) > 2 else "")

    def _records(self, name: str) -> list[StageRecord]:
        """Finished stages of the same kind, the last one first."""
        if name not in self._others:
            found = []
            for folder in sorted(self.root.glob(f"{name}-*")) if self.root.is_dir() else ():
                try:
                    found.append(read_record(folder))
                except StageError:  # not in this pipeline's way
                    continue
            records = [record for record in found if record]
            self._others[name] = sorted(records, key=lambda record: record.finished, reverse=True)
        return self._others[name]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is another: `budget_bytes 50000, was 60000`."""
    found = []
    for key in dict.fromkeys([*new, *old]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _changes(a, b, f"{prefix}{key}.")
        elif a != b and any(isinstance(value, list | Mapping) for value in (a, b)):
            found.append(f"{prefix}{key} changed")
        elif a != b:
            found.append(f"{prefix}{key} {_shown(b)}, was {_shown(a)}")
    return found


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."
