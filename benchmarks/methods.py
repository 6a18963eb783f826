"""Round-to-nearest, GPTQ and the trellis method at equal bytes: files on disk, scored after being read back.

    make demo                                                     # a model to pack
    .venv/bin/python benchmarks/methods.py demo                   # prints the README's table, saves JSON

All methods get the same statistics. rtn and gptq differ in the rounding alone; rate_distortion.py takes apart what lies between
gptq and trellis.
KL is from the float model to the packed one, in nats per token, over every scored token of the validation shard.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from machine import ROOT, machine

from quantlab.budget import parse_bytes
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import write_statistics
from quantlab.pipeline.calibrate import measure_statistics
from quantlab.pipeline.evaluate import compare_targets, evaluate_target, evaluation_tokens
from quantlab.pipeline.models import load_artifact, load_checkpoint, load_tokenizer
from quantlab.pipeline.pack import PackConfig, pack
from quantlab.pipeline.solve import METHODS

SEQ_LEN = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what make demo filled")
    parser.add_argument("--budgets", default="400KB,300KB,250KB,200KB")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/methods.json")
    arguments = parser.parse_args()
    rows, fp = measure(arguments.folder, [parse_bytes(b) for b in arguments.budgets.split(",")])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine(), "float": fp, "rows": rows}, indent=2) + "\n")
    print(f"float model: {fp['bytes_on_disk']:,} bytes, {fp['val_bpb']:.4f} BPB on {fp['bytes']:,} bytes of text\n")
    print(table(rows))


def measure(folder: Path, budgets: list[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per budget and method, and the float model's score."""
    checkpoint = folder / "model.safetensors"
    loaded = load_checkpoint(checkpoint, None)
    tokenizer = load_tokenizer(folder / "tokenizer.model", loaded)
    tokens = evaluation_tokens(None, str(folder / "val_*.bin"), tokenizer)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        stats = Path(temporary) / "stats.safetensors"
        write_statistics(stats, measure_statistics(loaded, CalibrationConfig(tokens=65536, seq_len=SEQ_LEN), tokenizer))
        for budget in budgets:
            for method in reversed(METHODS):
                path = Path(temporary) / f"{method}-{budget}.qlab"
                config = PackConfig(budget_bytes=budget, method=method)
                report = pack(loaded, config, path, checkpoint=checkpoint, statistics=stats)
                packed = load_artifact(path, None)
                score = evaluate_target(packed, tokens, tokenizer, seq_len=SEQ_LEN)
                rows.append(
                    {
                        "method": method,
                        "budget_bytes": budget,
                        "total_bytes": report.total_bytes,
                        "bpw": report.bpw,
                        "distortion": report.distortion,
                        "kl": compare_targets(loaded, packed, tokens, seq_len=SEQ_LEN).kl_mean,
                        "val_bpb": score.val_bpb,
                        "search_s": report.timings_s["search"],
                    }
                )
                print(rows[-1], flush=True)
    score = evaluate_target(loaded, tokens, tokenizer, seq_len=SEQ_LEN)
    return rows, {**score.to_dict(), "bytes_on_disk": checkpoint.stat().st_size}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per budget and method."""
    lines = ["| budget | method | file | bits/weight | predicted | measured KL | BPB |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r['budget_bytes']:,} | {r['method']} | {r['total_bytes']:,} | {r['bpw']:.2f} | {r['distortion']:.4f} | "
        f"{r['kl']:.4f} | {r['val_bpb']:.4f} |"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
