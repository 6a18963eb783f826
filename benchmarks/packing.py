"""Seconds, rates and memory of packing, stage by stage, for checkpoints of 9, 36 and 135 million parameters.

    .venv/bin/python benchmarks/packing.py --models 9M 36M      # prints a table, saves JSON

Checkpoints are those of make_model.py, packed from the checkpoint alone to 3.6 bits a parameter. Each packing
runs in a process of its own, whose largest memory is recorded, on all processors and, for 9M, on one. Beside the
rate of a stage stands that of plain float32 products of the sizes that it needs, on the same threads in the same process:

- sampling: the linear layers of a step of 128 sequences;
- statistics: the linear layers of 512 tokens and their sums of x xᵀ;
- rounding: G E and E H of every matrix.

The trellis alone is timed on one core: rounding of 64 columns of 8,192 Gaussian weights that hardly feed each other, for each
number of states.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import ROOT, machine
from make_model import make_state

import quantlab
from quantlab.calib.fisher import Use
from quantlab.format_rules import STATES
from quantlab.methods.trellis import TrellisOptions
from quantlab.methods.trellis.first_guess import gaussian_lengths
from quantlab.methods.trellis.rounder import Rounder
from quantlab.models.loading import load
from quantlab.models.weights import split_state
from quantlab.tensor_file import write_safetensors
from quantlab.trainer.model_config import GPTConfig

MODELS = {"9M": (9, 256), "36M": (11, 512), "135M": (11, 1024)}
"""Layers and width; the vocabulary has 8,192 tokens."""
BITS = 3.6
"""Bits a weight of the file: 16 MB for 36 million."""
STAGES = {"sample": "sampling", "measure": "statistics", "round": "rounding", "settle": "rounding", "fill": "rounding"}
"""Stage of this table by the first word of a stage that pack reports; "tune" is tuning."""
TRELLIS_SHAPE = (8192, 64)
"""Rows and columns of the matrix on which the trellis is timed; its columns are the paths, so little feedback is computed."""


class Clock:
    """A Progress that adds up the seconds of each stage, from its first report to that of the next one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", time.perf_counter()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Charge the time since the last report to the stage that was under way."""
        now, word = time.perf_counter(), stage.split()[0]
        name = STAGES.get(word, "tuning" if word == "tune" else "other")
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = name, now


def run_one(model: str, tune: bool, tokens: int) -> dict[str, Any]:
    """Pack one model in this process, and return seconds, rates in GFLOP/s and the peak memory in GB."""
    layers, width = MODELS[model]
    config = GPTConfig(
        vocab_size=8192,
        num_layers=layers,
        model_dim=width,
        num_heads=width // 64,
        num_kv_heads=max(1, width // 128),
        mlp_hidden=4 * width,
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.safetensors"
        write_safetensors(checkpoint, make_state(config, seed=0))
        loaded, clock = load(checkpoint), Clock()
        budget = int(sum(t.numel() for t in loaded.state.values()) * BITS / 8)
        started = time.perf_counter()
        report = quantlab.pack(
            loaded, budget=budget, output=Path(folder) / "m.qlab", tune=tune, calib_tokens=tokens, progress=clock
        )
        seconds = time.perf_counter() - started
    shapes = [tuple(t.shape) for t in split_state(loaded.state).matrices.values()]
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "model": model,
        "processors": len(os.sched_getaffinity(0)),
        "parameters": report.n_params,
        "tokens": tokens,
        "budget_bytes": budget,
        "artifact_bytes": report.artifact_bytes,
        "seconds": seconds,
        "stages_s": {**clock.seconds, "verify": report.timings_s["verify"]},
        "forecast_s": report.forecast["total_s"],
        "roundings": report.rounded_weights / sum(o * i for o, i in shapes),
        "gflops": _rates(shapes, clock.seconds, report.rounded_weights / sum(o * i for o, i in shapes), tokens),
        "peak_gb": peak_gb,
    }


def _rates(shapes: list[tuple[int, ...]], seconds: dict[str, float], roundings: float, tokens: int) -> dict[str, list[float]]:
    """Return [reached, plain product] in GFLOP/s of each stage, counting the products that the stage cannot do without."""
    linear = 2 * sum(o * i for o, i in shapes)  # FLOP a token
    sums = sum(i * i + o * o * (o <= 4096) for o, i in shapes)  # half of 2 · size²: sums are symmetric
    feedback = sum(o * i * (i + o * (o <= 4096)) for o, i in shapes)  # half of a product with a full matrix
    work = {
        "sampling": (tokens * linear, lambda: _linear_rate(shapes, 128)),
        "statistics": (tokens * (2 * linear + sums), lambda: _linear_rate(shapes, 512)),
        "rounding": (roundings * feedback, lambda: _feedback_rate(shapes)),
    }
    return {name: [flop / seconds[name] / 1e9, rate()] for name, (flop, rate) in work.items() if seconds.get(name)}


def _linear_rate(shapes: Iterable[tuple[int, ...]], tokens: int) -> float:
    pairs = [(torch.randn(tokens, i), torch.randn(o, i)) for o, i in shapes]
    flop = 2 * tokens * sum(w.numel() for _, w in pairs)
    return flop / _best(lambda: [torch.nn.functional.linear(x, w) for x, w in pairs]) / 1e9


def _feedback_rate(shapes: Iterable[tuple[int, ...]]) -> float:
    rng = np.random.default_rng(0)
    sizes = sorted(set(shapes))
    matrices = [[rng.standard_normal(s, np.float32) for s in ((o, i), (i, i), (min(o, 4096),) * 2)] for o, i in sizes]
    flop = sum(2 * o * i * (i + o * (o <= 4096)) for o, i in sizes)

    def work() -> None:
        for e_OI, h_II, g_OO in matrices:
            e_OI @ h_II
            if len(g_OO) == len(e_OI):
                g_OO @ e_OI

    return flop / _best(work) / 1e9


def _best(work: Callable[[], object], runs: int = 3) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def trellis_us(states: int) -> float:
    """Return microseconds a weight of the best path through a trellis: prices, search and bookkeeping, without feedback."""
    w_OI = torch.randn(TRELLIS_SHAPE, generator=torch.Generator().manual_seed(0))
    use = Use(torch.eye(TRELLIS_SHAPE[1]), torch.ones(TRELLIS_SHAPE[0]))
    rounder = Rounder("w", w_OI, lambda: (use,), TrellisOptions(states=states), 16)
    level = round(64 * -1.6)  # about 3.6 bits
    classes, lengths = rounder.first_classes(level), gaussian_lengths(states)
    rounder.codes(level, classes, lengths)
    return _best(lambda: rounder.codes(level, classes, lengths)) / w_OI.numel() * 1e6


def _in_process(model: str, tune: bool, tokens: int, processors: int | None) -> dict[str, Any]:
    """Run `run_one` in a fresh process on so many processors."""
    arguments = [sys.executable, __file__, "--one", model, "--tokens", str(tokens), *(() if tune else ("--no-tune",))]
    chosen = sorted(os.sched_getaffinity(0))[:processors]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}  # as the command does
    limit = {"env": environment, "preexec_fn": lambda: os.sched_setaffinity(0, chosen)}
    done = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, **limit)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text."""
    lines = []
    for row in rows:
        lines.append(
            f"{row['model']}, {row['processors']} processors: {row['seconds']:.0f} s (forecast {row['forecast_s']:.0f} s), "
            f"{row['artifact_bytes']:,} of {row['budget_bytes']:,} B, {row['roundings']:.1f} roundings, {row['peak_gb']:.2f} GB"
        )
        for name, seconds in row["stages_s"].items():
            reached = row["gflops"].get(name)
            rate = f"{reached[0]:8.1f} GFLOP/s of {reached[1]:.1f}" if reached else ""
            lines.append(f"  {name:<12}{seconds:8.1f} s{rate}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=65536, help="calibration tokens")
    parser.add_argument("--no-tune", action="store_true")
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has")
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "packing.json")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(arguments.one, not arguments.no_tune, arguments.tokens)))
        return
    jobs: list[tuple[str, int | None]] = [(model, None) for model in arguments.models]
    if "9M" in arguments.models:
        jobs.insert(0, ("9M", 1))
    before = json.loads(arguments.out.read_text())["rows"] if arguments.append else []
    rows = before + [_in_process(model, not arguments.no_tune, arguments.tokens, processors) for model, processors in jobs]
    torch.set_num_threads(1)
    trellis = {str(states): trellis_us(states) for states in STATES}
    record = {"machine": machine(), "rows": rows, "trellis_us_per_weight": trellis}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["machine"]))
    print(table(rows))
    print("trellis, us a weight and core:", ", ".join(f"{s} states {us:.3f}" for s, us in trellis.items()))


if __name__ == "__main__":
    main()
