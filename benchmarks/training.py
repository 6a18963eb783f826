"""Speed of the trainer, and its score against a plain loop after equal time.

    .venv/bin/python benchmarks/training.py                  # CPU: the laptop preset beside a plain AdamW loop of the same size
    .venv/bin/python benchmarks/training.py --seconds 300

On a GPU it times the presets baseline and h1394 at full size (median step, tokens/s, share of the card's bfloat16 peak). On a
CPU the laptop preset and an independent minimal loop (nano_gpt.py, each learning rate of --rates) train for the same seconds on
the same text, batch and sequence length, one after the other in one run; both are scored on the same held-out tokens.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import nano_gpt
import numpy as np
import torch
from machine import ROOT, machine
from torch import nn

from quantlab.evaluation.scoring import score_tokens
from quantlab.jobs.train import TokenizedData, load_data
from quantlab.jobs.train_file import read_train_config
from quantlab.trainer.loader import Loader
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training import flush_denormals, train
from quantlab.trainer.training_loop import StepRecord

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 peaks by the vendor's data sheets, in floating-point operations a second."""
STEPS = 30
"""Steps timed on a GPU after compiling; the first third is left out."""

Row = dict[str, Any]


def on_gpu(preset: str, card: str) -> Row:
    """Measure the step time of a preset at full size, on random tokens."""
    config, _ = read_train_config(preset)
    config = replace(
        config, steps=STEPS, max_seconds=0.0, log_every=1, val_every=0, checkpoint_every_seconds=1e9, loop_from=0.0
    )
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, 8 * config.batch_tokens).astype(np.uint16)
    stamps: list[float] = []

    def progress(record: StepRecord) -> None:
        torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        result = train(config, tokens, out=Path(folder), progress=progress)
    step_s = median(np.diff(stamps)[STEPS // 3 :])
    flops = flops_per_token(config, result.model) * config.batch_tokens
    peak = next((value for name, value in PEAK_FLOPS.items() if name in card), float("nan"))
    return {
        "preset": preset,
        "step_ms": 1e3 * step_s,
        "tokens_per_s": config.batch_tokens / step_s,
        "mfu": flops / step_s / peak,
        "memory_bytes": torch.cuda.max_memory_allocated(),
        "last_loss": result.losses[-1],
    }


def flops_per_token(config: TrainConfig, model: nn.Module) -> float:
    """Return the operations of forward and backward for one token.

    These are 6 for each weight that multiplies, as often as its block runs, and 6 · T · width for the causal attention of each
    block that runs (half of the scores).
    """
    per_block = sum(p.numel() for n, p in model.named_parameters() if n.startswith("blocks.0.") and n.endswith(".weight"))
    passes = len(config.model.order())
    head = config.model.vocab_size * config.model.model_dim
    return 6 * (per_block * passes + head) + 6 * config.seq_len * config.model.model_dim * passes


def on_cpu(seconds: float, rates: list[float]) -> list[Row]:
    """Train the laptop preset and the plain loop, each for `seconds`."""
    config, data_config = read_train_config("laptop", changes=[f"max_seconds={seconds}", "steps=1000000"])
    data = load_data(data_config, config.model.vocab_size, config.seed)
    rows = [quantlab_row(config, data)]
    return rows + [plain_row(config, data, seconds, lr) for lr in rates]


def quantlab_row(config: TrainConfig, data: TokenizedData) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        result = train(replace(config, checkpoint_every_seconds=1e9), data.train, out=Path(folder))
    about = {"loop": "quantlab (Muon)", "steps": result.steps, "seconds": result.elapsed_seconds}
    return about | scored(result.model, config, data)


def plain_row(config: TrainConfig, data: TokenizedData, seconds: float, lr: float) -> Row:
    m = config.model
    sizes = {"layers": m.num_layers, "width": m.model_dim, "heads": m.num_heads, "hidden": m.mlp_hidden}
    model = nano_gpt.NanoGPT(vocab=m.vocab_size, length=config.seq_len, **sizes)
    sequences = config.batch_tokens // config.seq_len
    micro = config.micro_batch_tokens // config.seq_len
    loader = Loader(data.train, seq_len=config.seq_len, sequences=sequences, seed=config.seed)
    with flush_denormals(), loader:
        steps, elapsed = nano_gpt.train(model, loader.batch, seconds=seconds, lr=lr, micro=micro)
    return {"loop": f"plain AdamW, lr {lr:g}", "steps": steps, "seconds": elapsed} | scored(model.eval(), config, data)


def scored(model: nn.Module, config: TrainConfig, data: TokenizedData) -> Row:
    assert data.val is not None
    score = score_tokens(model, data.val, data.tokenizer.token_bytes(), seq_len=config.seq_len)
    weights = sum(p.numel() for p in model.parameters())
    return {"parameters": weights, "val_loss": score.val_loss, "val_bpb": score.val_bpb}


def show(rows: list[Row]) -> None:
    for row in rows:
        if "preset" in row:
            speed = f"{row['step_ms']:8.1f} ms/step {row['tokens_per_s']:12,.0f} tokens/s"
            print(f"{row['preset']:10} {speed}  MFU {100 * row['mfu']:.1f} %  peak {row['memory_bytes'] / 1e9:.1f} GB")
        else:
            print(
                f"{row['loop']:24} {row['parameters']:>10,} parameters {row['steps'] / row['seconds']:6.2f} steps/s "
                f"{row['steps']:5} steps  val loss {row['val_loss']:.4f}  {row['val_bpb']:.4f} BPB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="seconds of training for each, on a CPU")
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2", help="learning rates of the plain loop")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        card = torch.cuda.get_device_name()
        rows = [on_gpu(preset, card) for preset in ("baseline", "h1394")]
        out = arguments.json or ROOT / f"benchmarks/results/training_{card.replace(' ', '_')}.json"
    else:
        rows = on_cpu(arguments.seconds, [float(rate) for rate in arguments.rates.split(",")])
        out = arguments.json or ROOT / "benchmarks/results/training_cpu.json"
    show(rows)
    out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
