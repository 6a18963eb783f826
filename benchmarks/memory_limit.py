"""A model whose float weights and statistics together exceed the memory that `ulimit -v` leaves, packed from its folder.

    python benchmarks/memory_limit.py --work W      # about 340 million random weights, 6.0 GB; saves JSON

The folder holds bfloat16. Weights in float32 and the sums of all statistics are counted by their sizes; the address space and
the memory that the packing took are those of its process, the largest that it had.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from folders import save_tokenizer
from machine import ROOT, machine

from quantlab.calib.passes import SUM_BYTES, sum_entries
from quantlab.jobs.problem import matrix_shapes
from quantlab.models.loading import load

CONFIG = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "bos_token_id": 256,
}
LAYERS = 24
LIMIT_BYTES = 6_000_000_000
TOKENS, SEQ_LEN = 1024, 256
BITS = 3.0
CHILD = """
import resource, sys, re
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from quantlab.cli.main import run
code = run(sys.argv[2:])
print("VmPeak", re.search(r"VmPeak:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(code)
"""
"""Runs the command line in a process of limited address space, as `ulimit -v` does, and says what it took."""


def save(folder: Path, layers: int) -> None:
    """Save a random Llama in bfloat16."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**CONFIG, num_hidden_layers=layers)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)


def sizes_of(folder: Path) -> dict[str, int]:
    """Return the weights, and the bytes of float weights and of the sums of all statistics."""
    loaded = load(folder)
    weights = sum(tensor.numel() for tensor in loaded.state.values())
    entries = sum(sum_entries(shape, plain=False) for shape in matrix_shapes(loaded).values())
    return {"weights": weights, "float_bytes": 4 * weights, "statistics_bytes": SUM_BYTES * entries}


def pack(folder: Path, output: Path, weights: int, limit: int) -> dict[str, Any]:
    """Pack in a process of limited address space; return what it said of its memory, and what it took."""
    options = ["--budget", str(int(weights * BITS / 8)), "-o", str(output), "--force", "--effort", "fast", "--calib", "random"]
    options += ["--calib-tokens", str(TOKENS), "--calib-seq-len", str(SEQ_LEN), "--device", "cpu"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(limit), "pack", str(folder), *options], capture_output=True, text=True, cwd=ROOT
    )
    sys.stderr.write(done.stderr[-4000:])
    done.check_returncode()
    (forecast,) = re.findall(r"forecast: .*", done.stderr)
    report = json.loads(output.with_suffix(".report.json").read_text())
    return {
        "forecast": forecast,
        "passes": report["forecast"]["passes"],
        "address_space_bytes": 1024 * int(re.findall(r"VmPeak (\d+)", done.stderr)[0]),
        "resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "seconds": round(time.perf_counter() - start, 1),
        "timings_s": report["timings_s"],
        "budget_bytes": report["budget_bytes"],
        "file_bytes": report["artifact_bytes"],
    }


def main() -> None:
    """Save the model unless it is there, pack it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--limit", type=int, default=LIMIT_BYTES, help="bytes of address space")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "memory_limit.json")
    arguments = parser.parse_args()
    folder = arguments.work / "model"
    if not folder.is_dir():
        arguments.work.mkdir(parents=True, exist_ok=True)
        save(folder, arguments.layers)
    sizes = sizes_of(folder)
    assert sizes["float_bytes"] + sizes["statistics_bytes"] > arguments.limit, f"{sizes} fit into {arguments.limit} bytes"
    found = pack(folder, arguments.work / "m.qlab", sizes["weights"], arguments.limit)
    result = {"machine": machine(), "limit_bytes": arguments.limit, "tokens": TOKENS, **sizes, **found}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
