"""The work folder that a killed packing leaves, under attack: what it holds is right or computed anew, never something else."""

import json
import random
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damages import damaged
from harness import Files, Finding, write_files
from neighbours import statistics

from quantlab.errors import QuantlabError
from quantlab.jobs.workspace import Workspace

KEY = {"checkpoint": "c0ffee", "budget_bytes": 1000}
CODES = {b"one": np.arange(-20, 20, dtype=np.int16).reshape(5, 8), b"two": np.full((3, 4), 300, np.int16)}
NOTE = {"states": 8, "tune_steps": 24}
TENSORS = ({"gain": torch.linspace(-1, 1, 7)}, {"kl_before": "0.5"})


class WorkTarget:
    """Statistics, codes, notes and tensors of an unfinished packing."""

    name, weight = "work", 10

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            _ask(Workspace(Path(folder) / "w", KEY, resume=False))
            self.files = {path.name: path.read_bytes() for path in (Path(folder) / "w").iterdir()}

    def draw(self, rng: random.Random) -> Files:
        """Damage files, exchange them, drop them, or leave beside them what a killed process was writing."""
        files = dict(self.files)
        for name in rng.sample(sorted(files), rng.choice((1, 1, 2, 3))):
            kind, other = rng.randrange(8), rng.choice(sorted(self.files))
            if kind < 5:
                files[name] = damaged(rng, files[name], list(self.files.values()))
            elif kind == 5:
                files[name] = self.files[other]
            elif kind == 6:
                del files[name]
            else:
                files[f".{name}.tmp"] = files[name][: rng.randrange(len(files[name]) + 1)]
        return {f"w/{name}": data for name, data in files.items()}

    def check(self, files: Files, folder: Path) -> None:
        """All that is asked for is what was computed, whatever the folder holds."""
        write_files(files, folder)
        with suppress(QuantlabError):
            _ask(Workspace(folder / "w", KEY, resume=True))


def _ask(work: Workspace) -> None:
    """Ask for everything that a packing keeps. Finding where something else comes back."""
    note = work.note("effort", lambda: dict(NOTE))
    codes = {key: work.codes(key, lambda known=known: known) for key, known in CODES.items()}
    tensors, about = work.tensors("tuned", lambda: TENSORS)
    stats: Any = work.statistics(statistics)
    if json.dumps(note, sort_keys=True) != json.dumps(NOTE, sort_keys=True):
        raise Finding(f"the note is {note!r:.200}")
    for key, known in CODES.items():
        if not np.array_equal(codes[key], known):
            raise Finding(f"codes {key!r} are others")
    if about != TENSORS[1] or not torch.equal(tensors["gain"], TENSORS[0]["gain"]):
        raise Finding("tensors are others")
    wanted = statistics()
    for kind in ("products", "lookups", "fishers"):
        for name, use in getattr(wanted, kind).items():
            found = getattr(stats, kind)[name]
            if not (torch.equal(found.H_II, use.H_II) and torch.equal(found.g_O, use.g_O)):
                raise Finding(f"statistics of {name} are others")
    if stats.source != wanted.source or not torch.equal(stats.ids_NT, wanted.ids_NT):
        raise Finding("the tokens of the statistics are others")
