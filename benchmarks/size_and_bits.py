"""Which model is best under a byte budget: many weights of few bits, or few weights of many bits.

    .venv/bin/python benchmarks/size_and_bits.py --widths 64,96,128,192 --budget 250KB --steps 300 --work DIR

Each width of the demo's model is trained with the same compute (steps in inverse proportion to its weights, on one text) and
packed to the same bytes: by quantlab, and by the record pipeline with its published k (record_pipeline.py), which gets the same
statistics. Every file is scored after being read back. What is done is kept in DIR, and a second call goes on from there.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from machine import ROOT, machine
from record_pipeline import RecordPipeline, decode
from record_search import solve_published, with_weights

from quantlab.artifact.reader import open_artifact
from quantlab.budget import parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import write_statistics
from quantlab.errors import BudgetError
from quantlab.evaluation.scoring import score_tokens
from quantlab.jobs.calibrate import measure_statistics, reuse_statistics
from quantlab.jobs.pack import pack
from quantlab.jobs.tokenizers import TOKENIZER_NAME
from quantlab.jobs.train import VAL_NAME, train_to_folder
from quantlab.jobs.train_file import read_train_config
from quantlab.models.loading import load
from quantlab.text.shards import read_shards
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.model import GPT
from quantlab.trainer.training_loop import MODEL_NAME

BASE_WIDTH = 128
"""Width that is trained for the steps that are asked for."""
MLP_MULTIPLE = 6
CALIBRATION_TOKENS = 16384

Row = dict[str, Any]


def changes_of(width: int, steps: int) -> list[str]:
    """Return the changes of preset demo for a width; its steps take the compute of `steps` at `BASE_WIDTH`."""
    own, base = (weights_of(w) for w in (width, BASE_WIDTH))
    shape = {"model.model_dim": width, "model.mlp_hidden": MLP_MULTIPLE * width}
    return [f"{k}={v}" for k, v in (shape | {"steps": max(1, round(steps * base / own)), "max_seconds": 0}).items()]


def weights_of(width: int) -> int:
    """Return the number of weights of preset demo at a width; a training step takes time in proportion to it."""
    changes = [f"model.model_dim={width}", f"model.mlp_hidden={MLP_MULTIPLE * width}"]
    return sum(p.numel() for p in GPT(read_train_config("demo", changes=changes)[0].model).parameters())


def trained(width: int, steps: int, work: Path) -> Path:
    """Return the folder of the trained model of a width; the first width's tokenizer is that of all."""
    out, first = work / str(width), work / TOKENIZER_NAME
    if not (out / MODEL_NAME).exists():
        changes = changes_of(width, steps) + ([f"data.tokenizer={first}"] if first.exists() else [])
        train_to_folder(*read_train_config("demo", changes=changes), out)
    if not first.exists():
        first.write_bytes((out / TOKENIZER_NAME).read_bytes())
    return out


def measure(width: int, steps: int, budget: int, work: Path) -> Row:
    """Return the scores of one width: as floats, packed by quantlab, and by the record pipeline (None where it cannot)."""
    started, folder = perf_counter(), trained(width, steps, work)
    loaded, tokenizer = load(folder / MODEL_NAME), Tokenizer.load(work / TOKENIZER_NAME)
    tokens, counts = read_shards(str(folder / VAL_NAME)), tokenizer.token_bytes()
    stats = folder / "statistics.safetensors"
    write_statistics(stats, measure_statistics(loaded, CalibrationConfig(tokens=CALIBRATION_TOKENS, seq_len=256), tokenizer))
    report = pack(loaded, budget=budget, output=folder / "m.qlab", stats=stats, tokenizer=tokenizer, force=True)
    states = {"float": loaded.state, "quantlab": open_artifact(folder / "m.qlab").tensors()}
    sizes = {"quantlab": report.total_bytes}
    try:
        found = solve_published(RecordPipeline(loaded, reuse_statistics(stats, loaded)), budget)
        states["record pipeline"], sizes["record pipeline"] = decode(found.data), len(found.data)
    except BudgetError:
        pass  # no step of the published grids gives so few bytes, or so many: the row says None
    bpb = {
        name: score_tokens(with_weights(loaded, state), tokens, counts, seq_len=256, bos_id=tokenizer.bos_id).val_bpb
        for name, state in states.items()
    }
    row: Row = {"width": width, "weights": report.n_params, "bits_per_weight": 8 * budget / report.n_params}
    names = ("float", "quantlab", "record pipeline")
    return row | {"bpb": {n: bpb.get(n) for n in names}, "bytes": sizes, "seconds": round(perf_counter() - started, 1)}


def rows_of(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the row of each width; one that an earlier call measured is read."""
    budget = parse_bytes(arguments.budget)
    for width in map(int, arguments.widths.split(",")):
        kept = arguments.work / f"{width}_{budget}_{arguments.steps}.json"
        if not kept.exists():
            kept.write_text(json.dumps(measure(width, arguments.steps, budget, arguments.work)))
        yield json.loads(kept.read_text())


def optimum(rows: list[Row], method: str) -> Row:
    """Return the row with the fewest bits per byte by a method."""
    return min((row for row in rows if row["bpb"][method] is not None), key=lambda row: row["bpb"][method])


def table(rows: list[Row]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| width | weights | bits a weight | float BPB | quantlab BPB | record pipeline BPB |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        scores = [f"{value:.4f}" if value is not None else "-" for value in row["bpb"].values()]
        lines.append(f"| {row['width']} | {row['weights']:,} | {row['bits_per_weight']:.2f} | {' | '.join(scores)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="64,96,128,192", help="multiples of 8")
    parser.add_argument("--budget", default="250KB")
    parser.add_argument("--steps", type=int, default=300, help=f"training steps of width {BASE_WIDTH}")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and finished rows")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/size_and_bits.json")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in rows_of(arguments):
        rows.append(row)
        print(json.dumps(row), flush=True)
    best = {method: optimum(rows, method)["width"] for method in ("float", "quantlab", "record pipeline")}
    about = {"machine": machine(), "budget_bytes": parse_bytes(arguments.budget), "steps": arguments.steps}
    arguments.json.write_text(json.dumps(about | {"best_width": best, "rows": rows}, indent=2) + "\n")
    print(table(rows), f"best widths: {best}", sep="\n\n")


if __name__ == "__main__":
    main()
