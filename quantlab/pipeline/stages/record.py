"""stage.json: what a finished stage was made from and what it made. Written last, so a folder without it is unfinished."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab import __version__
from quantlab.errors import QuantlabError, ReportError, StageError
from quantlab.files import write_whole
from quantlab.pipeline.stages.hashes import FileHashes
from quantlab.pipeline.stages.stage import Stage
from quantlab.report.fields import read_fields, read_json

RECORD_NAME = "stage.json"
PRODUCER = f"quantlab {__version__}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One file that a stage made."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """A finished stage."""

    stage: str
    key: str
    inputs: dict[str, Any]
    """Options and content hashes that, with the stages before it, make the key."""
    made_from: dict[str, str]
    """By stage before it: digest of what that had made then."""
    outputs: dict[str, Output]
    """By file name: what later stages read."""
    logs: dict[str, Output]
    """By file name: what people read."""
    seconds: float
    """Wall-clock time, killed attempts included as far as they noted it."""
    inside_seconds: float
    """Of these, what the clock counts."""
    attempts: int
    """1 unless it was killed or failed before."""
    finished: str
    """When, ISO 8601 in UTC."""
    producer: str
    python: str
    torch: str

    @property
    def digest(self) -> str:
        """Names the outputs, bit for bit."""
        text = json.dumps({name: asdict(output) for name, output in self.outputs.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Finish the stage in `folder`."""
        write_whole(folder / RECORD_NAME, (json.dumps(asdict(self), indent=2) + "\n").encode())


def read_record(folder: Path) -> StageRecord | None:
    """The record in a stage's folder; None if there is none. StageError if it is damaged."""
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    try:
        return read_fields(StageRecord, read_json(path), str(path))
    except ReportError as error:
        raise damaged(folder, str(error)) from error


def check_outputs(record: StageRecord, stage: Stage, folder: Path, hashes: FileHashes) -> None:
    """Raise StageError unless the record is this stage's and every file is there as it was made."""
    if (record.stage, record.key) != (stage.name, stage.key):
        raise damaged(folder, f"{folder / RECORD_NAME} is of stage {record.stage} with key {record.key[:12]}")
    for name, output in {**record.outputs, **record.logs}.items():
        path = folder / name
        try:
            is_same = path.stat().st_size == output.bytes and hashes.of(path, "stage") == output.sha256
        except (OSError, QuantlabError) as error:
            raise damaged(folder, f"{path} is missing") from error
        if not is_same:
            raise damaged(folder, f"{path} is not what the stage {stage.name} wrote")


def damaged(folder: Path, message: str) -> StageError:
    """The error for a folder that cannot be trusted."""
    return StageError(message, hint=f"remove the folder {folder}, or make it anew with --from {folder.name.partition('-')[0]}")
