"""quantlab diff and merge: what differs is named with its size, means are exact, and nothing of the past is lost."""

import json
from pathlib import Path

import pytest
import torch

from quantlab.cli.main import run
from quantlab.errors import CheckpointError, ConfigError
from quantlab.jobs.diff import CHANGED, EQUAL, ONLY_RIGHT, diff
from quantlab.jobs.merge import merge
from quantlab.models.loading import load
from quantlab.models.provenance import Provenance
from quantlab.tensor_file import write_safetensors
from quantlab.text.document_sample import DocumentSample

pytestmark = pytest.mark.usefixtures("one_thread")
CHANGED_NAME = "blocks.0.mlp.fc.weight"


@pytest.fixture
def models(toy_state, tmp_path: Path) -> list[Path]:
    """Three checkpoints that differ in one matrix: w, 2 w and 4 w; each names one document that it was trained on."""
    paths = []
    for number, factor in enumerate((1, 2, 4)):
        state = {name: tensor * factor if name == CHANGED_NAME else tensor for name, tensor in toy_state.items()}
        past = Provenance(
            seq_len=64, mode=("chunked", "chunked", "sliding")[number], training=DocumentSample(1, (number,)).to_text()
        )
        paths.append(tmp_path / f"m{number}.safetensors")
        write_safetensors(paths[-1], state, past.to_metadata())
    return paths


def test_the_mean_is_exact_and_what_is_equal_stays_bit_for_bit(models: list[Path], toy_state, tmp_path: Path):
    done = merge(models[:2], tmp_path / "mean.safetensors")
    assert (done.averaged, done.tensors) == (1, len(toy_state))
    state = load(tmp_path / "mean.safetensors").state
    assert torch.equal(state[CHANGED_NAME], (1.5 * toy_state[CHANGED_NAME].double()).float())
    assert all(torch.equal(state[name], tensor) for name, tensor in toy_state.items() if name != CHANGED_NAME)
    merge(models, tmp_path / "other.safetensors", weights=[2, 1, 1])
    other = load(tmp_path / "other.safetensors").state
    assert torch.allclose(other[CHANGED_NAME], 2.0 * toy_state[CHANGED_NAME], rtol=1e-6)


def test_the_past_of_all_models_is_kept(models: list[Path], tmp_path: Path):
    merge(models, tmp_path / "mean.safetensors")
    past = load(tmp_path / "mean.safetensors").provenance
    assert DocumentSample.from_text(past.training, "x").hashes == (0, 1, 2)
    assert (past.seq_len, past.mode) == (64, "")


def test_what_cannot_be_merged_is_refused(models: list[Path], tmp_path: Path):
    out = tmp_path / "mean.safetensors"
    for arguments, message in (
        ((models[:1], out), "two models or more"),
        ((models[:2], tmp_path / "mean.pt"), "must be .safetensors"),
        ((models[:2], models[0]), "is an input of the same command"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(*arguments)
    with pytest.raises(ConfigError, match="1 weights are given for 2 models"):
        merge(models[:2], out, weights=[1.0])
    with pytest.raises(ConfigError, match="not all 0"):
        merge(models[:2], out, weights=[0.0, 0.0])
    state = load(models[1]).state
    write_safetensors(models[1], {name: tensor for name, tensor in state.items() if name != "tok_emb.weight"})
    with pytest.raises(CheckpointError):
        merge(models[:2], out)
    assert not out.exists()


def test_diff_names_what_differs_and_by_how_much(models: list[Path], toy_state):
    found = diff(models[0], models[1])
    assert (found.count(CHANGED), found.count(EQUAL), found.count(ONLY_RIGHT)) == (1, len(toy_state) - 1, 0)
    first = found.tensors[0]
    assert (first.name, first.relative) == (CHANGED_NAME, pytest.approx(1.0))
    assert first.largest == pytest.approx(float(toy_state[CHANGED_NAME].abs().max()))
    assert found.against is None


def test_diff_measures_predictions_on_a_text(models: list[Path], tokenizer_file: Path, tmp_path: Path, capsys):
    (tmp_path / "t.txt").write_text("def main():\n    return 1\n" * 20)
    words = ["--text", str(tmp_path / "t.txt"), "--tokenizer", str(tokenizer_file), "--json"]
    assert run(["diff", str(models[0]), str(models[1]), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["against"]["kl_mean"] > 0
    assert run(["diff", str(models[0]), str(models[0]), *words]) == 0
    assert json.loads(capsys.readouterr().out)["against"]["kl_mean"] == 0
    assert run(["diff", str(models[0]), str(models[1]), "--tokenizer", str(tokenizer_file)]) == 2


def test_the_commands_print_what_they_did(models: list[Path], tmp_path: Path, capsys):
    assert run(["merge", *map(str, models), "-o", str(tmp_path / "m.safetensors")]) == 0
    assert "the mean of 3 models, 1 of" in capsys.readouterr().out
    assert run(["merge", *map(str, models), "-o", str(tmp_path / "n.safetensors"), "--weights", "1,x"]) == 2
    assert run(["diff", str(models[0]), str(models[1])]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("tensors are equal, 1 have other values")
    assert out[2].split()[:2] == [CHANGED_NAME, CHANGED]


def test_a_union_of_samples_knows_what_both_know():
    small, large = DocumentSample(2, (4, 7)), DocumentSample(9, (2, 3, 5))
    both = small.union(large)
    assert both.meet(DocumentSample(3, (3, 4, 6))) == (2, 2)
    assert small.union(DocumentSample(1, (1,))) == DocumentSample(3, (1, 4, 7))
