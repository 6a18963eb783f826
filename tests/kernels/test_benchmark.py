"""benchmarks/kernels.py runs: on a CPU at toy size, by reference implementations; its figures are of a GPU alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "part", ["unpack", "dequant_matmul", "input_gradient", "fake_quant", "softcap_cross_entropy", "gptq_block"]
)
def test_every_part_measures_something(part, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kernels as benchmark

    bench = benchmark.Bench(torch.device("cpu"), scale=64, runs=2)
    rows = list(getattr(bench, part)())
    assert all(row["ms"] > 0 and row["floor_ms"] > 0 and min(row["peers_ms"].values()) > 0 for row in rows)
    benchmark.show(rows[0])
    assert part in capsys.readouterr().out


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, BENCHMARKS / "kernels.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "benchmarks/kernels.py needs a GPU: nothing was measured\n"
