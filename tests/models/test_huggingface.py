"""Folders of transformers: loaded, packed, loaded again from the artifact, and written back as folders of the same kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import quantlab
from quantlab.artifact.manifest import RawTensor
from quantlab.calib.sources import sample_sequences
from quantlab.errors import CheckpointError, ConfigError, QuantlabError
from quantlab.models.loading import LoadedModel

transformers = pytest.importorskip("transformers", minversion="5")

BASE = {"vocab_size": 256, "max_position_embeddings": 64, "bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 0}
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = BASE | SIZES | {"intermediate_size": 256, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "llama_tied": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 32}),
    "gemma2": ("Gemma2Config", LLAMA | {"head_dim": 32, "sliding_window": 8}),
    "gpt2": ("GPT2Config", BASE | {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": ("OPTConfig", BASE | SIZES | {"ffn_dim": 256, "word_embed_proj_dim": 128}),
    "neox": ("GPTNeoXConfig", BASE | SIZES | {"intermediate_size": 256}),
    "phi3": ("Phi3Config", LLAMA),
    "mixtral": ("MixtralConfig", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mamba": ("MambaConfig", BASE | {"hidden_size": 128, "num_hidden_layers": 2, "state_size": 16}),
}
IDS = torch.arange(40).view(2, 20) * 5 % 256
QUICK = {"calib_tokens": 512, "calib_seq_len": 128, "effort": "fast", "device": "cpu"}
SMALL = ("llama_tied", "gpt2")
SAME_LOGITS = {"atol": 2e-5, "rtol": 2e-5}  # GPT-2's Conv1D adds in another order than a linear layer
pytestmark = pytest.mark.usefixtures("one_thread")


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Save a random model of a family, whose every weight matters."""
    name, values = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**values), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2 and min(parameter.shape) > 8:
                    parameter.normal_(0, parameter.shape[1] ** -0.5)
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def original(folder: Path) -> Any:
    """Load a folder as a user of transformers does; nothing may be missing or unexpected."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    return model.eval()


@torch.no_grad()
def logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(IDS)


def packed(folder: Path, output: Path, bits: float = 4) -> Path:
    """Pack to that many bits a weight."""
    weights = sum(tensor.numel() for tensor in quantlab.load(folder).state.values())
    quantlab.pack(folder, budget=int(weights * bits / 8) + 12_000, output=output, **QUICK)
    return output


@pytest.mark.parametrize("family", [pytest.param(n, marks=() if n in SMALL else pytest.mark.slow) for n in FAMILIES])
def test_a_folder_is_packed_loaded_again_and_written_as_a_folder(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", family)
    loaded = quantlab.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded), original(folder)(IDS).logits, **SAME_LOGITS)
    artifact = packed(folder, tmp_path / "m.qlab")
    again = quantlab.load(artifact)
    assert again.state.keys() == loaded.state.keys() and again.config == loaded.config
    assert not torch.equal(logits(again), logits(loaded))
    quantlab.unpack(artifact, tmp_path / "out", like=folder)
    with torch.no_grad():
        torch.testing.assert_close(original(tmp_path / "out")(IDS).logits, logits(again), **SAME_LOGITS)
    assert torch.equal(logits(quantlab.load(tmp_path / "out")), logits(again))
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert coded_share(artifact) >= (0.93 if family == "mamba" else 0.98)  # A_log is large beside so narrow matrices


def coded_share(artifact: Path) -> float:
    tensors = quantlab.open_artifact(artifact).manifest.tensors
    sizes = [(torch.Size(t.shape).numel(), isinstance(t, RawTensor)) for t in tensors]
    return sum(size for size, is_raw in sizes if not is_raw) / sum(size for size, _ in sizes)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma2", "opt", "neox"])
def test_samples_are_the_same_with_and_without_a_cache(family: str, tmp_path: Path) -> None:
    model: Any = quantlab.load(saved(tmp_path / "model", family)).model

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner(ids)

    assert hasattr(model, "new_cache")
    assert torch.equal(sample_sequences(model, 3, 24, bos_id=3), sample_sequences(Plain(), 3, 24, bos_id=3))


def test_what_is_known_of_a_model_comes_from_its_config(tmp_path: Path) -> None:
    loaded = quantlab.load(saved(tmp_path / "model", "llama_tied"))
    assert (loaded.bos_id, loaded.context_length, loaded.vocab_size) == (3, 64, 256)
    assert "lm_head.weight" not in loaded.state


def test_calibration_sequences_fit_into_the_context(tmp_path: Path) -> None:
    stats = quantlab.calibrate(saved(tmp_path / "model", "gpt2"), calib_tokens=512, calib_seq_len=512, device="cpu")
    assert stats.ids_NT.shape == (8, 64) and set(stats.ids_NT[:, 0].tolist()) == {3}


def test_an_evaluation_beyond_the_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seq_len is 65, but the model reads at most 64 tokens"):
        quantlab.evaluate(saved(tmp_path / "model", "llama_tied"), tokens="none", tokenizer="none", seq_len=65)


def test_shards_and_a_source_in_bfloat16(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama", torch.bfloat16, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    artifact = packed(folder, tmp_path / "m.qlab")
    quantlab.unpack(artifact, tmp_path / "out", like=folder)
    model = original(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    state, restored = quantlab.load(artifact).state, quantlab.load(tmp_path / "out").state
    assert all(torch.equal(state[name].bfloat16().float(), tensor) for name, tensor in restored.items())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama", max_shard_size="200KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"shard {shard.name} is missing"):
        quantlab.load(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama") / "model", "llama")


HOSTILE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.pop("model_type"), "has no model_type"),
    (lambda c: c.update(model_type="nonsense"), "no causal language model of type 'nonsense'"),
    (lambda c: c.update(model_type="nonsense", auto_map={"AutoModelForCausalLM": "evil.Model"}), "own Python code"),
    (lambda c: c.update(model_type="t5", is_encoder_decoder=True), "an encoder with a decoder"),
    (lambda c: c.update(model_type=["llama"]), "has no model_type"),
    (lambda c: c.update(quantization_config={"quant_method": "gptq"}), "quantized already"),
    (lambda c: c.update(num_hidden_layers=10**9), "num_hidden_layers 1000000000, but there are 21 tensors"),
    (lambda c: c.update(num_hidden_layers="many"), "num_hidden_layers 'many'"),
    (lambda c: c.update(vocab_size=10**9), "do not belong together"),
    (lambda c: c.update(hidden_size=10**30), "cannot build the model"),
    (lambda c: c.update(hidden_size=0), ""),
    (lambda c: c.update(num_hidden_layers=1), "but the model has not"),
    (lambda c: c.update(rope_parameters="x"), "cannot build the model"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_a_hostile_config_is_one_line(
    change: Callable[[dict[str, Any]], Any], message: str, llama: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        quantlab.load(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"model_type": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}'])
def test_a_damaged_config_is_one_line(text: bytes, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="config.json"):
        quantlab.load(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "other.bin", 7])
def test_an_index_may_name_only_files_of_the_folder(name: Any, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="is damaged"):
        quantlab.load(folder)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError):
        quantlab.load(tmp_path / "bert")


def test_a_folder_needs_transformers(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="transformers, which is not installed"):
        quantlab.load(llama)


def test_random_numbers_and_logging_stay_as_they_were(llama: Path) -> None:
    before, level = torch.random.get_rng_state(), transformers.utils.logging.get_verbosity()
    quantlab.load(llama)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert transformers.utils.logging.get_verbosity() == level


def test_unpack_refuses_other_models_and_other_suffixes(llama: Path, tmp_path: Path, toy_checkpoint: Path) -> None:
    artifact = packed(llama, tmp_path / "m.qlab")
    with pytest.raises(ConfigError, match="different configs"):
        quantlab.unpack(artifact, tmp_path / "out", like=saved(tmp_path / "other", "qwen2"))
    with pytest.raises(ConfigError, match="must end in .safetensors"):
        quantlab.unpack(artifact, tmp_path / "out.gguf")
    with pytest.raises(QuantlabError, match="without an output"):
        quantlab.unpack(artifact, like=llama)
    tensors = quantlab.unpack(artifact, tmp_path / "m.pt")
    again = torch.load(tmp_path / "m.pt", weights_only=True)
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], t) for name, t in tensors.items())
    quantlab.pack(toy_checkpoint, budget=80_000, output=tmp_path / "toy.qlab", **QUICK)
    with pytest.raises(ConfigError, match="not packed from a model of transformers"):
        quantlab.unpack(tmp_path / "toy.qlab", tmp_path / "out", like=llama)
