"""`import quantlab`: instant, and every public function is there, takes a path or a module, and does what its command does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quantlab
from quantlab.cli.main import run
from quantlab.errors import ConfigError
from quantlab.models.challenge import gpt_from_state_dict

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = {"calib": "random", "calib_tokens": 1024, "calib_seq_len": 64}
TEXT = b"def add(a, b):\n    return a + b\n" * 40
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(toy_checkpoint, tokenizer_file, tmp_path_factory):
    """toy.qlab with its report, made by the call, beside the tokenizer and a text."""
    folder = tmp_path_factory.mktemp("door")
    (folder / "tokenizer.model").write_bytes(Path(tokenizer_file).read_bytes())
    (folder / "t.txt").write_bytes(TEXT)
    quantlab.pack(toy_checkpoint, budget="60KB", output=folder / "toy.qlab", tune=False, **SAMPLE)
    return folder


def fresh(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_the_package_is_instant_and_lists_its_functions():
    code = (
        "import sys, quantlab; "
        "heavy = {'torch', 'numpy', 'numba', 'typer', 'rich'} & set(sys.modules); assert not heavy, heavy; "
        "assert set(quantlab.__all__) <= set(dir(quantlab)); "
        "assert all(callable(getattr(quantlab, name)) for name in quantlab.__all__)"
    )
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'packs'"):
        _ = quantlab.packs


@pytest.mark.parametrize("name", ["tests", "tests.conftest", "benchmarks", "quantlab", "docs"])
def test_no_folder_of_the_checkout_is_a_part_of_the_package(name):
    done = fresh(f"import quantlab.{name}")
    assert done.returncode and "ModuleNotFoundError" in done.stderr


def test_a_budget_is_a_number_or_a_text(folder, toy_checkpoint, tmp_path):
    report = quantlab.pack(toy_checkpoint, budget=60_000, output=tmp_path / "m.qlab", tune=False, **SAMPLE)
    assert report.total_bytes == report.artifact_bytes == (tmp_path / "m.qlab").stat().st_size <= report.budget_bytes == 60_000
    assert (tmp_path / "m.qlab").read_bytes() == (folder / "toy.qlab").read_bytes()


def test_pack_does_what_the_command_does(folder, toy_checkpoint, tmp_path):
    options = ["--no-tune", "--calib", "random", "--calib-tokens", "1024", "--calib-seq-len", "64"]
    assert run(["pack", str(toy_checkpoint), "--budget", "60KB", "-o", str(tmp_path / "m.qlab"), *options]) == 0
    assert (tmp_path / "m.qlab").read_bytes() == (folder / "toy.qlab").read_bytes()


def test_statistics_in_memory_are_those_of_the_file(folder, toy_checkpoint, toy_state, tmp_path):
    sample = SAMPLE
    stats = quantlab.calibrate(gpt_from_state_dict(toy_state), output=tmp_path / "s.safetensors", **sample)
    for number, given in enumerate((stats, tmp_path / "s.safetensors")):
        output = tmp_path / f"{number}.qlab"
        quantlab.pack(toy_checkpoint, budget="60KB", output=output, stats=given, tune=False)
        assert output.read_bytes() == (folder / "toy.qlab").read_bytes()
    with pytest.raises(ConfigError, match=r"s\.safetensors exists"):
        quantlab.calibrate(toy_checkpoint, output=tmp_path / "s.safetensors", **sample)


def test_load_unpack_and_open_agree(folder, tmp_path):
    loaded, tensors = quantlab.load(folder / "toy.qlab"), quantlab.unpack(folder / "toy.qlab", tmp_path / "s.safetensors")
    assert loaded.state.keys() == tensors.keys() and all(torch.equal(loaded.state[n], t) for n, t in tensors.items())
    assert quantlab.load(tmp_path / "s.safetensors").state.keys() == tensors.keys()
    artifact = quantlab.open_artifact(folder / "toy.qlab")
    assert sum(artifact.layout.size_breakdown.values()) == artifact.bytes == (folder / "toy.qlab").stat().st_size
    assert artifact.describe()["artifact_bytes"] == artifact.bytes and artifact.tensors().keys() == tensors.keys()


def test_evaluate_does_what_the_command_does(folder, toy_checkpoint, capsys):
    scoring = {"text": folder / "t.txt", "seq_len": 32, "against": toy_checkpoint}
    record = quantlab.evaluate(folder / "toy.qlab", **scoring)
    command = [
        "eval",
        folder / "toy.qlab",
        "--text",
        folder / "t.txt",
        "--seq-len",
        "32",
        "--against",
        toy_checkpoint,
        "--json",
    ]
    capsys.readouterr()
    assert run([str(part) for part in command]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["val_bpb"] == record.val_bpb and printed["against"]["kl_mean"] == record.against.kl_mean
    assert printed["against"]["reference_loss"] == record.against.val_loss


def test_a_module_scores_as_its_file(folder, toy_state, toy_checkpoint):
    model = gpt_from_state_dict(toy_state).train()
    scoring = {"text": folder / "t.txt", "seq_len": 32, "tokenizer": folder / "tokenizer.model"}
    of_module, of_file = (quantlab.evaluate(target, **scoring) for target in (model, toy_checkpoint))
    assert of_module.nats == of_file.nats and of_module.data == of_file.data and model.training
    assert (of_module.target, of_module.target_bytes) == ("", 0)
    with pytest.raises(ConfigError, match="a module in memory has no place for its record"):
        quantlab.evaluate(model, save=True, **scoring)


def test_every_mode_compares_with_a_reference(folder, toy_checkpoint):
    """The reference is scored in the target's own mode; KL is of sequences that do not overlap."""
    scoring = {"text": folder / "t.txt", "seq_len": 32, "mode": "sliding", "stride": 16}
    record = quantlab.evaluate(folder / "toy.qlab", against=toy_checkpoint, **scoring)
    alone = quantlab.evaluate(toy_checkpoint, tokenizer=folder / "tokenizer.model", **scoring)
    assert record.against.val_bpb == alone.val_bpb and record.against.reference_loss != record.against.val_loss


def test_compare_takes_paths(folder):
    comparison = quantlab.compare([folder / "toy.qlab", str(folder / "toy.report.json")])
    assert [row.label for row in comparison.files] == ["A", "B"] and len(comparison.tensors) == 9
