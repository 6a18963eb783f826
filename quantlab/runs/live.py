"""What is at work now: the progress of recorded runs that have no end yet, and the loss curves of trainings.

A record may say anything: of the folder that it names only metrics.jsonl is read, of that only numbers.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import QuantlabError
from quantlab.files import read_regular
from quantlab.printable import printable
from quantlab.progress import duration_text, unit_of
from quantlab.runs.recording import PROGRESS_NAME
from quantlab.runs.run_record import RUNNING
from quantlab.runs.store import Run

METRICS_NAME = "metrics.jsonl"
MOST_METRICS_BYTES = 1 << 24
MOST_PROGRESS_BYTES = 1 << 14
MOST_POINTS = 400
"""Points of a curve that are sent to the page; of more every second, third and so on is left out."""
MOST_LIVE = 20
"""Runs at work that are shown, the newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """One run at work."""

    run: str
    kind: str
    what: str
    """The file or folder that it makes."""
    started: str
    stage: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    left: str = ""
    """Time that the stage will take, in words; empty where that is not known."""
    note: str = ""
    train: tuple[tuple[int, float], ...] = ()
    """Steps and training losses, nats per token."""
    val: tuple[tuple[int, float], ...] = ()
    """Steps and validation losses."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def live_runs(runs: Sequence[Run]) -> list[Live]:
    """Return the runs at work, the newest first."""
    working = [run for run in runs if run.status == RUNNING]
    return [_live(run) for run in reversed(working[-MOST_LIVE:])]


def _live(run: Run) -> Live:
    record = run.record
    made = record.options.get("output") or record.options.get("out") or record.options.get("target") or ""
    about: dict[str, Any] = {"run": run.name[-8:], "kind": record.kind, "what": printable(str(made))[:80]}
    curves = _curves(run)
    return Live(started=printable(record.started), **about, **_progress(run.folder / PROGRESS_NAME), **curves)


def _progress(path: Path) -> dict[str, Any]:
    """Return the state of the work that a run folder holds; empty where there is none that can be read."""
    try:
        raw = json.loads(read_regular(path, QuantlabError, most=MOST_PROGRESS_BYTES))
        done, total, first = (int(raw[key]) for key in ("done", "total", "first"))
        began, now = float(raw["began"]), float(raw["now"])
        stage, note = printable(str(raw["stage"]))[:80], printable(str(raw["note"]))[:80]
    except (QuantlabError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}
    made, seconds = done - first, now - began
    is_known = made > 0 and 0 < seconds < 1e9 and done < total
    since = max(time.time() - now, 0.0)
    left = duration_text(max((total - done) * seconds / made - since, 0.0)) if is_known else ""
    return {"stage": stage, "done": done, "total": total, "unit": unit_of(stage), "left": left, "note": note}


def _curves(run: Run) -> dict[str, Any]:
    path = _metrics_path(run)
    if path is None:
        return {}
    found: dict[str, list[tuple[int, float]]] = {"train": [], "validation": []}
    try:
        lines = read_regular(path, QuantlabError, most=MOST_METRICS_BYTES).splitlines()
    except (QuantlabError, OSError):
        return {}
    for kind, step, loss in _losses(lines):
        found[kind].append((step, loss))
    return {"train": _thinned(found["train"]), "val": _thinned(found["validation"])}


def _metrics_path(run: Run) -> Path | None:
    """Return where a training writes its metrics; None where the record does not tell."""
    out = run.record.options.get("out")
    if not isinstance(out, str) or not run.record.directory or run.record.kind not in ("train", "run"):
        return None
    try:
        folder = run.folder / run.record.directory / Path(out).expanduser()
        stages = (
            sorted(folder.glob(f"train-*/{METRICS_NAME}"), key=lambda p: p.stat().st_mtime) if run.record.kind == "run" else []
        )
        return stages[-1] if stages else folder / METRICS_NAME
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a home that is not known
        return None


def _losses(lines: Sequence[bytes]) -> Iterator[tuple[str, int, float]]:
    """Yield kind, step and loss of each line that has them; the last line may still be being written."""
    for line in lines:
        try:
            raw = json.loads(line)
            kind, step, loss = raw["kind"], raw["step"], raw["loss"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if kind in ("train", "validation") and type(step) is int and isinstance(loss, int | float) and math.isfinite(loss):
            yield kind, step, float(loss)


def _thinned(points: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return at most MOST_POINTS of the points, the last one among them."""
    every = -(-len(points) // MOST_POINTS) or 1
    return tuple(points[(len(points) - 1) % every :: every]) if points else ()
