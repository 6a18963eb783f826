"""Evaluation from packed weights scores as evaluation from decoded ones."""

import json

import numpy as np
import pytest
import torch
from conftest import random_state

from quantlab.artifact.decode import decode_artifact
from quantlab.artifact.reader import open_artifact
from quantlab.cli.main import run
from quantlab.coding import rans_device
from quantlab.kernels.unpack_weights import unpack_ref
from quantlab.models import challenge as packed_model
from quantlab.models.challenge import packed_gpt, packed_matrices
from quantlab.tensor_file import write_safetensors
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig
from quantlab.trainer.packed_layers import PackedEmbedding, PackedLinear, weight_bytes

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
ULPS = 2.0**-22  # 2 units in the last place: each of two scales is rounded once, and their product


@pytest.fixture(scope="module", params=["trellis", "gptq"])
def artifact(request, toy_checkpoint, tokenizer_file, tmp_path_factory):
    """The toy model packed; gptq has row grids."""
    path = tmp_path_factory.mktemp(request.param) / "toy.qlab"
    size = {"trellis": "60KB", "gptq": "75KB"}[request.param]
    options = ["--method", request.param, "--calib", "random", "--calib-tokens", "2048", "--calib-seq-len", "64", "--no-tune"]
    assert run(["pack", str(toy_checkpoint), "--budget", size, "-o", str(path), *options]) == 0
    (path.parent / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    return path


def parts(path):
    """Manifest and sections of the file."""
    artifact = open_artifact(path)
    return artifact.manifest, artifact.sections


def scores(artifact, tmp_path, capsys, *options):
    text = tmp_path / "text.txt"
    text.write_text("def add(a, b):\n    return a + b\n" * 40)
    command = ["eval", str(artifact), "--text", str(text), "--seq-len", "32", "--json", *options]
    capsys.readouterr()
    assert run(command) == 0
    return json.loads(capsys.readouterr().out)


def test_packed_and_decoded_weights_score_alike(artifact, tmp_path, capsys):
    packed, decoded = (scores(artifact, tmp_path, capsys, option) for option in ("--packed", "--decoded"))
    assert packed["val_bpb"] == pytest.approx(decoded["val_bpb"], abs=1e-6)  # asked for are 1e-4; float32 gives 1e-7
    assert (packed["memory"]["weights"], decoded["memory"]["weights"]) == ("packed", "decoded")
    assert packed["memory"]["weight_bytes"] < 0.4 * decoded["memory"]["weight_bytes"]
    assert scores(artifact, tmp_path, capsys)["memory"]["weights"] == ("packed" if torch.cuda.is_available() else "decoded")


def test_packed_matrices_hold_the_weights_of_the_file(artifact):
    manifest, sections = parts(artifact)
    decoded = decode_artifact(manifest, sections)
    matrices = dict(packed_matrices(manifest, sections, CPU))
    assert {t.name for t in manifest.tensors if t.kind != "raw"} == set(matrices)
    for name, packed in matrices.items():
        np.testing.assert_allclose(unpack_ref(packed).numpy(), decoded[name], rtol=ULPS, atol=0)


def test_a_device_reads_the_stream_itself(artifact, monkeypatch):
    """The code stream is decoded as on a GPU, by the reference implementations of its kernels."""
    manifest, sections = parts(artifact)
    plain = dict(packed_matrices(manifest, sections, CPU))
    monkeypatch.setattr(packed_model.rans, "decode", lambda *args: rans_device.decode(*args, device=CPU))
    for name, packed in packed_matrices(manifest, sections, CPU):
        assert torch.equal(packed.words, plain[name].words)


def test_every_matrix_of_the_model_is_packed(artifact):
    model = packed_gpt(*parts(artifact), CPU)
    assert isinstance(model.tok_emb, PackedEmbedding) and isinstance(model.blocks[1].mlp.fc, PackedLinear)
    assert not any(p.ndim == 2 and p.numel() > 4096 for p in model.parameters())
    assert weight_bytes(model) == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    ids = torch.randint(0, 400, (2, 7), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2, 7)
    torch.testing.assert_close(torch.cat([model(ids[:, :3], cache), model(ids[:, 3:], cache)], 1), model(ids))


def test_autocast_reaches_packed_products(artifact):
    """As in nn.functional.linear, the product is in the dtype of autocast, the table's rows are float32."""
    model = packed_gpt(*parts(artifact), CPU)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.blocks[0].mlp.fc(x).dtype == torch.bfloat16
        assert model.tok_emb(torch.zeros(1, 2, dtype=torch.int64)).dtype == torch.float32
    assert model.blocks[0].mlp.fc(x).dtype == torch.float32


def test_all_options_of_the_model_work_packed(tmp_path, capsys):
    """Bigrams, gates and an untied head."""
    config = GPTConfig(
        vocab_size=400, num_layers=2, model_dim=64, num_heads=4, num_kv_heads=2, mlp_hidden=128, tie_embeddings=False,
        bigram_buckets=96, bigram_dim=32, smear_gate=True, skip_gates=True,
    )  # fmt: skip
    checkpoint, path = tmp_path / "all.safetensors", tmp_path / "all.qlab"
    write_safetensors(checkpoint, random_state(config), {"gpt_config": json.dumps(config.to_dict())})
    options = ["--calib", "random", "--calib-tokens", "2048", "--calib-seq-len", "64", "--no-tune"]
    assert run(["pack", str(checkpoint), "--budget", "90KB", "-o", str(path), *options]) == 0
    manifest, sections = parts(path)
    packed = packed_gpt(manifest, sections, CPU)
    decoded = GPT(config).eval()
    decoded.load_state_dict({name: torch.from_numpy(array) for name, array in decode_artifact(manifest, sections).items()})
    ids = torch.randint(0, 400, (2, 30), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(packed(ids), decoded(ids), rtol=0, atol=1e-4)  # of logits up to 30, float32


@pytest.mark.parametrize("option", ["--packed", "--decoded"])
def test_checkpoints_have_nothing_to_keep_packed(option, toy_checkpoint, tokenizer_file, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("import this\n" * 100)
    arguments = [
        "eval",
        str(toy_checkpoint),
        "--text",
        str(text),
        "--tokenizer",
        str(tokenizer_file),
        "--seq-len",
        "16",
        option,
    ]
    assert run(arguments) == (2 if option == "--packed" else 0)
    if option == "--packed":
        error = capsys.readouterr().err
        assert "is a checkpoint: only the weights of a .qlab file can stay packed" in error
