"""KL from the float model at equal bytes: the record pipeline, then quantlab with the steps of its method added one by one.

    .venv/bin/python benchmarks/rate_distortion.py CKPT.pt --tokenizer T.model --text HELD_OUT.jsonl.zst \
        --calib text:CALIB.jsonl.zst --budgets 1367KB --curve-budgets 1MB,1.2MB,1.4MB,1.6MB --calibration
    .venv/bin/python benchmarks/rate_distortion.py --demo demo      # the model of make demo, trained if it is not there

Every row is a file of at most the budget, scored after being read back from disk. Intervals are 95 %, from standard errors
over sequences. "of row above" is the ratio of both KL, paired by sequence. "pack s" begins at ready statistics (the best k:
at the published one), "unpack s" is the median of three reads after one to warm up; the record pipeline's k is chosen on
tokens of the calibration source that its statistics leave out.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from machine import ROOT, machine
from numpy.typing import NDArray
from record_pipeline import CORRECTIONS, Packed, RecordPipeline, decode
from record_search import held_out_tokens, solve_best, solve_published, with_weights
from torch import Tensor, nn

from quantlab.artifact.reader import open_artifact
from quantlab.budget import parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import write_statistics
from quantlab.evaluation.divergence import Z95, measure_divergence
from quantlab.evaluation.scoring import Score, score_tokens
from quantlab.jobs.calibrate import measure_statistics, reuse_statistics
from quantlab.jobs.pack import pack
from quantlab.jobs.tokenizers import TOKENIZER_NAME
from quantlab.jobs.train import VAL_NAME, train_to_folder
from quantlab.jobs.train_file import read_train_config
from quantlab.models.loading import LoadedModel, load, load_tokenizer
from quantlab.text.counted_stream import read_stream
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.training_loop import MODEL_NAME

PUBLISHED, BEST, GPTQ, DEFAULT = 1, 2, 3, 9
PLAIN_PUBLISHED, PLAIN_BEST = 11, 12
RECORD = {
    PLAIN_PUBLISHED: "record pipeline without LQER, published k",
    PLAIN_BEST: "record pipeline without LQER, best k by group",
    PUBLISHED: "record pipeline, published k",
    BEST: "record pipeline, best k by group",
}
PLAIN = {"states": 1, "row_scales": False, "column_scales": False, "row_feedback": False, "tune_steps": 0}
PACKS: dict[int, tuple[str, dict[str, Any]]] = {
    GPTQ: ("gptq: row grids, byte codecs", {"method": "gptq"}),
    4: ("trellis method: one slope, rANS", PLAIN),
    5: ("+ column scales", PLAIN | {"column_scales": True}),
    6: ("+ row scales", {"states": 1, "row_feedback": False, "tune_steps": 0}),
    7: ("+ row feedback", {"states": 1, "tune_steps": 0}),
    8: ("+ trellis", {"tune_steps": 0}),
    DEFAULT: ("+ tuning (the default)", {}),
    10: ("the default in 8 bits", {"widths": (5, 6, 8)}),
}
"""Options of `quantlab.pack` by row of the table."""
LINES = {
    PLAIN_PUBLISHED: ("record pipeline without LQER, published k", "0.7", "x"),
    PLAIN_BEST: ("record pipeline without LQER, best k by group", "0.4", "+"),
    PUBLISHED: ("record pipeline, published k", "0.6", "s"),
    BEST: ("record pipeline, best k by group", "0.25", "D"),
    GPTQ: ("quantlab --method gptq", "tab:blue", "o"),
    DEFAULT: ("quantlab (trellis)", "tab:red", "o"),
}
"""Lines of the figure: label, colour and marker."""
VERSUS = {"rows": "of row above", "curves": "of row above", "calibration": "of first row"}
READS = 3
BATCH = 16

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """One model, the data that its files are made from, and the tokens that they are scored on."""

    checkpoint: Path
    loaded: LoadedModel
    tokenizer: Tokenizer
    tokens: NDArray[Any]
    """Held-out ids, [N]."""
    calibration: CalibrationConfig
    stats: Path
    """Statistics measured with `calibration`."""
    folder: Path
    """Folder for temporary files."""
    float_score: Score

    def score(self, state: dict[str, Tensor]) -> Row:
        """Return KL and BPB gap with their intervals, and flips, of a model with these weights; `kl_N`: KL of each sequence."""
        model = with_weights(self.loaded, state)
        result = measure_divergence(self.loaded.model, model, self.tokens, seq_len=self.calibration.seq_len)
        kl_N = sequence_kl(self.loaded.model, model, self.tokens, self.calibration.seq_len)
        half = Z95 * kl_N.std(ddof=1) / math.sqrt(len(kl_N))
        bpb = self.float_score.tokens / (math.log(2) * self.float_score.bytes)
        gap = (result.loss_difference, result.loss_difference_low, result.loss_difference_high)
        return {
            "kl_mean": result.kl_mean,
            "kl_low": result.kl_mean - half,
            "kl_high": result.kl_mean + half,
            "kl_q99": result.kl_q99,
            **dict(zip(("bpb_gap", "bpb_gap_low", "bpb_gap_high"), (bpb * nats for nats in gap), strict=True)),
            "top1_flips": result.top1_flips,
            "kl_N": kl_N,
        }


def sequence_kl(reference: nn.Module, model: nn.Module, tokens: NDArray[Any], seq_len: int) -> NDArray[np.float64]:
    """Return the mean KL(reference ‖ model) over each sequence, nats per token, [N]; `compare` reports the mean of all."""
    count = (len(tokens) - 1) // seq_len
    x_NT = torch.from_numpy(tokens[: count * seq_len].astype(np.int64)).view(count, seq_len)
    parts = []
    with torch.inference_mode():
        for at in range(0, count, BATCH):
            p, q = (m(x_NT[at : at + BATCH]).double().log_softmax(-1) for m in (reference, model))
            parts.append((p.exp() * (p - q)).sum(-1).mean(-1))
    kl_N: NDArray[np.float64] = torch.cat(parts).numpy()
    return kl_N


def with_ratios(rows: list[Row], *, to_first: bool) -> list[Row]:
    """Return rows with `kl_ratio` to the row above of the same budget (or the first), half its interval, and no `kl_N`."""
    done = [{key: value for key, value in row.items() if key != "kl_N"} for row in rows]
    for n in range(1, len(rows)):
        kl_N, base_N = rows[n]["kl_N"], rows[0 if to_first else n - 1]["kl_N"]
        if to_first or rows[n]["budget_bytes"] == rows[n - 1]["budget_bytes"]:
            ratio = kl_N.mean() / base_N.mean()
            error = (kl_N - ratio * base_N).std(ddof=1) / math.sqrt(len(kl_N)) / base_N.mean()
            done[n] |= {"kl_ratio": ratio, "kl_ratio_half": Z95 * error}
    return done


def ladder(bench: Bench, budgets: list[int], steps: list[int], choose_tokens: int) -> Iterator[Row]:
    """Yield the table: a row for each budget and step."""
    choose_by = np.zeros(0)
    if RECORD.keys() & {*steps}:
        choose_by = held_out_tokens(bench.calibration, bench.loaded, bench.tokenizer, choose_tokens)
    for budget in budgets:
        if RECORD.keys() & {*steps}:
            yield from recorded(bench, steps, budget, choose_by)
        yield from (packed(bench, step, budget) for step in steps if step in PACKS)


def curves(bench: Bench, budgets: list[int]) -> Iterator[Row]:
    """Return rows of GPTQ and the default at more budgets, for the figure."""
    return (packed(bench, step, budget) for budget in budgets for step in (GPTQ, DEFAULT))


def sources(bench: Bench, budget: int) -> Iterator[Row]:
    """Yield the default packed with as many tokens of the calibration source, of the model's own text, and at random."""
    tokens = reuse_statistics(bench.stats, bench.loaded).tokens
    yield packed(bench, DEFAULT, budget) | {"method": bench.calibration.source.partition(":")[0]}
    for source in ("self", "random"):
        path = bench.folder / f"{source}.safetensors"
        config = CalibrationConfig(source=source, tokens=tokens, seq_len=bench.calibration.seq_len)
        write_statistics(path, measure_statistics(bench.loaded, config, bench.tokenizer))
        yield packed(replace(bench, stats=path), DEFAULT, budget) | {"method": source}


def packed(bench: Bench, step: int, budget: int) -> Row:
    """Return one row: a file by `quantlab.pack`."""
    name, options = PACKS[step]
    path = bench.folder / "packed.qlab"
    report = pack(bench.loaded, budget=budget, output=path, stats=bench.stats, tokenizer=bench.tokenizer, force=True, **options)
    state, unpack_s = timed(lambda: open_artifact(path).tensors())
    return {
        "step": step,
        "method": name,
        "budget_bytes": budget,
        "bytes": path.stat().st_size,
        **bench.score(state),
        "pack_s": report.timings_s["search"] + report.timings_s["verify"],
        "unpack_s": unpack_s,
        "predicted": report.predicted_kl,
        "effort": report.effort,
        "tuned": report.tuned,
    }


def recorded(bench: Bench, steps: list[int], budget: int, choose_by: NDArray[Any]) -> Iterator[Row]:
    """Yield the rows of the record pipeline, first without its low-rank corrections."""
    for corrections, at_published, at_best in ((0, PLAIN_PUBLISHED, PLAIN_BEST), (CORRECTIONS, PUBLISHED, BEST)):
        if not {at_published, at_best} & {*steps}:
            continue
        start = perf_counter()
        record = RecordPipeline(bench.loaded, reuse_statistics(bench.stats, bench.loaded), corrections=corrections)
        published = solve_published(record, budget)
        seconds = perf_counter() - start
        if at_published in steps:
            yield _record_row(bench, at_published, budget, published, seconds)
        if at_best in steps:
            start = perf_counter()
            best = solve_best(record, published, budget, choose_by, seq_len=bench.calibration.seq_len)
            yield _record_row(bench, at_best, budget, best, perf_counter() - start)


def _record_row(bench: Bench, step: int, budget: int, result: Packed, pack_s: float) -> Row:
    path = bench.folder / "record.bin"
    path.write_bytes(result.data)
    state, unpack_s = timed(lambda: decode(path.read_bytes()))
    about = {"step": step, "method": RECORD[step], "budget_bytes": budget, "bytes": path.stat().st_size}
    times = {"pack_s": pack_s, "unpack_s": unpack_s}
    return {**about, **bench.score(state), **times, "clips": asdict(result.clips), "grid": result.grid}


def timed(read: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `read` returns, and the median of its seconds after a first run."""
    result, seconds = read(), []
    for _ in range(READS):
        start = perf_counter()
        read()
        seconds.append(perf_counter() - start)
    return result, median(seconds)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the printed table."""
    ratio = f"{row['kl_ratio']:.3f} ±{row['kl_ratio_half']:.3f}" if "kl_ratio" in row else ""
    return (
        f"{row['step']}",
        f"{row['method']:45}",
        f"{row['bytes']:,}",
        f"{row['kl_mean']:.5f} ±{row['kl_high'] - row['kl_mean']:.5f}",
        ratio,
        f"{row['kl_q99']:.4f}",
        f"{row['bpb_gap']:+.5f} ±{row['bpb_gap_high'] - row['bpb_gap']:.5f}",
        f"{100 * row['top1_flips']:.2f} %",
        f"{row['pack_s']:.1f}",
        f"{row['unpack_s']:.3f}",
    )


def table(rows: list[Row], versus: str) -> str:
    """Return the rows as aligned text."""
    header = ("", f"{'method':45}", "file bytes", "KL", versus, "KL q99", "BPB gap", "flips", "pack s", "unpack s")
    lines = [header, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def plot(rows: list[Row], title: str, path: Path) -> None:
    """Draw KL against file bytes, with a line for each method that has rows."""
    from matplotlib.figure import Figure  # not needed for the table
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(7, 4.5), dpi=160, layout="constrained")
    axes = figure.subplots()
    for step, (label, color, marker) in LINES.items():
        points = sorted((r["bytes"] / 1e6, r["kl_mean"], r["kl_high"] - r["kl_mean"]) for r in rows if r["step"] == step)
        if points:
            sizes, kls, halves = zip(*points, strict=True)
            axes.errorbar(sizes, kls, halves, label=label, color=color, marker=marker, markersize=5, linewidth=1.5, capsize=2)
    axes.set(yscale="log", xlabel="file size, MB (10⁶ bytes)", title=title)
    axes.set_ylabel("KL from the float model, nats per token")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def open_bench(arguments: argparse.Namespace, folder: Path) -> Bench:
    """Load, tokenize, calibrate, and score the float model; train the demo model first if it is asked for and missing."""
    if arguments.demo and not arguments.checkpoint.exists():
        train_to_folder(*read_train_config("demo", changes=[f"max_seconds={60 * arguments.minutes}"]), arguments.demo)
    loaded = load(arguments.checkpoint)
    tokenizer = load_tokenizer(arguments.tokenizer, loaded)
    shards = str(arguments.demo / VAL_NAME) if arguments.demo else None
    tokens = read_stream(arguments.text, shards, tokenizer)[0][: arguments.eval_tokens + 1]
    calibration = CalibrationConfig(source=arguments.calib, seq_len=arguments.seq_len)
    stats = arguments.stats or folder / "statistics.safetensors"
    if not arguments.stats:
        write_statistics(stats, measure_statistics(loaded, calibration, tokenizer))
    counts = tokenizer.token_bytes()
    score = score_tokens(loaded.model, tokens, counts, seq_len=arguments.seq_len, bos_id=tokenizer.bos_id)
    return Bench(arguments.checkpoint, loaded, tokenizer, tokens, calibration, stats, folder, score)


def parse() -> argparse.Namespace:
    """Return the arguments, with the defaults that depend on others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="instead of a checkpoint: the folder of make demo")
    parser.add_argument("--minutes", type=float, default=2.2, help="minutes of training, if the demo's folder has no model")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--text", type=Path, help="text that the reported figures are measured on")
    parser.add_argument("--calib", default="self", help="source of the statistics and, other tokens of it, of the choice of k")
    parser.add_argument("--stats", type=Path, help="from quantlab calibrate with its default tokens and seed; else measured")
    parser.add_argument("--budgets", help="default 1367KB, 250KB for the demo")
    parser.add_argument("--curve-budgets", default="", help="budgets of the figure's lines; without them no figure is drawn")
    parser.add_argument("--eval-tokens", type=int, default=61440)
    parser.add_argument("--choose-tokens", type=int, default=16384)
    parser.add_argument("--seq-len", type=int, help="default 512, 256 for the demo")
    parser.add_argument("--steps", default=",".join(map(str, [*RECORD, *PACKS])), help="rows, by the table's first column")
    parser.add_argument("--skip-record", action="store_true", help="leave out rows 11, 12, 1 and 2, which are slow")
    parser.add_argument("--calibration", action="store_true", help="also pack with other calibration sources of equal tokens")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if bool(arguments.demo) == bool(arguments.checkpoint and arguments.tokenizer and arguments.text):
        parser.error("either --demo DIR, or a checkpoint with --tokenizer and --text")
    if arguments.calibration and arguments.calib in ("self", "random"):
        parser.error("--calibration compares with a --calib of text: or tokens:")
    if arguments.curve_budgets and not find_spec("matplotlib"):
        parser.error("--curve-budgets needs matplotlib: pip install matplotlib")
    return _filled(arguments)


def _filled(arguments: argparse.Namespace) -> argparse.Namespace:
    name = "rate_distortion_demo" if arguments.demo else "rate_distortion"
    if arguments.demo:
        arguments.checkpoint, arguments.tokenizer = arguments.demo / MODEL_NAME, arguments.demo / TOKENIZER_NAME
    arguments.seq_len = arguments.seq_len or (256 if arguments.demo else 512)
    arguments.budgets = _sizes(arguments.budgets or ("250KB" if arguments.demo else "1367KB"))
    arguments.curve_budgets = _sizes(arguments.curve_budgets)
    arguments.steps = [int(s) for s in arguments.steps.split(",") if not arguments.skip_record or int(s) not in RECORD]
    arguments.json = arguments.json or ROOT / f"benchmarks/results/{name}.json"
    arguments.plot = arguments.plot or ROOT / f"docs/{name}.png"
    return arguments


def _sizes(text: str) -> list[int]:
    return [parse_bytes(size) for size in text.split(",") if size]


def main() -> None:
    arguments = parse()
    about: dict[str, Any] = {"machine": machine() | {"numba": version("numba"), "lrzip": shutil.which("lrzip") is not None}}
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(arguments, Path(folder))
        about |= {"checkpoint": bench.checkpoint.name, "calib": _named(arguments.calib), "float": bench.float_score.to_dict()}
        sections = {
            "rows": ladder(bench, arguments.budgets, arguments.steps, arguments.choose_tokens),
            "curves": curves(bench, arguments.curve_budgets),
            "calibration": sources(bench, arguments.budgets[0]) if arguments.calibration else iter(()),
        }
        results = {name: measure(name, rows, about, arguments.json) for name, rows in sections.items()}
    print(f"{about['checkpoint']}: {about['float']['val_bpb']:.4f} BPB on {about['float']['bytes']:,} bytes of text")
    for name, rows in results.items():
        if rows:
            print(f"\n{name}\n{table(rows, VERSUS[name])}")
    if arguments.curve_budgets:
        plot(results["rows"] + results["curves"], bench.checkpoint.stem, arguments.plot)


def measure(name: str, rows: Iterator[Row], about: dict[str, Any], out: Path) -> list[Row]:
    """Return the section's rows; after each the JSON file is written and the row goes to stderr."""
    measured: list[Row] = []
    for row in rows:
        measured.append(row)
        about[name] = with_ratios(measured, to_first=name == "calibration")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(about, indent=2) + "\n")
        print("  ".join(cells(about[name][-1])), file=sys.stderr, flush=True)
    done: list[Row] = about.get(name, [])
    return done


def _named(source: str) -> str:
    """Return the name of a calibration source without its folder."""
    kind, colon, path = source.partition(":")
    return kind + colon + Path(path).name


if __name__ == "__main__":
    main()
