"""A model whose float weights and statistics together exceed the memory that `ulimit -v` leaves, calibrated and packed.

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
    entries = sum(sum_entries(shape, plain=True) for shape in matrix_shapes(loaded).values())
    return {"weights": weights, "float_bytes": 4 * weights, "statistics_bytes": SUM_BYTES * entries}


def limited(limit: int, *arguments: str) -> dict[str, Any]:
    """Run a command of quantlab in a process of limited address space; return its lines about memory, and what it took."""
    start, lines = time.perf_counter(), list[str]()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(limit), *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        for line in child.stderr or ():
            sys.stderr.write(line)
            lines.append(line)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, arguments)
    said = [line.strip() for line in lines if "forecast:" in line or "memory" in line]
    return {
        "said": said,
        "address_space_bytes": 1024 * int(re.findall(r"VmPeak (\d+)", lines[-1])[0]),
        "resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Save the model unless it is there, calibrate, pack, and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--limit", type=int, default=LIMIT_BYTES, help="bytes of address space")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "memory_limit.json")
    arguments = parser.parse_args()
    folder, stats = arguments.work / "model", arguments.work / "stats.safetensors"
    if not folder.is_dir():
        arguments.work.mkdir(parents=True, exist_ok=True)
        save(folder, arguments.layers)
    sizes = sizes_of(folder)
    assert sizes["float_bytes"] + sizes["statistics_bytes"] > arguments.limit, f"{sizes} fit into {arguments.limit} bytes"
    result = {"machine": machine(), "limit_bytes": arguments.limit, "tokens": TOKENS, **sizes}
    tokens = ["--calib", "random", "--calib-tokens", str(TOKENS), "--calib-seq-len", str(SEQ_LEN)]
    budget = ["--budget", str(int(sizes["weights"] * BITS / 8)), "--effort", "fast", "--stats", str(stats)]
    for command, *options in (
        ["calibrate", "-o", str(stats), *tokens],
        ["pack", "-o", str(arguments.work / "m.qlab"), *budget],
    ):
        result[command] = limited(arguments.limit, command, str(folder), *options, "--device", "cpu", "--force")
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
