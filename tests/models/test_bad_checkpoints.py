"""Checkpoints that cannot be read, each one clear line with what to do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import quantlab
from quantlab.cli.main import run
from quantlab.errors import CheckpointError, ConfigError, DataError, QuantlabError
from quantlab.text.tokenizer import Tokenizer


def refused(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, str]:
    """Pack it; return the error and its hint."""
    assert run(["pack", str(path), "--budget", "1MB", "-o", str(path.parent / "m.qlab"), *options]) in (1, 2)
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ") and hint.startswith("hint: ") and error.isprintable()
    return error, hint


def test_a_whole_pickled_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(8, 8), tmp_path / "m.pt")
    error, hint = refused(tmp_path / "m.pt", capsys)
    assert "holds more than tensors, numbers, strings and containers, namely torch.nn.modules.linear.Linear" in error
    assert "save the state dict of the model alone" in hint


def test_a_missing_shard_of_a_plain_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model-1.safetensors")
    places = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    error, hint = refused(folder, capsys)
    assert "shard model-2.safetensors is missing (2 shards are listed)" in error and "fetch" in hint


@pytest.mark.parametrize("name", ["../m.safetensors", "/dev/zero", "sub/m.safetensors"])
def test_an_index_may_not_leave_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        save_file({"a": torch.ones(2)}, place / "m.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="is no file of the folder"):
        quantlab.load(folder)


def test_a_tokenizer_of_another_vocabulary(toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["pack", str(toy_checkpoint), "--budget", "80kB", "-o", str(tmp_path / "m.qlab"), "--tokenizer", "byte260"]
    assert run(asked) == 1
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert "tokenizer byte260 has 260 pieces, the model has 400" in error
    assert hint == "hint: name the tokenizer that the model was trained with"


def test_an_architecture_that_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.randn(80, 80)}, tmp_path / "m.pt")
    error, hint = refused(tmp_path / "m.pt", capsys)
    assert "no model matches" in error and "--model path/to/file.py:factory" in hint


def test_a_tokenizer_without_exact_bytes(toy_checkpoint: Path, tmp_path: Path) -> None:
    content = {"model": {"type": "WordPiece", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "ByteLevel"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="its bytes cannot be counted exactly: the model is WordPiece, must be BPE") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint == "use a byte-level BPE"


FOLDERS = {
    "remote code": (
        {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Model"}},
        "own Python code, which is not run",
    ),
    "unknown": ({"model_type": "mine"}, "has no causal language model of type 'mine'"),
    "encoder-decoder": ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder with a decoder"),
    "quantized": ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    "another config": ({"model_type": "llama", "vocab_size": 4096}, "they do not belong together"),
    "more layers": ({"model_type": "llama", "num_hidden_layers": 999}, "num_hidden_layers 999, but there are 1 tensors"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_transformers(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", minversion="5")
    config, message = FOLDERS[kind]
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(64)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 1} | config))
    error, _ = refused(folder, capsys)
    assert message in error


def test_a_folder_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="transformers, which is not installed") as caught:
        quantlab.load(tmp_path)
    assert isinstance(caught.value, QuantlabError) and caught.value.hint == 'pip install "transformers>=5,<6"'
