"""Draw the figures of docs/method.md from the code and from benchmarks/results/*.json.

    .venv/bin/python docs/figures/draw.py

Each picture carries the digest of what it was drawn from (tests/docs/test_figures.py): a new result asks for a new picture.
"""

import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from quantlab.format_rules import next_states

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER.parents[1] / "benchmarks" / "results"
COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:orange")
"""Of the four subsets of the union grid."""
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150, "legend.frameon": False}


def sources(*names: str) -> list[dict[str, Any]]:
    """Results by the name of their file."""
    return [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]


def digest(draw: Callable[[], Figure], names: Iterable[str]) -> str:
    """Names what a figure was drawn from: its results and its function."""
    results = [(RESULTS / f"{name}.json").read_bytes() for name in names]
    return hashlib.sha256(b"".join([inspect.getsource(draw).encode(), *results])).hexdigest()


def gaussian_gap() -> Figure:
    """Bits above the rate-distortion bound, by rate and states."""
    (data,) = sources("gaussian_source")
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for states, colour in zip((1, 4, 8, 16, 32), ("0.45", *plt.cm.viridis(np.linspace(0.15, 0.85, 4))), strict=True):
        rows = [row for row in data["rows"] if row["states"] == states]
        label = "scalar" if states == 1 else f"trellis, {states} states"
        axes.plot([r["rate_bits"] for r in rows], [r["gap_bits"] for r in rows], "o-", ms=3.5, color=colour, label=label)
    high_rate = 0.5 * math.log2(2 * math.pi * math.e / 12)
    axes.axhline(high_rate, color="0.45", lw=0.8, ls=":")
    axes.text(6.1, high_rate - 0.004, "½ log₂(2πe/12)", ha="right", va="top", color="0.35", fontsize=9)
    axes.set(xlabel="bits a weight, of the whole file", ylabel="bits above R(D)", ylim=(0, None), xlim=(0, None))
    axes.legend(fontsize=9, loc="upper right", ncols=2)
    return figure


def trellis() -> Figure:
    """The union grid with its subsets, and one step of the trellis of 8 states."""
    figure, (grid, graph) = plt.subplots(2, 1, figsize=(6, 5.2), height_ratios=(1, 3.2))
    for t in range(-5, 7):
        grid.plot(t - 0.5, 0, "o", ms=9, color=COLOURS[t % 4])
        grid.text(t - 0.5, 0.55, f"{t}", ha="center", fontsize=9)
    grid.axhline(0, color="0.7", lw=0.8, zorder=0)
    grid.set(ylim=(-0.6, 1.1), yticks=[], xticks=range(-5, 7, 1), xlabel="weight in steps: code t stands for t - ½")
    grid.spines["left"].set_visible(False)
    table = next_states(8)
    for state in range(8):
        for parity in (0, 1):
            subset = 2 * parity + (state & 1)
            graph.plot([0, 1], [-state, -int(table[state, parity])], color=COLOURS[subset], lw=1.8)
        for x in (0, 1):
            graph.plot(x, -state, "o", ms=13, color="white", mec="0.3", zorder=3)
            graph.text(x, -state, f"{state}", ha="center", va="center", fontsize=9, zorder=4)
    for subset, colour in enumerate(COLOURS):
        graph.plot([], [], color=colour, lw=3, label=f"t mod 4 = {subset}")
    graph.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=4, fontsize=9, handlelength=1.2, columnspacing=1)
    graph.axis("off")
    figure.subplots_adjust(hspace=0.32)
    return figure


def block_paths() -> Figure:
    """The order of blocks and of the paths through one set of them, and what feeds one weight. Blocks are 4 x 4 here."""
    block, (rows, columns) = 4, (3, 4)
    now, t, (row, column) = 2, 2, (5, 5)  # the set that is rounded, one of its paths, and a weight of it
    figure, axes = plt.subplots(figsize=(6.4, 5.6))

    def fill(top: int, left: int, bottom: int, right: int, **style: Any) -> None:
        axes.add_patch(plt.Rectangle((left, top), right - left, bottom - top, **style))

    near, far = {"facecolor": "#8fb8e0", "lw": 0}, {"facecolor": "#dbe8f6", "lw": 0}
    fill(row, column, rows * block, columns * block, **far)
    fill(row, column, (row // block + 1) * block, (column // block + 1) * block, **near)
    fill(row, column, row + 1, column + 1, facecolor="#f4a79d", lw=0)
    for p, q in np.ndindex(rows, columns):
        top, left = p * block, q * block
        if p + q != now:
            number = {"ha": "center", "va": "center", "fontsize": 22, "color": "0.55"}
            axes.text(left + block / 2, top + block / 2, f"{rows + columns - 1 - p - q}", **number)
            continue
        for i, j in np.ndindex(block, block):
            fill(top + i, left + j, top + i + 1, left + j + 1, fill=False, ec="0.75", lw=0.7)
            weight = "bold" if i + j == t else "normal"
            axes.text(left + j + 0.5, top + i + 0.5, f"{2 * block - 1 - i - j}", ha="center", va="center", weight=weight)
    for p, q in sorted(np.ndindex(rows, columns), key=lambda at: sum(at) == now):
        frame = {"fill": False, "ec": "0.2", "lw": 1.8} if p + q == now else {"fill": False, "ec": "0.6", "lw": 1.2}
        fill(p * block, q * block, (p + 1) * block, (q + 1) * block, **frame)
    path = [(p * block + i, (now - p) * block + t - i) for p in range(rows) for i in range(block) if 0 <= t - i < block]
    for (i, j), (k, m) in itertools.pairwise(path):
        head, line = ("-|>", "-") if i // block == k // block else ("-", (0, (3, 2)))
        arrow = {"arrowstyle": head, "color": "tab:red", "lw": 1.4, "ls": line, "shrinkA": 7.5, "shrinkB": 7.5}
        axes.annotate("", xytext=(j + 0.5, i + 0.5), xy=(m + 0.5, k + 0.5), arrowprops=arrow)
    axes.plot([], [], color="tab:red", lw=1.6, label="one path, through all blocks of the set")
    axes.fill([], [], "#f4a79d", label="a weight of it")
    axes.fill([], [], near["facecolor"], label="feeds it from its own block: short sums")
    axes.fill([], [], far["facecolor"], label="feeds it from finished blocks: matrix products")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), fontsize=9, ncols=2, columnspacing=1.2, handlelength=1.4)
    axes.set(xlim=(-0.05, columns * block + 0.05), ylim=(rows * block + 0.05, -0.05), aspect="equal", xticks=[], yticks=[])
    axes.set(xlabel="columns", ylabel="rows")
    axes.spines[:].set_visible(False)
    return figure


def ladder() -> Figure:
    """KL at equal bytes, one step of the method after the other."""
    figure, axes = plt.subplots(figsize=(6, 3.8))
    web, demo = sources("rate_distortion", "rate_distortion_demo")
    for data, colour, label in ((web, "tab:red", "web4, 1,367,000 B"), (demo, "tab:blue", "demo, 250,000 B")):
        rows = [row for row in data["rows"] if row["step"] != 10]
        names = [row["method"].replace(" without LQER", "\nwithout LQER") for row in rows]
        axes.plot([row["kl_mean"] for row in rows], range(len(rows)), "o-", ms=5, lw=1, color=colour, label=label)
    axes.set(xscale="log", xlabel="KL to the float model, nats per token", yticks=range(len(names)), yticklabels=names)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", color="0.9", lw=0.6)
    axes.legend(fontsize=9, loc="lower right")
    return figure


def predicted() -> Figure:
    """KL measured on held-out text against the cost that the factors predict."""
    figure, axes = plt.subplots(figsize=(6, 4.2))
    web, demo = sources("rate_distortion", "rate_distortion_demo")
    for data, colour, label in ((web, "tab:red", "web4"), (demo, "tab:blue", "demo")):
        rows = [row for key in ("rows", "curves") for row in data.get(key, ()) if row["step"] >= 4 and "predicted" in row]
        points = sorted({(row["predicted"], row["kl_mean"]) for row in rows})
        axes.plot(*zip(*points, strict=True), "o", ms=5, color=colour, label=label)
    ends = np.array([0.00015, 0.04])
    axes.plot(ends, ends, color="0.5", lw=0.9, label="equal")
    axes.set(xscale="log", yscale="log", xlabel="predicted KL, nats per token", ylabel="measured KL, nats per token")
    axes.grid(which="both", color="0.92", lw=0.6)
    axes.legend(fontsize=9)
    return figure


def water_filling() -> Figure:
    """What shaped steps save on each matrix of the demo model."""
    (data,) = sources("water_filling_demo")
    figure, axes = plt.subplots(figsize=(6, 4.2))
    names = [row["tensor"].removeprefix("blocks.").removesuffix(".weight") for row in data["rows"]]
    columns, rows = ([row[key] for row in data["rows"]] for key in ("column_bits", "row_bits"))
    axes.barh(names, columns, color="tab:blue", label="columns, 1 / d of H")
    axes.barh(names, rows, left=columns, color="tab:orange", label="rows, 1 / d of G")
    axes.set(xlabel="bits a weight saved at equal cost")
    axes.invert_yaxis()
    axes.legend(fontsize=9, loc="upper right")
    return figure


FIGURES: dict[str, tuple[Callable[[], Figure], tuple[str, ...]]] = {
    "gaussian_gap": (gaussian_gap, ("gaussian_source",)),
    "trellis": (trellis, ()),
    "block_paths": (block_paths, ()),
    "ladder": (ladder, ("rate_distortion", "rate_distortion_demo")),
    "predicted": (predicted, ("rate_distortion", "rate_distortion_demo")),
    "water_filling": (water_filling, ("water_filling_demo",)),
}
"""By name: how to draw it, and the results that it shows."""


def main() -> None:
    with plt.rc_context(STYLE):
        for name, (draw, names) in FIGURES.items():
            figure = draw()
            figure.savefig(
                FOLDER / f"{name}.png", bbox_inches="tight", metadata={"Source": digest(draw, names), "Software": None}
            )
            plt.close(figure)
            print(f"wrote {FOLDER / name}.png")


if __name__ == "__main__":
    main()
