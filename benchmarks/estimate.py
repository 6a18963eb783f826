"""Estimates held beside real packings: bytes and KL that `quantlab estimate` forecasts, and those of the files then packed.

    .venv/bin/python benchmarks/estimate.py --model demo
    .venv/bin/python benchmarks/estimate.py --model huggingface
    .venv/bin/python benchmarks/estimate.py --model CKPT.pt

Four sizes of each model, a factor of three in bytes. A packing has the default effort, and its KL is measured on calibration
text that the statistics did not use. Rows that the output has already are not packed again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, machine
from torch.nn import functional as F

import quantlab
from quantlab.jobs.train import train_to_folder
from quantlab.jobs.train_file import read_train_config
from quantlab.models.loading import load
from quantlab.text.stdlib_corpus import shuffled, stdlib_documents

BITS = (2.5, 3.6, 5.2, 7.5)
"""Bits a weight of the four sizes."""
TRAIN_SECONDS, TRAIN_STEPS = 120, 500
"""Of the demo's model, and of the Hugging Face model."""
WIDTH, LAYERS, CONTEXT, VOCABULARY = 128, 4, 256, 256
"""Sizes of the Hugging Face model; its tokens are bytes."""
BATCH = 16
LINE = "{budget_bytes:,} B: file {file_bytes:,} B, KL {kl:.5f}, estimated {estimated_kl:.5f} ({low:.5f} to {high:.5f})"


def main() -> None:
    """Make the model, estimate, pack, print a line for each size, and save JSON."""
    options = _arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = _checkpoint(options.model, options.work)
    stats = options.work / f"{checkpoint.stem}.stats.safetensors"
    if not stats.exists():
        quantlab.calibrate(checkpoint, output=stats, calib_seq_len=min(512, load(checkpoint).context_length or 512))
    weights = sum(tensor.numel() for tensor in load(checkpoint).state.values())
    started = time.perf_counter()
    estimates = quantlab.estimate(checkpoint, budgets=[round(bits * weights / 8) for bits in BITS], stats=stats)
    seconds = round(time.perf_counter() - started, 1)
    everything = json.loads(options.out.read_text()) if options.out.exists() else {"machine": machine(), "rows": []}
    for point in estimates.points:
        row = _row(everything["rows"], options.model if checkpoint.stem == "model" else checkpoint.stem, point.total_bytes)
        row |= {"bpw": point.bpw, "estimate_seconds": seconds, "predicted_kl": point.predicted_kl}
        row |= {"estimated_kl": point.kl, "low": point.low, "high": point.high}
        if "kl" not in row:
            row |= _packed(checkpoint, stats, point.total_bytes, options.work)
        row |= {"ratio": row["kl"] / point.kl, "byte_ratio": row["file_bytes"] / point.total_bytes}
        print(LINE.format(**row), flush=True)
        options.out.write_text(json.dumps(everything, indent=2) + "\n")


def _row(rows: list[dict[str, Any]], model: str, budget: int) -> dict[str, Any]:
    """Return the row of a model and a size, which is added unless it is there."""
    found = next((row for row in rows if (row["model"], row["budget_bytes"]) == (model, budget)), None)
    if found is None:
        rows.append(found := {"model": model, "budget_bytes": budget})
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="demo, huggingface (both are trained here), or a checkpoint")
    parser.add_argument("--work", type=Path, default=ROOT / "build/estimate", help="folder for models and statistics")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks/results/estimate.json")
    return parser.parse_args()


def _checkpoint(model: str, work: Path) -> Path:
    """Return the checkpoint, which is trained unless it is there."""
    if model == "demo":
        config, data = read_train_config("demo", changes=[f"max_seconds={TRAIN_SECONDS}"])
        path = work / "demo" / "model.safetensors"
        return path if path.exists() else train_to_folder(config, data, work / "demo").model_path
    if model == "huggingface":
        path = work / "huggingface"
        if not path.exists():
            _train_huggingface(path)
        return path
    return Path(model)


def _train_huggingface(path: Path) -> None:
    """Train a small Llama on the bytes of the standard library, and save it as transformers does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, **heads}
    model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0))
    documents = shuffled(stdlib_documents(), seed=0)
    raw = b"\0".join(d.text for d in documents if d.split == "train")
    ids_N = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(TRAIN_STEPS):
        done = step / TRAIN_STEPS
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 20 * done) * (1.05 - done)
        at_B = torch.randint(len(ids_N) - CONTEXT - 1, (BATCH,), generator=generator)
        ids_BT = torch.stack([ids_N[at : at + CONTEXT + 1] for at in at_B.tolist()])
        logits_BTV = model(ids_BT[:, :-1]).logits
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(f"trained to {loss.item():.3f} nats a byte", flush=True)
    model.save_pretrained(path)


def _packed(checkpoint: Path, stats: Path, budget: int, work: Path) -> dict[str, Any]:
    """Return length, predicted and measured KL, and seconds of a real packing."""
    report = quantlab.pack(checkpoint, budget=budget, output=work / f"{checkpoint.stem}-{budget}.qlab", stats=stats, force=True)
    assert report.measured
    return {
        "file_bytes": report.artifact_bytes,
        "packed_predicted_kl": report.predicted_kl,
        "kl": report.measured.kl,
        "kl_before_tuning": report.tuned.get("kl_before"),
        "kl_after_tuning": report.tuned.get("kl_after"),
        "pack_seconds": round(sum(report.timings_s.values()), 1),
        "forecast_seconds": report.forecast.get("total_s"),
    }


if __name__ == "__main__":
    main()
