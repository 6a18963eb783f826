"""Submission folders for tests, in the dialect of the challenge's records, with one fault planted at a time."""

import json
import math
from pathlib import Path

SCRIPT = """\
import os
import torch


def eval_val(model, val_tokens):
    with torch.inference_mode():
        return model(val_tokens)


def main():
    print(os.environ.get("SEED", "1337"))
"""
TOKENS = 62_021_632
BYTES_PER_TOKEN = 2.43592
LOSSES = {1: 2.0100, 2: 2.0110, 3: 2.0120}


def bpb_of(loss: float) -> float:
    """Return the bits per byte of a loss with the sp1024 tokenizer."""
    return loss / (math.log(2) * BYTES_PER_TOKEN)


def log(
    seed: int, *, script: str = SCRIPT, tokens: int = TOKENS, total: int = 15_900_000, bpb: float | None = None, **more
) -> str:
    """Return a log that is right in everything, or with the given figures."""
    loss = LOSSES[seed]
    score = bpb_of(loss) if bpb is None else bpb
    train_ms, eval_ms = more.get("train_ms", 600_040), more.get("eval_ms", 1401)
    code = len(script.encode())
    lines = [
        script,
        "=" * 100,
        f"train_loader:dataset:fineweb10B_sp1024 train_shards:{more.get('shards', 80)}",
        f"val_loader:shards pattern=fineweb_val_*.bin tokens:{tokens}",
        "world_size:8 grad_accum_steps:1",
        f"seed:{seed}",
        *more.get("lines", ()),
        f"step:9000/20000 val_loss:{loss + 0.01:.4f} val_bpb:{score + 0.01:.4f} train_time:{train_ms}ms step_avg:66.67ms",
        f"stopping_early: wallclock_cap train_time:{train_ms}ms step:9000/20000",
        "Serialized model: 67224983 bytes",
        f"Code size: {code} bytes",
        "Total submission size: 67272625 bytes",
        f"Serialized model int8+zlib: {total - code} bytes (payload:17178912 raw_torch:17224025 payload_ratio:3.91x)",
        f"Total submission size int8+zlib: {total} bytes",
        f"final_int8_zlib_roundtrip val_loss:{loss:.4f} val_bpb:{score:.4f} eval_time:{eval_ms}ms",
        f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{score:.8f}",
    ]
    return "\n".join(lines) + "\n"


def claims(**changes) -> dict:
    """Return a submission.json that fits the logs."""
    mean = sum(map(bpb_of, LOSSES.values())) / len(LOSSES)
    about = {"author": "A. B.", "github_id": "ab", "name": "Sample", "date": "2026-04-01", "track": "10min_16mb"}
    about |= {"val_bpb": round(mean, 8), "seeds": list(LOSSES), "bytes_total": 15_900_000, "bytes_code": len(SCRIPT.encode())}
    return about | changes


def write(folder: Path, *, script: str = SCRIPT, logs: dict[str, str] | None = None, **changed_claims) -> Path:
    """Write a submission folder; by default nothing in it is wrong."""
    folder.mkdir(parents=True)
    (folder / "train_gpt.py").write_text(script)
    (folder / "README.md").write_text("# Sample\n")
    (folder / "submission.json").write_text(json.dumps(claims(**changed_claims)))
    for name, text in (logs or {f"train_seed{seed}.log": log(seed, script=script) for seed in LOSSES}).items():
        (folder / name).write_text(text)
    return folder
