"""The README's block "From Python", run as it stands on a tiny model whose files have the names of the demo's."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_state
from fences import fences
from safetensors.torch import save_file

import quantlab
from quantlab.text.shards import write_shard
from quantlab.text.tokenizer import Tokenizer
from quantlab.trainer.model_config import GPTConfig

README = Path(__file__).resolve().parents[2] / "README.md"
TINY = GPTConfig(vocab_size=400, num_layers=1, model_dim=128, num_heads=2, num_kv_heads=1, mlp_hidden=384)
MOST_LINES = 12


def block() -> str:
    """Return the only block of Python in the README."""
    (fence,) = [fence for fence in fences(README) if fence.language == "python"]
    return fence.text


def test_the_block_is_short():
    assert len(block().splitlines()) <= MOST_LINES


@pytest.mark.slow
def test_the_block_runs_on_the_demo_s_files(
    tmp_path: Path, tokenizer: Tokenizer, python_sources: list[bytes], monkeypatch: pytest.MonkeyPatch, capsys, one_thread
):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    save_file(random_state(TINY), "demo/model.safetensors")
    Path("demo/tokenizer.model").write_bytes(tokenizer.model_bytes)
    write_shard("demo/val_000000.bin", tokenizer.encode_documents(python_sources[1:2]))

    names: dict[str, Any] = {}
    exec(block(), names)

    sizes = [
        int(size.replace(",", "")) for size in re.findall(r"^([\d,]+) bytes: BPB \d", capsys.readouterr().out, re.MULTILINE)
    ]
    assert sizes == [Path(f"demo/{budget}.qlab").stat().st_size for budget in ("150KB", "250KB")]
    assert 0 < 150_000 - sizes[0] + 1 < 300 and 0 < 250_000 - sizes[1] + 1 < 500
    assert names["weights"].keys() == quantlab.load("demo/model.safetensors").state.keys()
    assert all(torch.isfinite(tensor).all() for tensor in names["weights"].values())
