"""Size and speed of the entropy coder on synthetic codes: Gaussian weights of many scale classes, three kinds of contexts.

`path`: 8-state trellis, scale classes 6 to 27. `mixed`: the same trellis, classes 0 to 40, so some weights bypass the trellis
and some send raw bits. `wide`: no trellis, classes 28 to 60, codes up to thousands of steps, as in an embedding.

    NUMBA_NUM_THREADS=1 .venv/bin/python benchmarks/coder.py      # prints a table, saves JSON

Ideal bytes are the conditional entropy of the symbols given their tables, from the counts of the data itself, and raw bits.
Sizes are split into what the integer tables lose (logarithms, 12-bit frequencies, escapes), the tables as stored, and what the
lanes waste. Times are medians of repeated runs after a warm-up, on one core; every decoded stream is compared with the codes.
"""

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from machine import ROOT, machine

from quantlab.coding import rans, rans_numba
from quantlab.coding.codecs import encode_smallest
from quantlab.coding.contexts import TensorContext, classes_of, raw_bits
from quantlab.coding.frequency_tables import fit_tables, sets_to_bytes
from quantlab.coding.rans import lanes_for
from quantlab.coding.symbols import from_symbols
from quantlab.format_rules import TABLE_CLASSES

KINDS = {"path": (8, 9, TABLE_CLASSES - 1), "mixed": (8, 0, 40), "wide": (1, 28, 60)}  # states, lowest, highest scale class
UNIT_CLASS = 12.5  # scale class whose symbols have a deviation of 1: about 3.5 bits a weight on a path
WIDTHS = {3: 512, 36: 1024}  # columns, by millions of weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[3, 36], help="weights")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/coder.json")
    arguments = parser.parse_args()
    measure("mixed", 1, 1)  # compiles
    rows = [measure(kind, millions, arguments.runs) for millions in arguments.millions for kind in KINDS]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": {**machine(), "numba": version("numba")}, "rows": rows}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["machine"]))
    print(table(rows))


def synthetic(kind: str, millions: int) -> tuple[list[np.ndarray], list[TensorContext]]:
    """Return int16 codes on trellis paths, in matrices twice as tall as wide, and their contexts."""
    states, lowest, highest = KINDS[kind]
    rng = np.random.default_rng(millions)
    width = WIDTHS.get(millions, 512)
    shape = (2 * width, width)
    half = (highest - lowest) // 2
    key = {"states": states, "paths": "blocks"}
    codes, contexts = [], []
    for _ in range(round(millions * 1e6 / (2 * width * width))):
        rows, columns = (rng.integers(lowest, lowest + half + 1, n).astype(np.int16) for n in shape)
        context = TensorContext(shape=shape, **key, rows_O=rows, columns_I=columns - np.int16(lowest), tables=0)
        class_OI = classes_of(context)
        deviation = 2 ** ((class_OI - np.float32(UNIT_CLASS)) / 4)
        limit = 32767 if states == 1 else 16383
        symbols = np.rint(rng.standard_normal(shape, np.float32) * deviation).clip(-limit, limit).astype(np.int16)
        codes.append(from_symbols(symbols, class_OI, **key))
        contexts.append(context)
    return codes, contexts


def measure(kind: str, millions: int, runs: int) -> dict[str, Any]:
    """Return sizes in bytes, and speeds in millions of weights a second."""
    codes, contexts = synthetic(kind, millions)
    counts = sum(rans_numba.histogram(code, context) for code, context in zip(codes, contexts, strict=True))
    sets = [fit_tables(counts)]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    raw_bytes = sum(raw_bits(context) for context in contexts) / 8
    ideal = -(counts * np.log2(np.where(counts > 0, share, 1))).sum() / 8 + raw_bytes
    coded = (counts * sets[0].lengths).sum() / 8 + raw_bytes
    lanes = lanes_for(coded)
    stream = rans_numba.encode(codes, contexts, sets, lanes)
    weights = int(counts.sum())

    def speed(call: Callable[[], list[np.ndarray] | bytes]) -> list[float]:
        return _speed(call, codes, weights, runs)

    return {
        "kind": kind,
        "weights": weights,
        "largest_code": max(int(np.abs(code).max()) for code in codes),
        "raw_bits_per_weight": raw_bytes * 8 / weights,
        "bits_per_weight": ideal * 8 / weights,
        "lanes": lanes,
        "ideal_bytes": round(ideal),
        "integer_table_loss_bytes": round(coded - ideal),
        "stored_table_bytes": len(encode_smallest(sets_to_bytes(sets))[1]),
        "lane_waste_bytes": round(len(stream) - coded),
        "stream_bytes": len(stream),
        "numpy_decode": speed(lambda: rans.decode(stream, contexts, sets, lanes)),
        "numba_decode": speed(lambda: rans_numba.decode(stream, contexts, sets, lanes)),
        "numba_encode": speed(lambda: rans_numba.encode(codes, contexts, sets, lanes)),
    }


def _speed(call: Callable[[], Any], codes: list[np.ndarray], weights: int, runs: int) -> list[float]:
    """Return median, slowest and fastest run, in millions of weights a second."""
    speeds = []
    for _ in range(runs):
        start = perf_counter()
        result = call()
        speeds.append(weights / (perf_counter() - start) / 1e6)
        if not isinstance(result, bytes) and not all(map(np.array_equal, result, codes)):
            raise SystemExit("error: decoded codes differ from those encoded")
    return [round(value, 1) for value in (median(speeds), min(speeds), max(speeds))]


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one line for each kind and size; speeds as median (slowest to fastest)."""
    lines = [
        "| contexts | weights | largest code | bits/weight | raw | ideal bytes | stream bytes | + tables | lost "
        "| numpy M/s | numba M/s | encode M/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        total = row["stream_bytes"] + row["stored_table_bytes"]
        speeds = ("{} ({} to {})".format(*row[name]) for name in ("numpy_decode", "numba_decode", "numba_encode"))
        lines.append(
            f"| {row['kind']} | {row['weights']:,} | {row['largest_code']} | {row['bits_per_weight']:.3f} | "
            f"{row['raw_bits_per_weight']:.3f} | {row['ideal_bytes']:,} | {row['stream_bytes']:,} | "
            f"{row['stored_table_bytes']:,} | {100 * (total / row['ideal_bytes'] - 1):.3f} % | {' | '.join(speeds)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
