"""Distance of scalar and trellis rounding from the rate-distortion bound, on Gaussian weights with the packer's own coder.

    .venv/bin/python benchmarks/gaussian_source.py      # prints a table, saves JSON; a minute

One matrix of N(0, 1) goes through the packer's rounding and into a whole .qlab file; the rate is that file in bits a weight.
With unit statistics nothing is fed back and all steps are equal, so what is left is the code. The bound is the rate-distortion
function R(D) = ½ log2(1 / D). At high rates the mean squared error in squared steps depends on the code alone.

Each trellis is measured on both orders of paths: `rows` are column paths, `block_rows` paths through blocks, which are shorter.
"""

import argparse
import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import ROOT, machine

from quantlab.artifact.writer import TrellisPayload, encode_artifact
from quantlab.calib.fisher import Use
from quantlab.format_rules import LOG_STEPS, STATES
from quantlab.methods.trellis import TrellisOptions
from quantlab.methods.trellis.first_guess import gaussian_lengths
from quantlab.methods.trellis.rounder import Rounder, weights
from quantlab.methods.trellis.slope_search import LEAST_PASSES, EntropyModel

SHAPE = (1024, 512)
RATES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
TRELLIS_LOG2 = 1.0
"""At equal rate the union grid of a trellis has half the step of a scalar grid: log2 of the ratio."""

Row = dict[str, Any]


def measure(states: int, w_OI: torch.Tensor, *, in_blocks: bool = False) -> Iterator[Row]:
    """Yield a row for each of RATES, which the files have about; a full G, though without feedback, makes paths of blocks."""
    O, I = w_OI.shape
    unit = Use(torch.eye(I), torch.eye(O) if in_blocks else torch.ones(O))
    rounder = Rounder("w", w_OI, lambda: (unit,), TrellisOptions(states=states), bits=16)
    for rate in RATES:
        log2_step = math.log2(math.sqrt(2 * math.pi * math.e)) - rate - (TRELLIS_LOG2 if states > 1 else 0.0)
        level = round(LOG_STEPS * log2_step)
        payload = settled(rounder, level)
        bits = 8 * len(encode_artifact([payload])) / w_OI.numel()
        error_OI = w_OI.numpy() - weights(payload)
        mse = float(np.square(error_OI, dtype=np.float64).mean())
        yield {
            "states": states,
            "target_bits": rate,
            "rate_bits": bits,
            "mse": mse,
            "gap_bits": bits - 0.5 * math.log2(1 / mse),
            "error_in_squared_steps": mse / 4 ** (level / LOG_STEPS),
        }


def settled(rounder: Rounder, level: int) -> TrellisPayload:
    """Return the codes at a log-step index after as many passes as the packer takes for tables and scale classes to settle."""
    classes, bits = rounder.first_classes(level), gaussian_lengths(rounder.options.states)
    for _ in range(LEAST_PASSES):
        payload = rounder.payload(level, classes, rounder.codes(level, classes, bits))
        model = EntropyModel.of([payload])
        (classes,), bits = model.classes, model.bits
    return payload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gaussian_source.json")
    arguments = parser.parse_args()
    w_OI = torch.from_numpy(np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32))
    lists: dict[str, list[Row]] = {"rows": [], "block_rows": []}
    for name, rows in lists.items():
        print(f"{name}\nstates   bits    error in squared steps   bits above the bound")
        for states in STATES if name == "rows" else STATES[1:]:
            for row in measure(states, w_OI, in_blocks=name == "block_rows"):
                rows.append(row)
                print(f"{states:>6}  {row['rate_bits']:5.3f}  {row['error_in_squared_steps']:>22.4f}  {row['gap_bits']:>20.4f}")
    record = {"machine": {**machine(), "numba": version("numba")}, "shape": SHAPE, **lists}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
