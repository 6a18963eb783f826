"""What progressive rounding buys: one model packed with it and without at equal budgets, compared paired by sequence.

    .venv/bin/python benchmarks/refinement.py CKPT.pt --tokenizer T.model --text HELD_OUT.jsonl.zst --budgets 1MB,1367KB

Both files of a budget have the same statistics, on text that the model wrote itself, and the same options but `refine_steps`.
Intervals are 95 %, from standard errors over sequences. Seconds are those of search and refinement, from ready statistics.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import ROOT, machine
from numpy.typing import NDArray

import quantlab
from quantlab.budget import parse_bytes
from quantlab.evaluation.divergence import Z95
from quantlab.models.loading import LoadedModel, load, load_tokenizer
from quantlab.text.counted_stream import read_stream

SEQ_LEN = 512
LINE = (
    "{budget_bytes:,} B: KL {kl_plain:.6f} -> {kl_refined:.6f}, {ratio:.3f} ± {interval:.3f}; "
    "{seconds_plain:.0f} s -> {seconds_refined:.0f} s"
)


def main() -> None:
    """Pack, compare, print a line for each budget, and save JSON."""
    options = _arguments()
    loaded = load(options.checkpoint)
    tokenizer = load_tokenizer(options.tokenizer, loaded)
    tokens = read_stream(options.text, None, tokenizer)[0][: options.tokens]
    found: dict[str, Any] = {"machine": machine(), "model": options.checkpoint.name, "tokens": len(tokens), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        stats = options.stats or quantlab.calibrate(loaded, tokenizer=tokenizer)
        for budget in map(parse_bytes, options.budgets.split(",")):
            row = _row(loaded, stats, budget, options.steps, tokens, Path(folder))
            found["rows"].append(row)
            print(LINE.format(**row), flush=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--text", required=True, help="held-out text")
    parser.add_argument("--stats", help="statistics of quantlab calibrate; measured if not given")
    parser.add_argument("--budgets", default="1MB")
    parser.add_argument("--steps", type=int, default=12, help="batches of a stage")
    parser.add_argument("--tokens", type=int, default=61_440, help="tokens that are compared")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks/results/refinement.json")
    return parser.parse_args()


def _row(loaded: LoadedModel, stats: Any, budget: int, steps: int, tokens: NDArray[Any], folder: Path) -> dict[str, Any]:
    """Return KL of both files of a budget, the ratio of them with its interval, and what they took."""
    kl, seconds, stages = {}, {}, []
    for name, refine_steps in (("plain", 0), ("refined", steps)):
        output = folder / f"{name}-{budget}.qlab"
        more = {"budget": budget, "output": output, "stats": stats, "tune": False, "refine_steps": refine_steps}
        report = quantlab.pack(loaded, **more)
        kl[name] = _kl_by_sequence(loaded, load(output), tokens)
        seconds[name], stages = report.timings_s["search"], [*stages, *report.refined]
    ratio = kl["refined"].mean() / kl["plain"].mean()
    spread = (kl["refined"] - ratio * kl["plain"]).std(ddof=1) / math.sqrt(len(kl["plain"])) / kl["plain"].mean()
    return {
        "budget_bytes": budget,
        "steps": steps,
        **{f"kl_{name}": float(values.mean()) for name, values in kl.items()},
        "ratio": float(ratio),
        "interval": float(Z95 * spread),
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "stages": stages,
    }


@torch.inference_mode()
def _kl_by_sequence(reference: LoadedModel, packed: LoadedModel, tokens: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean KL(reference ‖ packed) of each whole sequence, nats per token."""
    ids_NT = torch.from_numpy(tokens[: len(tokens) // SEQ_LEN * SEQ_LEN].astype(np.int64)).view(-1, SEQ_LEN)
    found = []
    for ids_BT in ids_NT.split(4):
        p, q = (one.model.eval()(ids_BT).double().log_softmax(-1) for one in (reference, packed))
        found.append((p.exp() * (p - q)).sum(-1).mean(-1))
    return torch.cat(found).numpy()


if __name__ == "__main__":
    main()
