"""quantlab inspect of checkpoints: what pack would do with each tensor, and what cannot be packed, in 80 columns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import quantlab
from quantlab.artifact.manifest import RawTensor
from quantlab.cli.main import run
from quantlab.errors import CheckpointError
from quantlab.jobs.inspect import inspect_checkpoint

pytestmark = pytest.mark.usefixtures("a_terminal_of_80_columns")


@pytest.fixture
def a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


QUICK: dict[str, Any] = {"calib_tokens": 512, "calib_seq_len": 64, "effort": "fast", "device": "cpu"}


def saved(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.npz"])
def test_a_checkpoint_of_the_challenge(name: str, toy_state: dict[str, Tensor], tmp_path: Path) -> None:
    """What it says of each tensor is what pack does."""
    path = saved(toy_state, tmp_path / name)
    found = inspect_checkpoint(path)
    assert (found.adapter, found.problem, found.bytes) == ("challenge", "", path.stat().st_size)
    assert {t.name: (t.shape, t.dtype) for t in found.tensors} == {
        name: (tuple(t.shape), "float32") for name, t in toy_state.items()
    }
    quantlab.pack(path, budget=80_000, output=tmp_path / "m.qlab", **QUICK)
    stored = quantlab.open_artifact(tmp_path / "m.qlab").manifest.tensors
    assert {t.name for t in found.tensors if t.packing == "coded"} == {t.name for t in stored if not isinstance(t, RawTensor)}
    assert {t.packing for t in found.tensors} == {"coded", "vector", "small"}
    assert found.weights() == sum(t.numel() for t in toy_state.values())


def test_text_and_json_say_the_same(toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(toy_checkpoint), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert run(["inspect", str(toy_checkpoint)]) == 0
    out = capsys.readouterr().out
    assert f"{about['parameters']:,} parameters in {len(about['tensors'])} tensors" in out
    assert f"{about['coded_parameters']:,} weights ({100 * about['coded_parameters'] / about['parameters']:.2f} %)" in out
    assert "vocab size 400" in out and about["about"]["vocab_size"] == 400
    assert all(len(line) <= 80 for line in out.splitlines()[: len(about["tensors"]) + 1])


@pytest.mark.parametrize("width", [60, 80])
def test_an_artifact_s_tensors_have_their_bytes_and_fit(
    toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    report = quantlab.pack(toy_checkpoint, budget=80_000, output=tmp_path / "m.qlab", **QUICK)
    about = quantlab.open_artifact(tmp_path / "m.qlab").describe()
    coded = {t.name: t.code_bytes for t in report.tensors}
    assert {t["name"]: t["bytes"] for t in about["tensors"] if t["name"] in coded} == coded  # as the writer counted them
    assert all(t["bytes"] > 0 for t in about["tensors"])
    assert run(["inspect", str(tmp_path / "m.qlab")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    name, size = next(iter(coded.items()))
    assert any(name[-12:] in line and line.endswith(f"{size:,} B") for line in lines)
    assert ("left out at this width: kind" in lines) == (width == 60)


HOSTILE = "\x1b[31m\u202eevil\n" + "layers.0." * 20 + "weight"


def test_names_are_shown_in_80_columns_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {HOSTILE: torch.randn(80, 80), "ids": torch.arange(5), "scalar": torch.tensor(1.0)}
    path = saved(state, tmp_path / "odd.pt")
    assert run(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() and len(line) <= 80 for line in out.splitlines())
    assert "…" in out and "cannot be packed as it is: no model matches" in out and "hint: " in out
    assert run(["inspect", str(path), "--json"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and {t["name"] for t in json.loads(text)["tensors"]} == state.keys()


def test_equal_tensors_are_aliases(toy_state: dict[str, Tensor], tmp_path: Path) -> None:
    name = "blocks.0.attn.c_q.weight"
    state = toy_state | {"blocks.1.attn.c_q.weight": toy_state[name].clone()}
    found = inspect_checkpoint(saved(state, tmp_path / "m.pt"))
    assert {t.name: t.alias_of for t in found.tensors if t.alias_of} == {"blocks.1.attn.c_q.weight": name}
    assert found.weights() == sum(t.numel() for t in state.values()) - state[name].numel()


def test_a_factory_s_model(toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from quantlab.models.challenge import config_from_state_dict, gpt_from_state_dict\n"
        "def build(state):\n    return gpt_from_state_dict(state, config_from_state_dict(state))\n"
    )
    assert inspect_checkpoint(toy_checkpoint, model=f"{tmp_path}/mine.py:build").adapter == "file"


def test_what_cannot_be_read_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for path, message in (
        (tmp_path / "junk.pt", "is damaged"),
        (tmp_path / "x.gguf", "must be .pt, .pth, .bin"),
        (tmp_path / "none.pt", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            inspect_checkpoint(path)
        assert run(["inspect", str(path)]) == 1
    assert capsys.readouterr().out == ""


def test_a_model_option_for_an_artifact_is_refused(toy_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    quantlab.pack(toy_checkpoint, budget=80_000, output=tmp_path / "m.qlab", **QUICK)
    assert run(["inspect", str(tmp_path / "m.qlab"), "--model", "x.py:f"]) == 2
    assert "is an artifact" in capsys.readouterr().err


transformers = pytest.importorskip("transformers", minversion="5")


def llama(folder: Path, **changes: Any) -> Path:
    values = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.LlamaConfig(**values, num_key_value_heads=1, **changes)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).bfloat16().save_pretrained(folder)
    return folder


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model", tie_word_embeddings=True)
    (folder / "tokenizer.json").write_text("{}")
    found = inspect_checkpoint(folder)
    assert (found.adapter, found.about["model_type"], found.tokenizer) == ("huggingface", "llama", {"tokenizer.json": 2})
    assert found.bytes == (folder / "model.safetensors").stat().st_size
    assert {t.dtype for t in found.tensors} == {"bfloat16"}
    assert {t.name: t.alias_of for t in found.tensors if t.alias_of} == {"lm_head.weight": "model.embed_tokens.weight"}
    loaded = quantlab.load(folder)
    assert found.weights() == sum(t.numel() for t in loaded.state.values()) < sum(t.weights for t in found.tensors)


@pytest.mark.parametrize(
    ("config", "model", "message"),
    [
        (lambda: transformers.BertConfig(**BERT), "BertForMaskedLM", "only causal language models can be packed"),
        (lambda: transformers.T5Config(**T5), "T5ForConditionalGeneration", "t5 is an encoder with a decoder"),
    ],
)
def test_encoders_are_shown_with_the_reason(
    config: Any, model: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(transformers, model)(config()).save_pretrained(tmp_path / "model")
    found = inspect_checkpoint(tmp_path / "model")
    assert found.adapter == "none" and message in found.problem and "predicts the next token" in found.hint
    assert found.tensors and {t.packing for t in found.tensors} == {"unknown"}
    asked = ["--budget", "1MB", "-o", str(tmp_path / "m.qlab")]
    assert run(["pack", str(tmp_path / "model"), *asked]) == 1
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ") and message in error and hint.startswith("hint: ")


BERT = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
T5 = {"vocab_size": 256, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 2}


def test_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001.safetensors"}}))
    with pytest.raises(CheckpointError, match="shard model-00001.safetensors is missing"):
        inspect_checkpoint(folder)


def test_without_transformers_the_files_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llama(tmp_path / "model")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    found = inspect_checkpoint(folder)
    assert "transformers, which is not installed" in found.problem and "pip install" in found.hint
    assert "model.embed_tokens.weight" in {t.name for t in found.tensors}
