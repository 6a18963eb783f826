"""The kernels on a GPU: first against float64, then timed beside floors and peers of the same card and run.

    .venv/bin/python benchmarks/kernels.py            # prints a table, saves results/kernels_<card>.json

Times are medians of CUDA events over RUNS launches, after a warm-up; inputs rotate through copies that exceed the L2 cache
together. Floors: bytes that must move over the bandwidth of a copy, measured first. Peers: the reference implementation under
torch.compile, cuBLAS in bfloat16 on decoded weights, numpy and numba for the code stream. It needs a GPU: without one it says
so and does nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from coder import synthetic
from machine import ROOT, machine
from torch import Tensor

from quantlab.coding import rans, rans_device, rans_numba
from quantlab.coding.frequency_tables import fit_tables
from quantlab.coding.rans import lanes_for
from quantlab.kernels.check import check_kernels, sample
from quantlab.kernels.dequant_matmul import dequant_matmul, input_gradient
from quantlab.kernels.fake_quant import fake_quant, fake_quant_ref
from quantlab.kernels.gptq_block import gptq_block, gptq_block_ref
from quantlab.kernels.packed import Packed
from quantlab.kernels.softcap_cross_entropy import softcap_cross_entropy, softcap_cross_entropy_ref
from quantlab.kernels.unpack_weights import unpack, unpack_ref

RUNS = 50
ROTATED_BYTES = 256 << 20
"""Bytes of all copies of an input: five times the L2 cache of an H100."""
Row = dict[str, Any]


def time_ms(call: Callable[[int], Any], device: torch.device, runs: int = RUNS) -> float:
    """Return the median time of call(0), call(1), ... in milliseconds, after a tenth as many to warm up."""
    for i in range(max(runs // 10, 2)):
        call(i)
    if device.type != "cuda":
        starts = [(perf_counter(), call(i))[0] for i in range(runs)] + [perf_counter()]
        return 1e3 * median(np.diff(starts))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    torch.cuda.synchronize(device)
    marks[0].record()
    for i, mark in enumerate(marks[1:]):
        call(i)
        mark.record()
    torch.cuda.synchronize(device)
    return median(a.elapsed_time(b) for a, b in pairwise(marks))


def copies(tensor: Tensor, rotated: int) -> list[Tensor]:
    """Return copies of a tensor, enough of them to exceed the cache."""
    return [tensor.clone() for _ in range(max(2, rotated // max(tensor.nbytes, 1)))]


class Bench:
    """One device: its floors, and rows of results."""

    def __init__(self, device: torch.device, *, scale: int = 1, runs: int = RUNS) -> None:
        self.device, self.scale, self.runs = device, scale, runs
        self.rotated = ROTATED_BYTES // scale
        self.bytes_per_ms = self._copy_speed()

    def _copy_speed(self) -> float:
        """Return the bytes that a copy reads and writes in a millisecond."""
        source = torch.empty(self.rotated, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.time(lambda i: target.copy_(source))

    def time(self, call: Callable[[int], Any]) -> float:
        return time_ms(call, self.device, self.runs)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Apply torch.compile where it has a back end for the device."""
        return torch.compile(function, dynamic=False) if self.device.type == "cuda" else function

    def packed_copies(self, packed: Packed) -> list[Packed]:
        return [replace(packed, words=words) for words in copies(packed.words, self.rotated)]

    def row(self, kernel: str, case: str, ms: float, moved: int, peers: dict[str, float]) -> Row:
        """Return a result. At least `moved` bytes must be read or written: `of_floor` is 1 at the speed of a copy."""
        floor = moved / self.bytes_per_ms
        return {"kernel": kernel, "case": case, "ms": ms, "floor_ms": floor, "of_floor": floor / ms, "peers_ms": peers}

    def unpack(self) -> Iterator[Row]:
        side = 8192 // self.scale
        reference = self.compiled(unpack_ref)
        for bits in (3, 4, 5, 6, 7, 8):
            packed, _ = sample(side, side, bits, self.device)
            inputs = self.packed_copies(packed)
            ms = self.time(lambda i, p=inputs: unpack(p[i % len(p)], dtype=torch.bfloat16))
            peers = {"compiled reference": self.time(lambda i, p=inputs: reference(p[i % len(p)], dtype=torch.bfloat16))}
            yield self.row("unpack", f"{bits} bits, {side} x {side} to bf16", ms, packed.nbytes + 2 * side * side, peers)

    def dequant_matmul(self) -> Iterator[Row]:
        side = 8192 // self.scale
        for bits in (5, 6):
            packed, weight = sample(side, side, bits, self.device)
            inputs, decoded = self.packed_copies(packed), copies(weight.bfloat16().to(self.device), self.rotated)
            for rows in (1, 4, 16, 64, 4096 // self.scale):
                x = torch.randn(rows, side, device=self.device, dtype=torch.bfloat16)
                ms = self.time(lambda i, x=x, p=inputs: dequant_matmul(x, p[i % len(p)]))
                peers = {
                    "cuBLAS bf16": self.time(lambda i, x=x, d=decoded: F.linear(x, d[i % len(d)])),
                    "unpack, then cuBLAS": self.time(
                        lambda i, x=x, p=inputs: F.linear(x, unpack(p[i % len(p)], dtype=torch.bfloat16))
                    ),
                }
                moved = packed.nbytes + 2 * 2 * rows * side
                yield self.row("dequant_matmul", f"{bits} bits, {rows} rows, {side} x {side}", ms, moved, peers)

    def input_gradient(self) -> Iterator[Row]:
        """Time the gradient to the input of packed weights, as adapters need it, for the rows of a training batch."""
        side, rows = 8192 // self.scale, 4096 // self.scale
        packed, weight = sample(side, side, 5, self.device)
        inputs, decoded = self.packed_copies(packed), copies(weight.bfloat16().to(self.device), self.rotated)
        grad = torch.randn(rows, side, device=self.device, dtype=torch.bfloat16)
        ms = self.time(lambda i: input_gradient(grad, inputs[i % len(inputs)]))
        peers = {"cuBLAS bf16": self.time(lambda i: grad @ decoded[i % len(decoded)])}
        moved = packed.nbytes + 2 * 2 * rows * side
        yield self.row("input_gradient", f"5 bits, {rows} rows, {side} x {side}", ms, moved, peers)

    def fake_quant(self) -> Iterator[Row]:
        side = 8192 // self.scale
        weights = copies(torch.randn(side, side, device=self.device), self.rotated)
        row, column = (torch.rand(side, device=self.device) + 0.1 for _ in range(2))
        ms = self.time(lambda i: fake_quant(weights[i % len(weights)], row, column))
        reference = self.compiled(fake_quant_ref)
        peers = {"compiled reference": self.time(lambda i: reference(weights[i % len(weights)], row, column))}
        yield self.row("fake_quant", f"{side} x {side} float32", ms, 2 * weights[0].nbytes, peers)

    def softcap_cross_entropy(self) -> Iterator[Row]:
        """Time forward and backward pass; memory is the peak above the logits."""
        tokens, vocab = 32768 // self.scale, 8192 // self.scale
        logits = torch.randn(tokens, vocab, device=self.device, dtype=torch.bfloat16).requires_grad_()
        targets = torch.randint(0, vocab, (tokens,), device=self.device)
        reference = self.compiled(softcap_cross_entropy_ref)
        ms, peak = self._both_ways(softcap_cross_entropy, logits, targets)
        reference_ms, reference_peak = self._both_ways(reference, logits, targets)
        moved = 3 * logits.nbytes  # read, read again, gradient written
        row = self.row("softcap_cross_entropy", f"{tokens} x {vocab} bf16", ms, moved, {"compiled reference": reference_ms})
        yield row | {"peak_bytes": peak, "peak_bytes_reference": reference_peak}

    def _both_ways(self, function: Callable[..., Tensor], logits: Tensor, targets: Tensor) -> tuple[float, int]:
        def step(i: int) -> None:
            logits.grad = None
            function(logits, targets, 30.0).mean().backward()  # type: ignore[no-untyped-call]

        ms = self.time(step)
        if self.device.type != "cuda":
            return ms, 0
        logits.grad = None
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        step(0)
        return ms, torch.cuda.max_memory_allocated(self.device) - before

    def rans_decode(self) -> Iterator[Row]:
        """Time a whole code stream, from bytes on the host to codes on the card, beside both readers on a CPU."""
        codes, contexts = synthetic("path", 36 // self.scale or 1)
        sets = [fit_tables(sum(rans_numba.histogram(*pair) for pair in zip(codes, contexts, strict=True)))]
        weights = sum(code.size for code in codes)
        lanes = lanes_for(weights * 3.5 / 8)
        stream = rans_numba.encode(codes, contexts, sets, lanes)
        got = rans_device.decode(stream, contexts, sets, lanes, self.device)
        if not all(np.array_equal(a.cpu().numpy(), b) for a, b in zip(got, codes, strict=True)):
            raise SystemExit("error: rans_decode gives other codes than were encoded")
        few = min(self.runs, 5)
        ms = time_ms(lambda i: rans_device.decode(stream, contexts, sets, lanes, self.device), self.device, few)
        peers = {}
        for name, decode in (("numpy", rans.decode), ("numba", rans_numba.decode)):
            start = perf_counter()
            decode(stream, contexts, sets, lanes)
            peers[name] = 1e3 * (perf_counter() - start)
        yield self.row("rans_decode", f"{weights:,} weights, {lanes} lanes", ms, len(stream) + 2 * weights, peers) | {
            "weights_per_s": weights / ms * 1e3
        }

    def gptq_block(self) -> Iterator[Row]:
        """Time sixteen blocks of 128 columns at once, beside the reference on the same device and on the CPU's cores."""
        g = torch.Generator().manual_seed(0)
        shape = (16 // self.scale or 1, 128 // self.scale, 2048 // self.scale)
        w, steps = torch.randn(shape, generator=g), torch.full(shape, 0.25)
        U = torch.triu(0.1 * torch.randn(shape[0], shape[1], shape[1], generator=g)) + torch.eye(shape[1])
        here = [t.to(self.device) for t in (w, steps, U)]
        ms = self.time(lambda i: gptq_block(here[0], here[1], 31, here[2]))

        def on_cpu(i: int) -> None:
            for n in range(shape[0]):
                gptq_block_ref(w[n], steps[n], 31, U[n])

        peers = {f"reference on {torch.get_num_threads()} CPU threads": time_ms(on_cpu, torch.device("cpu"), min(self.runs, 5))}
        yield self.row("gptq_block", "x".join(map(str, shape)), ms, 4 * w.nbytes, peers)

    def all(self) -> Iterator[Row]:
        for part in (
            self.unpack, self.dequant_matmul, self.input_gradient, self.fake_quant, self.softcap_cross_entropy,
            self.rans_decode, self.gptq_block,
        ):  # fmt: skip
            yield from part()


def show(row: Row) -> None:
    peers = ", ".join(f"{name} {ms:.3f} ms ({ms / row['ms']:.2f}x)" for name, ms in row["peers_ms"].items())
    print(f"{row['kernel']:<22} {row['case']:<34} {row['ms']:9.3f} ms, floor {row['floor_ms']:.3f} ms; {peers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py needs a GPU: nothing was measured")
        return
    device, card = torch.device("cuda"), torch.cuda.get_device_name()
    checks = check_kernels(device)
    if wrong := [check for check in checks if not check.ok]:
        sys.exit(f"error: {wrong[0]} is wrong on {card}: no times")
    bench = Bench(device)
    print(f"{card}: a copy moves {bench.bytes_per_ms / 1e9:.2f} TB/s, read and written")
    rows = []
    for row in bench.all():
        show(row)
        rows.append(row)
    out = arguments.json or ROOT / f"benchmarks/results/kernels_{card.replace(' ', '_')}.json"
    record = {"machine": machine(), "card": card, "copy_bytes_per_ms": bench.bytes_per_ms}
    out.write_text(json.dumps(record | {"checks": [check.to_dict() for check in checks], "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
