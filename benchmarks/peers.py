"""What a user would pick instead: bytes as each peer stores them and after zstd or brotli, KL from the float model, seconds.

    .venv/bin/python benchmarks/peers.py CKPT.pt --tokenizer T.model --text HELD_OUT.jsonl.zst --calib text:TRAIN.jsonl.zst
    .venv/bin/python benchmarks/peers.py --demo demo

The peers are packages that quantlab does not need: pip install nncodec gguf hqq torchao. One that is missing is named and left
out. K-quants with an importance matrix are written by llama.cpp's own library, which --ggml names (ggml.py builds it).
quantlab packs with its defaults at several sizes; "KL x" is a peer's KL over quantlab's at the bytes that are the smallest of
what the peer stores, zstd-19 and brotli-11 of it, where ln KL of quantlab is interpolated between its sizes.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import brotli
import numpy as np
import zstandard
from machine import ROOT, machine
from peer_methods import State, peers
from record_search import Remembering, with_weights

from quantlab.artifact.reader import open_artifact
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import Statistics, write_statistics
from quantlab.evaluation.divergence import measure_divergence
from quantlab.jobs.calibrate import measure_statistics, reuse_statistics
from quantlab.jobs.pack import pack
from quantlab.jobs.tokenizers import TOKENIZER_NAME
from quantlab.jobs.train import VAL_NAME
from quantlab.models.loading import LoadedModel, load, load_tokenizer
from quantlab.models.weights import split_state
from quantlab.text.counted_stream import read_stream
from quantlab.trainer.training_loop import MODEL_NAME

ZSTD_LEVEL = 19
CURVE_BITS = (2.5, 3.4, 4.3, 5.5, 8.0)
"""Bits a weight of quantlab's files."""
MARKERS, COLOURS = "sD^vPX", ("0.45", "tab:olive", "tab:green", "tab:orange", "tab:brown", "tab:blue")

Row = dict[str, Any]


def curve(loaded: LoadedModel, stats: Path, tokenizer: Any, folder: Path, kl_of: Callable[[State], float]) -> Iterator[Row]:
    """Yield a row for each of quantlab's files, by its defaults; seconds without calibration."""
    weights = sum(tensor.numel() for tensor in split_state(loaded.state).matrices.values())
    for bits in CURVE_BITS:
        output = folder / "curve.qlab"
        report = pack(loaded, budget=int(bits * weights / 8), output=output, stats=stats, tokenizer=tokenizer, force=True)
        seconds = report.timings_s["search"] + report.timings_s["verify"]
        size = output.stat().st_size
        yield {"peer": "quantlab", "setting": f"{size:,} bytes", "stored_bytes": size, "bytes": size} | {
            "kl": kl_of(open_artifact(output).tensors()),
            "seconds": seconds,
        }


def peer_rows(loaded: LoadedModel, stats: Statistics, library: Path | None, kl_of: Callable[[State], float]) -> Iterator[Row]:
    """Yield a row for each peer and setting."""
    importance = {name: _mean_squares(stats, name) for name in stats.products}
    for peer in peers(library, importance):
        start = perf_counter()
        state, stored = peer.run(loaded.state)
        seconds = perf_counter() - start
        packed = {
            "zstd_bytes": len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(stored)),
            "brotli_bytes": len(brotli.compress(stored, quality=11, lgwin=24)),
        }
        size = min(len(stored), *packed.values())
        row = {"peer": peer.family, "setting": peer.setting, "stored_bytes": len(stored), **packed, "bytes": size}
        yield row | {"kl": kl_of(state), "seconds": seconds}


def _mean_squares(stats: Statistics, name: str) -> Any:
    H = stats.products[name].H_II
    return np.ascontiguousarray((H.diagonal() if H.ndim == 2 else H).float().numpy())


def with_ratios(rows: list[Row], ours: list[Row]) -> list[Row]:
    """Return the peers' rows with `kl_ratio`: KL over quantlab's at as many bytes, where its curve reaches them."""
    sizes, logs = [row["bytes"] for row in ours], [math.log(row["kl"]) for row in ours]
    return [
        row | ({"kl_ratio": row["kl"] / math.exp(np.interp(row["bytes"], sizes, logs))})
        if sizes and sizes[0] <= row["bytes"] <= sizes[-1]
        else row
        for row in rows
    ]


def line(row: Row) -> str:
    """Return a row as text."""
    ratio = f"KL x {row['kl_ratio']:6.1f}" if "kl_ratio" in row else ""
    sizes = f"{row['stored_bytes']:>10,} {row['bytes']:>10,}"
    return f"{row['peer']:24} {row['setting']:16} {sizes} {row['kl']:.6f} {row['seconds']:8.2f} s  {ratio}"


def plot(about: Row, path: Path) -> None:
    """Draw KL against bytes: quantlab's line, and the points of each peer."""
    from matplotlib.figure import Figure  # not needed for the table
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(7.5, 4.8), dpi=160, layout="constrained")
    axes = figure.subplots()
    families = list(dict.fromkeys(row["peer"] for row in about["rows"]))
    for number, family in enumerate(families):
        points = sorted((row["bytes"] / 1e6, row["kl"]) for row in about["rows"] if row["peer"] == family)
        style = {"marker": MARKERS[number], "color": COLOURS[number], "markersize": 5, "linewidth": 0.6, "linestyle": ":"}
        axes.plot(*zip(*points, strict=True), label=family, **style)
    ours = [(row["bytes"] / 1e6, row["kl"]) for row in about["curve"]]
    axes.plot(
        *zip(*ours, strict=True), "o-", color="tab:red", markersize=4, linewidth=1.8, label="quantlab, its defaults", zorder=3
    )
    axes.set(
        yscale="log",
        xlabel="file size, MB (10⁶ bytes; peers after zstd or brotli)",
        title=f"{about['title']}: every matrix quantized",
    )
    axes.set_ylabel("KL from the float model, nats per token")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def measure(arguments: argparse.Namespace, folder: Path, about: Row) -> None:
    """Measure quantlab's curve, then the peers; after each row the JSON file is written."""
    loaded = load(arguments.checkpoint)
    tokenizer = load_tokenizer(arguments.tokenizer, loaded)
    shards = str(arguments.demo / VAL_NAME) if arguments.demo else None
    tokens = read_stream(arguments.text, shards, tokenizer)[0][: arguments.eval_tokens + 1]
    reference = Remembering(loaded.model)
    place = arguments.stats or folder / "statistics.safetensors"
    if not arguments.stats:
        config = CalibrationConfig(source=arguments.calib, seq_len=arguments.seq_len, tokens=arguments.calib_tokens)
        write_statistics(place, measure_statistics(loaded, config, tokenizer))

    def kl_of(state: State) -> float:
        return measure_divergence(reference, with_weights(loaded, state), tokens, seq_len=arguments.seq_len).kl_mean

    about["tokens"] = len(tokens) - 1
    sections: dict[str, Iterator[Row]] = {
        "rows": peer_rows(loaded, reuse_statistics(place, loaded), arguments.ggml, kl_of),
        "curve": curve(loaded, place, tokenizer, folder, kl_of),
    }
    for name in arguments.parts.split(","):
        about[name] = []
        for row in sections[name]:
            about[name].append(row)
            print(line(row), flush=True)
            about["rows"] = with_ratios(about["rows"], about["curve"])
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(about, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="instead of a checkpoint: the folder of make demo")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--text", type=Path, help="held-out text")
    parser.add_argument("--stats", type=Path, help="statistics from quantlab calibrate, instead of --calib")
    parser.add_argument("--calib", default="self", help="source of quantlab's statistics and of the importance matrix")
    parser.add_argument("--calib-tokens", type=int, default=65536)
    parser.add_argument("--eval-tokens", type=int, default=61440)
    parser.add_argument("--seq-len", type=int, help="default 512, 256 for the demo")
    parser.add_argument("--ggml", type=Path, metavar="LIB", help="libggml-base.so, for K-quants")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="also draw the picture")
    parser.add_argument("--parts", default="rows,curve", help="parts to measure anew, the peers and quantlab's curve")
    parser.add_argument("--draw", action="store_true", help="only draw the picture of the JSON file, and print its rows")
    arguments = parser.parse_args()
    if bool(arguments.demo) == bool(arguments.checkpoint and arguments.tokenizer and arguments.text) and not arguments.draw:
        parser.error("either --demo DIR, or a checkpoint with --tokenizer and --text")
    if arguments.demo:
        arguments.checkpoint, arguments.tokenizer = arguments.demo / MODEL_NAME, arguments.demo / TOKENIZER_NAME
    arguments.seq_len = arguments.seq_len or (256 if arguments.demo else 512)
    arguments.json = arguments.json or ROOT / f"benchmarks/results/peers{'_demo' if arguments.demo else ''}.json"
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.draw:
        about = json.loads(arguments.json.read_text())
        print(*map(line, [*about["rows"], *about["curve"]]), sep="\n")
    else:
        title = "demo model" if arguments.demo else f"{arguments.checkpoint.stem}"
        about = {"machine": machine(), "checkpoint": arguments.checkpoint.name, "title": title, "rows": [], "curve": []}
        if arguments.json.exists() and arguments.parts != "rows,curve":
            known = json.loads(arguments.json.read_text())
            about |= {name: known[name] for name in ("rows", "curve")}
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, Path(folder), about)
    if arguments.plot:
        plot(about, arguments.plot)


if __name__ == "__main__":
    main()
