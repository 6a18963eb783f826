"""What a user would pick instead: bytes as each peer stores them and after zstd, KL from the float model, seconds.

    .venv/bin/python benchmarks/peers.py CKPT.pt --tokenizer T.model --text HELD_OUT.jsonl.zst --calib text:TRAIN.jsonl.zst
    .venv/bin/python benchmarks/peers.py --demo demo

Every peer quantizes the matrices that quantlab would; the other tensors are float16. A peer whose package is not installed is
named and left out: nncodec (which needs pandas and torchvision), gguf, hqq. The Python package gguf reads K-quants and cannot
write them (llama.cpp does), so its simple types stand here. quantlab packs at the bytes of each peer after zstd: "KL x" is the
peer's KL over quantlab's there.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import zstandard
from machine import ROOT, machine
from record_search import Remembering, with_weights
from torch import Tensor

from quantlab.artifact.reader import open_artifact
from quantlab.calib.sources import CalibrationConfig
from quantlab.calib.statistics import write_statistics
from quantlab.errors import BudgetError
from quantlab.evaluation.divergence import measure_divergence
from quantlab.jobs.calibrate import measure_statistics
from quantlab.jobs.evaluate import evaluation_tokens
from quantlab.jobs.pack import pack
from quantlab.jobs.tokenizers import TOKENIZER_NAME
from quantlab.jobs.train import VAL_NAME
from quantlab.models.loading import load, load_tokenizer
from quantlab.models.weights import split_state
from quantlab.trainer.training_loop import MODEL_NAME

ZSTD_LEVEL = 19
NNCODEC_QP = (-20, -26, -32, -38)
GGUF_TYPES = ("Q4_0", "Q5_0", "Q8_0")
HQQ_BITS = (2, 3, 4, 8)
GROUP = 64

Quantized = tuple[Tensor, list[bytes]]
"""The matrix that a reader gets, float32 [O, I], and the arrays that are stored for it."""


def row_int8(w_OI: Tensor) -> Quantized:
    """One scale a row, codes to ±127: what most tools do for 8 bits."""
    scale_O = (w_OI.abs().amax(1) / 127).clamp_min(1e-8).half()
    q_OI = (w_OI / scale_O.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return q_OI.float() * scale_O.float()[:, None], [q_OI.numpy().tobytes(), scale_O.numpy().tobytes()]


def gguf_type(name: str) -> Callable[[Tensor], Quantized]:
    """Return the quantizer of a simple GGUF type; rows must be a multiple of 32 long."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[name]

    def quantizer(w_OI: Tensor) -> Quantized:
        blocks = quantize(w_OI.numpy(), kind)
        return torch.from_numpy(dequantize(blocks, kind).copy()), [blocks.tobytes()]

    return quantizer


def hqq(bits: int) -> Callable[[Tensor], Quantized]:
    """Return half-quadratic quantization with groups of 64, its steps and zero points in float16."""
    from hqq.core.quantize import Quantizer

    def quantizer(w_OI: Tensor) -> Quantized:
        q, meta = Quantizer.quantize(
            w_OI.half(), nbits=bits, group_size=GROUP, axis=1, device="cpu", compute_dtype=torch.float32, bitpack=True
        )
        parts = [q, meta["scale"].half(), meta["zero"].half()]
        return Quantizer.dequantize(q, meta).float(), [part.contiguous().numpy().tobytes() for part in parts]

    return quantizer


def by_matrix(quantizer: Callable[[Tensor], Quantized], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], bytes]:
    """Return the state dict that a reader gets, and all stored bytes: matrices by a peer, other tensors in float16."""
    split = split_state(state)
    matrices, others = split.matrices, split.unquantized
    found, stored = {}, []
    for name, w_OI in matrices.items():
        found[name], parts = quantizer(w_OI)
        stored += parts
    for name, tensor in others.items():
        found[name] = tensor.half().float()
        stored.append(tensor.half().numpy().tobytes())
    return found, b"".join(stored)


def nncodec(qp: int) -> "Run":
    """Return ISO 15938-17 on the whole state dict, with dependent quantization; its stream is entropy coded."""
    from nncodec import nnc

    def run(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], bytes]:
        arrays = {name: tensor.float().numpy() for name, tensor in state.items()}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = str(Path(folder, "m.nnc"))
            stream = nnc.compress(arrays, bitstream_path=path, qp=qp, use_dq=True, return_bitstream=True, verbose=False)
            back = nnc.decompress(path)
        return {name: torch.from_numpy(np.asarray(back[name])).view_as(state[name]) for name in state}, bytes(stream)

    return run


Run = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], bytes]]


def peers() -> Iterator[tuple[str, Run]]:
    """Yield every peer that is installed, by name and setting; name the others."""
    yield "int8 by row", lambda state: by_matrix(row_int8, state)
    makers: dict[str, Callable[[], list[tuple[str, Run]]]] = {
        "gguf": lambda: [(f"GGUF {name}", _wrapped(gguf_type(name))) for name in GGUF_TYPES],
        "hqq": lambda: [(f"HQQ {bits} bit, groups of {GROUP}", _wrapped(hqq(bits))) for bits in HQQ_BITS],
        "nncodec": lambda: [(f"NNCodec qp {qp}", nncodec(qp)) for qp in NNCODEC_QP],
    }
    for package, make in makers.items():
        try:
            yield from make()
        except ImportError as error:
            print(f"{package} is left out: {error}", file=sys.stderr)


def _wrapped(quantizer: Callable[[Tensor], Quantized]) -> Run:
    return lambda state: by_matrix(quantizer, state)


def measure(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each peer: bytes, KL, seconds, and quantlab's KL at the peer's bytes after zstd."""
    loaded = load(arguments.checkpoint)
    tokenizer = load_tokenizer(arguments.tokenizer, loaded)
    shards = str(arguments.demo / VAL_NAME) if arguments.demo else None
    tokens = evaluation_tokens(arguments.text, shards, tokenizer)[: arguments.eval_tokens + 1]
    reference = Remembering(loaded.model)
    stats = folder / "statistics.safetensors"
    config = CalibrationConfig(source=arguments.calib, seq_len=arguments.seq_len, tokens=arguments.calib_tokens)
    write_statistics(stats, measure_statistics(loaded, config, tokenizer))

    def kl_of(state: dict[str, Tensor]) -> float:
        return measure_divergence(reference, with_weights(loaded, state), tokens, seq_len=arguments.seq_len).kl_mean

    for name, run in peers():
        start = perf_counter()
        state, stored = run(loaded.state)
        seconds = perf_counter() - start
        row = {"peer": name, "stored_bytes": len(stored), "kl": kl_of(state), "seconds": seconds}
        row["bytes"] = min(len(stored), len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(stored)))
        output = folder / "same.qlab"
        try:
            report = pack(
                loaded, budget=row["bytes"], output=output, stats=stats, tokenizer=tokenizer, effort="fast", force=True
            )
            row["quantlab_bytes"], row["quantlab_kl"] = report.total_bytes, kl_of(open_artifact(output).tensors())
            row["quantlab_seconds"] = report.timings_s["search"] + report.timings_s["verify"]
        except BudgetError as error:
            print(f"{name}: {error}", file=sys.stderr)
        yield row


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="instead of a checkpoint: the folder of make demo")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--text", type=Path, help="held-out text")
    parser.add_argument("--calib", default="self", help="source of quantlab's statistics; the peers use none")
    parser.add_argument("--calib-tokens", type=int, default=65536)
    parser.add_argument("--eval-tokens", type=int, default=61440)
    parser.add_argument("--seq-len", type=int, help="default 512, 256 for the demo")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if bool(arguments.demo) == bool(arguments.checkpoint and arguments.tokenizer and arguments.text):
        parser.error("either --demo DIR, or a checkpoint with --tokenizer and --text")
    if arguments.demo:
        arguments.checkpoint, arguments.tokenizer = arguments.demo / MODEL_NAME, arguments.demo / TOKENIZER_NAME
    arguments.seq_len = arguments.seq_len or (256 if arguments.demo else 512)
    arguments.json = arguments.json or ROOT / f"benchmarks/results/peers{'_demo' if arguments.demo else ''}.json"
    return arguments


def line(row: dict[str, Any]) -> str:
    """Return a row as text."""
    ours = f"{row['kl'] / row['quantlab_kl']:8.1f}" if "quantlab_kl" in row else "       -"
    return (
        f"{row['peer']:28} {row['stored_bytes']:>10,} {row['bytes']:>10,} {row['kl']:.5f} {row['seconds']:8.2f} s  KL x {ours}"
    )


def main() -> None:
    arguments = parse()
    about: dict[str, Any] = {"machine": machine(), "checkpoint": arguments.checkpoint.name, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(arguments, Path(folder)):
            about["rows"].append(row)
            print(line(row), flush=True)
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
