"""Mixtral and Mamba through the commands, from a folder to a folder; --keep and --bits as a user types them."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from stacked_model import random_stacked
from test_carried_tokenizer import TEXT, VOCAB, write_tokenizer

import quantlab
from quantlab.artifact.manifest import RawTensor
from quantlab.cli.main import run
from quantlab.models.weights import is_matrix

transformers = pytest.importorskip("transformers", minversion="5")
FACTORY = f"{Path(__file__).with_name('stacked_model.py')}:factory"
QUICK = ["--calib-tokens", "1024", "--calib-seq-len", "64", "--effort", "fast", "--device", "cpu"]
SIZES = {"vocab_size": VOCAB, "hidden_size": 128, "num_hidden_layers": 2, "bos_token_id": 256, "eos_token_id": 256}
MIXTRAL = SIZES | {"intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
FAMILIES: dict[str, tuple[Any, float]] = {
    "mixtral": (transformers.MixtralConfig(**MIXTRAL, num_experts_per_tok=1, max_position_embeddings=1024), 0.99),
    "mamba": (transformers.MambaConfig(**SIZES, state_size=16), 0.93),  # A_log is large beside matrices of 128 columns
}
"""Config of a toy, and the least share of its weights that is quantized."""
pytestmark = pytest.mark.usefixtures("one_thread")


def saved(folder: Path, config: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and min(parameter.shape[-2:]) > 16:
                    parameter.normal_(0, (3 if "experts" in name else 1) * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    """Return logits of a folder as a user of transformers gets them; nothing may be missing or unexpected."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    return model.eval()(torch.arange(60).view(2, 30)).logits


@pytest.mark.parametrize("family", ["mixtral", pytest.param("mamba", marks=pytest.mark.slow)])
def test_pack_eval_and_unpack(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, share = FAMILIES[family]
    saved(tmp_path / "model", config)
    Path("text.txt").write_bytes(4 * TEXT)
    assert run(["pack", "model", "--budget", "260kB", "-o", "m.qlab", *QUICK]) == 0
    report = json.loads(Path("m.report.json").read_text())
    coded = sum(math.prod(t["shape"]) for t in report["tensors"]) / report["n_params"]
    assert coded >= share
    assert f"quantized {100 * coded:.2f} % of the weights" in capsys.readouterr().out
    assert run(["eval", "m.qlab", "--text", "text.txt", "--against", "model", "--json"]) == 0
    against = json.loads(capsys.readouterr().out)["against"]
    assert 0 < against["kl_mean"] < 0.2
    assert run(["unpack", "m.qlab", "-o", "out", "--like", "model"]) == 0
    with torch.no_grad():
        wanted = quantlab.load("m.qlab").model(torch.arange(60).view(2, 30))
    torch.testing.assert_close(logits_of(tmp_path / "out"), wanted, atol=2e-5, rtol=2e-5)
    assert not torch.equal(logits_of(tmp_path / "model"), wanted)
    manifest = quantlab.open_artifact("m.qlab").manifest
    raw = {t.name for t in manifest.tensors if isinstance(t, RawTensor)}
    if family == "mamba":
        assert {f"backbone.layers.{n}.mixer.{name}" for n in (0, 1) for name in ("conv1d.weight", "D")} <= raw
        first, second = (f"backbone.layers.{n}.mixer.A_log" for n in (0, 1))  # equal before any training
        assert first in raw and manifest.aliases == {second: first}
    else:
        experts = [t["name"] for t in report["tensors"] if ".experts." in t["name"]]
        assert len(experts) == 2 * 2 * 4 and "model.layers.1.mlp.experts.down_proj.3" in experts


@pytest.mark.parametrize(
    "config",
    [
        transformers.MambaConfig(hidden_size=768, num_hidden_layers=2, vocab_size=50280),
        transformers.MixtralConfig(hidden_size=1024, intermediate_size=3584, num_hidden_layers=2, vocab_size=32000),
    ],
)
def test_at_a_usual_width_nearly_every_weight_is_quantized(config: Any) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    sizes = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        matrix = parameter.reshape(-1, *parameter.shape[-2:])[0] if parameter.ndim == 3 else parameter
        sizes[is_matrix(name, matrix)] += parameter.numel()
    assert sizes[True] > 0.98 * sum(sizes.values())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stacked") / "m.pt"
    torch.save(random_stacked().state_dict(), path)
    return path


def test_keep_and_bits_are_options_of_the_commands(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "QUANTLAB_RUNS", "")
    common = [str(checkpoint), "--model", FACTORY, "--keep", "conv.*"]
    random = ["--calib", "random", "--calib-tokens", "1024", "--calib-seq-len", "64"]
    assert run(["calibrate", *common, *random, "-o", "s.safetensors"]) == 0
    assert "never reached, so they have the mean statistics of their siblings: experts.3" in capsys.readouterr().out
    pack = ["pack", *common, "--budget", "70kB", "--stats", "s.safetensors", "--effort", "fast"]
    assert run([*pack, "-o", "m.qlab", "--bits", "*=8", "--bits", "experts.?=4"]) == 0
    assert "rounded by the mean of their siblings' statistics: experts.3" in capsys.readouterr().out
    widths = {t["name"]: t["width_bits"] for t in json.loads(Path("m.report.json").read_text())["tensors"]}
    assert widths.keys() == {"emb.weight", *(f"experts.{n}" for n in range(4))}
    assert all(widths[f"experts.{n}"] == 4 for n in range(4)) and widths["emb.weight"] > 4
    for options, message in [
        (["--keep", "nothing*"], "keep nothing* matches none of the tensors"),
        (["--bits", "conv.*=5"], "bits conv.* matches none of the tensors"),
        (["--bits", "experts"], "--bits must look like '*.mlp.*=4', got 'experts'"),
        (["--bits", "experts=x"], "--bits must look like"),
        (["--bits", "*=4", "--bits", "*=5"], "--bits * is given twice"),
        (["--bits", "*=3"], "bits *=3: the widest of widths must be 4 bits or more"),
    ]:
        assert run([*pack, "-o", "n.qlab", *options]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert message in line
    assert not Path("n.qlab").exists()
