"""Bits a weight that row and column scales save on the model of make demo, against one step for the whole matrix.

    .venv/bin/python benchmarks/water_filling.py demo      # prints a table, saves JSON

With one step everywhere the predicted KL of a matrix is proportional to mean(d_G²) · mean(d_H²). With steps c / (d_G · d_H) all
weights have an equal part in it, and at equal rate the geometric means stand in place of the arithmetic ones. Half the log2 of
the ratio is the saving in bits a weight at equal predicted KL: for rows and for columns. It holds where rates are high; weights
smaller than a step save less.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from machine import ROOT, machine
from torch import Tensor

from quantlab.calib.sources import CalibrationConfig
from quantlab.jobs.calibrate import measure_statistics
from quantlab.jobs.tokenizers import TOKENIZER_NAME
from quantlab.methods.trellis.factors import factors
from quantlab.models.loading import load, load_tokenizer
from quantlab.models.weights import split_state
from quantlab.trainer.training_loop import MODEL_NAME


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder that make demo filled")
    parser.add_argument("--calib-tokens", type=int, default=32768)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/water_filling_demo.json")
    arguments = parser.parse_args()
    loaded = load(arguments.demo / MODEL_NAME)
    tokenizer = load_tokenizer(arguments.demo / TOKENIZER_NAME, loaded)
    config = CalibrationConfig(tokens=arguments.calib_tokens, seq_len=256)
    stats = measure_statistics(loaded, config, tokenizer, plain=False)
    matrices = split_state(loaded.state).matrices
    rows: list[dict[str, Any]] = []
    for name, w_OI in matrices.items():
        parts = factors(name, stats.fisher_uses(name))
        gains = {"row_bits": saved_bits(parts.d_O), "column_bits": saved_bits(parts.d_I)}
        rows.append({"tensor": name, "shape": "x".join(map(str, w_OI.shape)), "weights": w_OI.numel(), **gains})
        print(f"{name:<26} {rows[-1]['shape']:>9}   rows {gains['row_bits']:.3f}   columns {gains['column_bits']:.3f}")
    record = {"machine": machine(), "calibration": {**stats.source, "tokens": stats.tokens}, "rows": rows}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


def saved_bits(d: Tensor) -> float:
    """Return ½ log2 of the arithmetic over the geometric mean of d²."""
    squares = d.double().square()
    return 0.5 * float((squares.mean() / squares.log().mean().exp()).log2())


if __name__ == "__main__":
    main()
