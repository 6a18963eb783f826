"""transformers loads a folder with packed weights through its own registry of quantizers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_huggingface import IDS, packed, saved

import quantlab
from quantlab.errors import CheckpointError, ConfigError, FormatError
from quantlab.models import huggingface_quantizer
from quantlab.models.huggingface_quantizer import TENSOR, decoded, register

transformers = pytest.importorskip("transformers", minversion="5")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifact of a tied Llama, m.qlab, and its packed folder, out."""
    folder = tmp_path_factory.mktemp("llama")
    packed(saved(folder / "model", "llama_tied", torch.bfloat16), folder / "m.qlab")
    quantlab.unpack(folder / "m.qlab", folder / "out", packed=True)
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def check(folder: Path) -> None:
    """The packed folder gives the model of the plain one, no key is missing or left over, it is as small as the artifact."""
    register()
    model, found = transformers.AutoModelForCausalLM.from_pretrained(folder / "out", output_loading_info=True)
    assert not any(found.values())
    quantlab.unpack(folder / "m.qlab", folder / "plain")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "plain")
    assert model.dtype == plain.dtype == torch.bfloat16 and torch.equal(logits(model), logits(plain))
    size = (folder / "out" / "model.safetensors").stat().st_size
    assert 0 < size - (folder / "m.qlab").stat().st_size < 300
    model.save_pretrained(folder / "again")  # it is a plain model now
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(folder / "again")), logits(plain))
    assert "quantization_config" not in json.loads((folder / "again" / "config.json").read_text())


def test_tied_weights(llama: Path) -> None:
    check(llama)


def test_weights_of_conv1d(tmp_path: Path) -> None:
    packed(saved(tmp_path / "model", "gpt2", torch.bfloat16), tmp_path / "m.qlab")
    quantlab.unpack(tmp_path / "m.qlab", tmp_path / "out", packed=True)
    check(tmp_path)


def test_a_damaged_artifact_is_not_loaded(llama: Path, tmp_path: Path) -> None:
    register()
    folder = shutil.copytree(llama / "out", tmp_path / "out")
    data = load_file(folder / "model.safetensors")[TENSOR].clone()
    data[len(data) // 2] ^= 1
    save_file({TENSOR: data}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="issues during automatic conversion"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(llama / "model"))
    with pytest.raises(FormatError, match="altered or damaged"):
        decoded(data, model)


def test_an_artifact_of_another_model_is_named(llama: Path) -> None:
    data = load_file(llama / "out" / "model.safetensors")[TENSOR]
    config = transformers.AutoConfig.from_pretrained(llama / "model")
    config.intermediate_size = 64
    with pytest.raises(CheckpointError, match=r"mlp.* has shape \[.*\], the model's has \["):
        decoded(data, transformers.AutoModelForCausalLM.from_config(config))
    config.num_hidden_layers = 3
    with pytest.raises(CheckpointError, match="model.layers.2.* is missing"):
        decoded(data, transformers.AutoModelForCausalLM.from_config(config))
    with pytest.raises(CheckpointError, match=r"must be uint8 \[N\]"):
        decoded(data.float(), transformers.AutoModelForCausalLM.from_config(config))


def test_only_models_of_transformers_have_packed_folders(toy_checkpoint: Path, tmp_path: Path, llama: Path) -> None:
    quick = {"calib_tokens": 512, "calib_seq_len": 64, "effort": "fast", "device": "cpu"}
    quantlab.pack(toy_checkpoint, budget=80_000, output=tmp_path / "m.qlab", **quick)
    with pytest.raises(ConfigError, match="was not packed from a model of transformers"):
        quantlab.unpack(tmp_path / "m.qlab", tmp_path / "out", packed=True)
    with pytest.raises(ConfigError, match="a packed folder needs an output, and no like"):
        quantlab.unpack(llama / "m.qlab", tmp_path / "out", packed=True, like=llama / "model")


def test_without_transformers_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers.quantizers.auto", None)
    with pytest.raises(ConfigError, match="transformers is not installed"):
        huggingface_quantizer.register.__wrapped__()
