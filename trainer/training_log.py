"""The log of a training: lines in the challenge's format, which its scripts search, and the same facts as JSON lines."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError
from quantlab.files import write_whole

LOG_NAME = "train.log"
METRICS_NAME = "metrics.jsonl"
BOARD_NAME = "tensorboard"
"""Name of the folder with TensorBoard's files."""


class TrainingLog:
    """Files in one folder, which a resumed training continues; only the main process writes.

    The log keeps every line. Metrics of steps that a resumed training repeats are replaced.
    """

    def __init__(self, folder: Path, *, is_main: bool = True, resume: bool = False, tensorboard: bool = False) -> None:
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("--tensorboard needs the package tensorboard", hint="pip install tensorboard")
        self.folder, self.is_main, self.board = folder, is_main, None
        self._is_resumed = resume
        if not is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for name in (LOG_NAME, METRICS_NAME):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / BOARD_NAME, ignore_errors=True)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / BOARD_NAME))  # type: ignore[no-untyped-call]

    def line(self, text: str) -> None:
        """Append a line to the log."""
        if self.is_main:
            with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def train(self, *, step: int, steps: int, loss: float, seconds: float, tokens_per_second: float, lr: float) -> None:
        """Record a training step."""
        self.line(f"step:{step}/{steps} train_loss:{loss:.4f} {_times(step, seconds)}")
        self._metrics("train", step, loss=loss, seconds=seconds, tokens_per_second=tokens_per_second, lr_multiplier=lr)

    def validation(self, *, step: int, steps: int, loss: float, bpb: float, seconds: float) -> None:
        """Record a validation."""
        self.line(f"step:{step}/{steps} val_loss:{loss:.4f} val_bpb:{bpb:.4f} {_times(step, seconds)}")
        self._metrics("validation", step, loss=loss, bpb=bpb, seconds=seconds)

    def end(self, *, step: int, steps: int, seconds: float, memory: tuple[int, int] | None, timeline: dict[str, Any]) -> None:
        """Record the end of training: its reason, the GPU's peak memory in bytes (allocated, reserved), and the timeline."""
        if step < steps:
            self.line(f"stopping_early: wallclock_cap train_time:{1000 * seconds:.0f}ms step:{step}/{steps}")
        if memory is not None:
            allocated, reserved = (size >> 20 for size in memory)
            self.line(f"peak memory allocated: {allocated} MiB reserved: {reserved} MiB")
        self._metrics("end", step, seconds=seconds, timeline=timeline)
        if self.board is not None:
            self.board.close()  # type: ignore[no-untyped-call]

    def _metrics(self, kind: str, step: int, **fields: Any) -> None:
        if not self.is_main:
            return
        if self._is_resumed:
            self._is_resumed = False
            _drop_metrics_from(step, kind, self.folder / METRICS_NAME)
        with (self.folder / METRICS_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **fields}) + "\n")
        if self.board is not None:
            for name, value in fields.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{kind}/{name}", value, step)  # type: ignore[no-untyped-call]


def last_validation(folder: Path) -> dict[str, float]:
    """Return val_loss and val_bpb of the last validation in the folder's metrics; an empty dict if there was none."""
    path = folder / METRICS_NAME
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    found = [record for record in records if record["kind"] == "validation"]
    return {"val_loss": found[-1]["loss"], "val_bpb": found[-1]["bpb"]} if found else {}


def _drop_metrics_from(step: int, kind: str, path: Path) -> None:
    """Remove the records that a resumed training, whose first record this is, repeats, and a last line that a kill cut off."""
    if not path.exists():
        return
    lines = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
    records = [(json.loads(line), line) for line in lines]
    is_before = [r["step"] < step or (r["step"] == step and r["kind"] == "train" != kind) for r, _ in records]
    write_whole(path, "".join(line for (_, line), keep in zip(records, is_before, strict=True) if keep).encode())


def _times(step: int, seconds: float) -> str:
    return f"train_time:{1000 * seconds:.0f}ms step_avg:{1000 * seconds / max(step, 1):.2f}ms"
