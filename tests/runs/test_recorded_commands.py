"""train, pack and eval as a user types them: each leaves a run folder, and together they show which result is valid."""

import json
from functools import reduce
from pathlib import Path

import pytest

from quantlab.cli.main import run
from quantlab.runs.store import read_store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN_FILE = """
seq_len = 32
batch_tokens = 256
micro_batch_tokens = 256
steps = 3
max_seconds = 0.0
[model]
vocab_size = 400
num_layers = 1
model_dim = 32
num_heads = 2
num_kv_heads = 1
mlp_hidden = 32
[data]
train = "text:TEXT"
val = "text:OTHER"
tokenizer = "TOKENIZER"
"""


def quantlab(*arguments, code=0):
    assert run([str(a) for a in arguments]) == code


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_file):
    """Return a folder with the runs of one training, two packings (one impossible), three scores and two misuses."""
    place = tmp_path_factory.mktemp("recorded")
    text = place / "t.txt"
    text.write_bytes((ROOT / "quantlab/cli/main.py").read_bytes())
    other = place / "v.txt"
    other.write_bytes((ROOT / "quantlab/cli/options.py").read_bytes())
    words = {"TEXT": text, "OTHER": other, "TOKENIZER": tokenizer_file}
    (place / "c.toml").write_text(reduce(lambda known, word: known.replace(word, str(words[word])), words, TRAIN_FILE))
    runs = ["--runs", place / "runs"]
    model, packed = place / "out" / "model.safetensors", place / "out" / "m.qlab"
    packing = ["pack", model, "-o", packed, "--method", "rtn", "--widths", "6", "--calib-tokens", 128, "--calib-seq-len", 64]
    quantlab("train", place / "c.toml", "--out", place / "out", "--set", "seed=7", *runs)
    quantlab(*packing, "--budget", "300", *runs, code=3)
    quantlab(*packing, "--budget", "1MB", "--method", "magic", *runs, code=2)
    quantlab(*packing, "--budget", "1MB", "--code", place / "c.toml", *runs)
    scoring = ["--text", other, "--seq-len", 32]
    quantlab("eval", model, *scoring, *runs)
    quantlab("eval", packed, *scoring, *runs)
    quantlab("eval", packed, *scoring, "--against", model, "--mode", "sliding", "--stride", 16, *runs)
    quantlab("eval", packed, *scoring, "--no-run")
    quantlab("eval", packed, *runs, code=2)
    return place


def records(folder):
    store = read_store(folder / "runs")
    assert store.broken == []
    return [run.record for run in store.runs]


def test_what_began_is_recorded_and_misuse_is_not(folder):
    assert not (folder / "out" / "runs").exists() and not (ROOT / "runs" / "m.qlab").exists()
    found = [(r.kind, r.status, r.exit_code) for r in records(folder)]
    assert found == [
        ("train", "done", 0),
        ("pack", "failed", 3),
        ("pack", "done", 0),
        ("eval", "done", 0),
        ("eval", "done", 0),
        ("eval", "done", 0),
    ]


def test_training_leaves_its_config_seed_and_logs(folder):
    trained = records(folder)[0]
    assert trained.seeds == {"seed": 7} and trained.options["model"]["num_layers"] == 1 and trained.options["steps"] == 3
    assert trained.metrics["steps"] == 3 and trained.metrics["val_bpb"] > 0
    assert trained.command[:2] == ("quantlab", "train") and (folder / "runs" / "x" / trained.directory).resolve() == Path.cwd()
    (run_folder,) = (folder / "runs").glob("*-train-*")
    assert {"run.json", "metrics.jsonl", "train.log"} == {f.name for f in run_folder.iterdir()}


def test_the_chain_from_training_to_score_holds_by_content(folder):
    trained, failed, packed, whole, scored, sliding = records(folder)
    assert failed.error.startswith("budget 300 bytes is below the smallest reachable size") and failed.packing is None
    assert trained.checkpoint.fingerprint == failed.checkpoint.fingerprint == packed.checkpoint.fingerprint
    assert packed.packing.artifact_sha256 == packed.artifact.sha256 == scored.evaluations[0].target_sha256
    assert trained.artifact.sha256 == whole.evaluations[0].target_sha256
    assert packed.packing.code_bytes == (folder / "c.toml").stat().st_size and packed.options["budget_bytes"] == 10**6
    assert packed.artifact.bytes == (folder / "out" / "m.qlab").stat().st_size and packed.files[0].copy == "m.report.json"
    assert scored.evaluations[0].data == whole.evaluations[0].data != sliding.evaluations[0].data
    (slid,) = sliding.evaluations
    assert slid.against is not None and slid.against.fingerprint == trained.checkpoint.fingerprint
    assert slid.against.tokens < slid.data.tokens  # the models are compared on sequences that do not overlap


def test_the_commands_over_them(folder, capsys):
    capsys.readouterr()
    quantlab("runs", "list", "--runs", folder / "runs")
    rows = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]
    assert [row.split()[1] for row in rows] == ["train", "pack+eval", "eval", "eval"]  # of the float model, and on other data
    quantlab("runs", "best", "--runs", folder / "runs", "--json")
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2 and all(row["artifact"].endswith("m.qlab") and row["budget"] == 10**6 for row in found)
    quantlab("runs", "show", records(folder)[2].artifact.sha256, "--runs", folder / "runs", code=2)
    capsys.readouterr()
    quantlab("runs", "show", next((folder / "runs").glob("*-train-*")).name, "--runs", folder / "runs")
    assert "unchanged" in capsys.readouterr().out
