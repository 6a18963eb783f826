"""Folders of three kinds of models through pack, eval and unpack, as benchmarks/folders.py runs them, on fewer tokens."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from folders import BITS, LEAST_CODED, round_trip

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "mixtral"])  # all of them: benchmarks/folders.py, half an hour
def test_a_folder_comes_back_as_a_folder(family: str, tmp_path: Path) -> None:
    found = round_trip(family, tmp_path, tokens=4096)
    assert found["coded_share"] >= LEAST_CODED and found["file_bytes"] <= found["budget_bytes"]
    assert 0.98 * found["budget_bytes"] < found["file_bytes"] < found["weights"] * (BITS + 0.5) / 8
    assert 0 < found["kl"] < 0.2
