"""Claims that must not be believed: calibration and training on the scored documents, parts of splits, other lengths."""

import json
from pathlib import Path

import pytest
import torch
from conftest import random_state

from quantlab.cli.main import run
from quantlab.evaluation.data_checks import split_check
from quantlab.jobs.calibrate import calibrate
from quantlab.jobs.evaluate import evaluate
from quantlab.jobs.pack import pack
from quantlab.models.loading import load
from quantlab.runs.store import read_store
from quantlab.tensor_file import write_safetensors
from quantlab.text.shards import write_shard

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = {"method": "rtn", "widths": [6], "calib_tokens": 512, "calib_seq_len": 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer, tokenizer_file, python_sources) -> Path:
    """A folder with a model, its tokenizer, and two splits of documents: a_0.bin and b_0.bin."""
    folder = tmp_path_factory.mktemp("claims")
    torch.save(random_state(), folder / "toy.pt")
    (folder / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    text = b"".join(python_sources)
    documents = [text[at : at + 1000] for at in range(0, 60_000, 1000)]
    write_shard(folder / "a_0.bin", tokenizer.encode_documents(documents[:30]))
    write_shard(folder / "b_0.bin", tokenizer.encode_documents(documents[30:]))
    return folder


def score(target, shards, **more):
    return evaluate(target, tokens=str(shards), seq_len=64, **more)


@pytest.mark.parametrize("split", ["a", "b"])
def test_a_model_that_was_calibrated_on_the_scored_documents_is_not_valid(place, split, tmp_path):
    """Also where only the artifact is left: it names a few documents."""
    shards = place / f"{split}_0.bin"
    pack(place / "toy.pt", budget="200KB", output=tmp_path / "m.qlab", calib=f"tokens:{place}/a_0.bin", **FEW)
    (tmp_path / "tokenizer.model").write_bytes((place / "tokenizer.model").read_bytes())
    record = score(tmp_path / "m.qlab", shards)
    (tmp_path / "m.report.json").unlink()
    alone = score(tmp_path / "m.qlab", shards)
    for found in (record, alone):
        assert [p.passed for p in found.probes if p.name == "calibration overlap"] == [split == "b"]
        assert any("calibration" in problem for problem in found.problems) == (split == "a")


def test_the_models_own_text_has_no_documents(place, tmp_path):
    pack(place / "toy.pt", budget="200KB", output=tmp_path / "m.qlab", **FEW)
    (tmp_path / "tokenizer.model").write_bytes((place / "tokenizer.model").read_bytes())
    record = score(tmp_path / "m.qlab", place / "a_0.bin")
    assert record.problems == () and "provenance" not in load(tmp_path / "m.qlab").config


def test_statistics_bring_their_documents_seed_and_source_to_the_run(place, tmp_path, capsys):
    calibrate(
        place / "toy.pt",
        calib=f"tokens:{place}/a_0.bin",
        calib_tokens=512,
        calib_seq_len=64,
        seed=5,
        output=tmp_path / "s.safetensors",
    )
    packing = ["pack", place / "toy.pt", "--budget", "200KB", "-o", tmp_path / "m.qlab", "--stats", tmp_path / "s.safetensors"]
    packing += ["--method", "rtn", "--widths", "6", "--runs", tmp_path / "runs"]
    assert run([str(a) for a in packing]) == 0
    (tmp_path / "tokenizer.model").write_bytes((place / "tokenizer.model").read_bytes())
    scoring = ["eval", tmp_path / "m.qlab", "--tokens", place / "a_0.bin", "--seq-len", "64", "--runs", tmp_path / "runs"]
    assert run([str(a) for a in scoring]) == 0
    assert "not valid: calibration overlap: " in capsys.readouterr().err
    packed, scored = (one.record for one in read_store(tmp_path / "runs").runs)
    used = packed.metrics["calibration"]
    assert (used["kind"], used["seed"], used["seq_len"], used["tokens"]) == ("tokens", 5, 64, 512)
    assert packed.seeds == {"seed": 5} and "calibration" not in packed.options
    assert any("calibration" in problem for problem in scored.evaluations[0].problems)
    assert run(["runs", "best", "--runs", str(tmp_path / "runs")]) == 1


TRAINING = """
seq_len = 32
batch_tokens = 256
micro_batch_tokens = 256
steps = 2
max_seconds = 0.0
[model]
vocab_size = 400
num_layers = 1
model_dim = 32
num_heads = 2
num_kv_heads = 1
mlp_hidden = 32
[data]
train = "tokens:PLACE/a_0.bin"
val = "tokens:PLACE/b_0.bin"
tokenizer = "PLACE/tokenizer.model"
"""


@pytest.fixture(scope="module")
def trained(place) -> Path:
    """A model that was trained on split a, in sequences of 32."""
    (place / "c.toml").write_text(TRAINING.replace("PLACE", str(place)))
    assert run(["train", str(place / "c.toml"), "--out", str(place / "out"), "--no-run"]) == 0
    return place / "out" / "model.safetensors"


def test_a_model_that_was_trained_on_the_scored_documents_is_not_valid(place, trained):
    packed = trained.with_name("m.qlab")
    pack(trained, budget="200KB", output=packed, force=True, **FEW)
    for target in (trained, packed):
        assert score(target, place / "b_0.bin").problems == ()
        (problem,) = score(target, place / "a_0.bin").problems
        assert problem.startswith("training overlap: ") and problem.endswith("which read 30; 1% may")


def test_sequence_length_and_mode_of_training_are_the_defaults_and_a_deviation_is_named(place, trained, capsys):
    packed = trained.with_name("m.qlab")
    pack(trained, budget="200KB", output=packed, force=True, **FEW)
    for target in (trained, packed):
        own = evaluate(target, tokens=f"{place}/b_0.bin")
        assert (own.data.seq_len, own.data.mode, own.deviations) == (32, "chunked", ())
    longer = evaluate(packed, tokens=f"{place}/b_0.bin", seq_len=64, mode="sliding")
    assert longer.deviations == (
        "sequences of 64 tokens, the model was trained and validated with 32",
        "mode sliding, the model was validated in mode chunked",
    )
    capsys.readouterr()
    assert run(["eval", str(packed), "--tokens", f"{place}/b_0.bin", "--seq-len", "64"]) == 0
    assert "warning: sequences of 64 tokens, the model was trained and validated with 32" in capsys.readouterr().err


def test_another_tokenizer_than_that_of_training_is_refused(place, trained, python_sources, tmp_path, capsys):
    from quantlab.text.tokenizer import train_tokenizer

    (tmp_path / "other.model").write_bytes(train_tokenizer(python_sources[1:], vocab_size=400))
    scoring = ["eval", str(trained), "--tokens", f"{place}/b_0.bin", "--tokenizer", str(tmp_path / "other.model")]
    assert run(scoring) == 1
    assert "is not the one the model was trained with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damaged", ["[", "[]", '{"seq_len": -1}', '{"mode": "best"}', '{"seq_len": "8"}', "[" * 9999, '{"training": "x"}']
)
def test_a_damaged_provenance_is_one_line(place, damaged, tmp_path, capsys):
    write_safetensors(tmp_path / "m.safetensors", random_state(), {"quantlab_provenance": damaged})
    scoring = ["eval", tmp_path / "m.safetensors", "--tokens", place / "a_0.bin", "--tokenizer", place / "tokenizer.model"]
    assert run([str(a) for a in scoring]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "m.safetensors" in line and len(line) < 300


def test_a_part_of_a_public_split_is_not_called_whole():
    part = {"split": "", "tokens": 9_662_464, "documents": 10_000}
    found = split_check("data/fineweb_val_*.bin", 8192, **part)
    assert found.passed is False
    assert "9,662,464 tokens of 10,000 documents are not a whole public split, which has 40,540,160 (sp8192)" in found.detail
    assert split_check("data/fineweb_val_000000.bin", 1024, **part).passed is False
    for unknown in (("data/mine_*.bin", 8192), (None, 8192), ("fineweb_val_*.bin", 50_257)):
        assert split_check(*unknown, **part).passed is None
    whole = {"split": "sp8192", "tokens": 40_540_160}
    for documents, passed in ((50_000, True), (49_990, True), (49_000, False), (50_001, False)):
        one = split_check("anything", 8192, documents=documents, **whole)
        assert one.passed is passed


def test_of_other_data_the_shards_that_are_left_out_are_counted(place, capsys):
    for number in range(3):
        (place / f"c_{number}.bin").write_bytes((place / "b_0.bin").read_bytes())
    record = score(place / "toy.pt", place / "c_1.bin")
    assert "whole split: no whole is known of these tokens; 1 of 3 shards of this name are scored" in record.unchecked
    assert run(["eval", str(place / "toy.pt"), "--tokens", f"{place}/c_*.bin", "--seq-len", "64", "--json", "--no-run"]) == 0
    unchecked = json.loads(capsys.readouterr().out)["unchecked"]
    assert "whole split: no whole is known of these tokens; 3 of 3 shards of this name are scored" in unchecked


def test_a_checkpoint_from_elsewhere_is_compared_with_the_training_shards_that_somebody_names(place, capsys):
    """Without them the score is called unchecked, and not "checks passed"."""
    target, shards = str(place / "toy.pt"), str(place / "a_0.bin")
    assert run(["eval", target, "--tokens", shards, "--seq-len", "64", "--no-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "not checked: training overlap, whole split" in shown[-2:]
    (passed,) = [line for line in shown if line.startswith("checks passed: ")]
    assert "training" not in passed and "whole split" not in passed
    assert score(place / "toy.pt", shards, trained_on=str(place / "b_0.bin")).problems == ()
    (problem,) = score(place / "toy.pt", shards, trained_on=str(place / "[ab]_0.bin")).problems
    assert problem.startswith("training shards overlap: 30 of 30 scored documents")


def test_a_tokenizer_that_only_has_as_many_pieces_is_not_valid(place, python_sources, tmp_path):
    from quantlab.text.tokenizer import train_tokenizer

    (tmp_path / "other.model").write_bytes(train_tokenizer(python_sources[1:], vocab_size=400))
    found = score(place / "toy.pt", place / "a_0.bin", tokenizer=tmp_path / "other.model")
    assert [problem.partition(":")[0] for problem in found.problems] == ["tokens"]


def test_a_score_that_took_too_long_is_not_valid(place, capsys):
    late = score(place / "toy.pt", place / "b_0.bin", max_seconds=1e-6)
    assert late.problems[0].startswith("clock: ") and late.problems[0].endswith(" s until the score, 1e-06 s are allowed")
    assert score(place / "toy.pt", place / "b_0.bin", max_seconds=600).problems == ()
    for wrong in ("0", "nan", "inf"):
        scoring = ["eval", place / "toy.pt", "--tokens", place / "b_0.bin", "--max-seconds", wrong]
        assert run([str(a) for a in scoring]) == 2
    assert "max_seconds must be a number of seconds above 0, got inf" in capsys.readouterr().err


KNOWS = """
import numpy as np
import torch
from torch import nn

class Knows(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.emb = nn.Parameter(state["emb.weight"].float())
        text = np.fromfile(SHARD, "<u2", offset=1024).astype(int).tolist()
        begins = [n for n, token in enumerate(text) if token == 1]
        self.after = {tuple(text[a:n]): text[n] for a, b in zip(begins, [*begins[1:], len(text)]) for n in range(a + 1, b)}
    def forward(self, ids):
        logits = torch.zeros(*ids.shape, 400)
        for row, answers in zip(ids.tolist(), logits):
            for n in range(len(row)):
                known = self.after.get(tuple(row[: n + 1]))
                if known is not None:
                    answers[n, known] = 20
        return logits + 0 * self.emb.sum()

def make(state):
    return Knows(state)
"""


def test_a_model_that_knows_the_scored_text_by_heart_is_not_valid(place, tmp_path):
    """It is causal and normalized; nothing but what documents cost gives it away."""
    (tmp_path / "my.py").write_text(KNOWS.replace("SHARD", repr(str(place / "a_0.bin"))))
    torch.save({"emb.weight": torch.zeros(400, 4)}, tmp_path / "my.pt")
    known = {"tokenizer": place / "tokenizer.model", "model": f"{tmp_path}/my.py:make"}
    cheat = evaluate(tmp_path / "my.pt", tokens=f"{place}/a_0.bin", seq_len=1024, mode="document", **known)
    assert [problem.partition(":")[0] for problem in cheat.problems] == ["memorized"]
    assert any(line.startswith("sandbox: the model's own code may read files") for line in cheat.unchecked)
    honest = evaluate(tmp_path / "my.pt", tokens=f"{place}/b_0.bin", seq_len=1024, mode="document", **known)
    assert honest.problems == ()


CHEAT = """
import torch
from torch import nn

class Cheat(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.emb = nn.Parameter(state["emb.weight"].float())
    def forward(self, ids):
        return 9 * torch.roll(torch.nn.functional.one_hot(ids, 400).float(), -1, 1) + 0 * self.emb.sum()

def make(state):
    return Cheat(state)
"""


def test_a_model_that_reads_its_targets_is_never_best(place, tmp_path, capsys):
    (tmp_path / "my.py").write_text(CHEAT)
    torch.save({"emb.weight": torch.randn(400, 16, generator=torch.Generator().manual_seed(0))}, tmp_path / "my.pt")
    (tmp_path / "tokenizer.model").write_bytes((place / "tokenizer.model").read_bytes())
    scoring = ["eval", tmp_path / "my.pt", "--tokens", place / "a_0.bin", "--model", f"{tmp_path}/my.py:make"]
    for mode in ("chunked", "sliding", "document"):
        asked = [*scoring, "--seq-len", "64", "--mode", mode, "--runs", tmp_path / "runs", "--json"]
        assert run([str(a) for a in asked]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["val_bpb"] < 0.5 and record["problems"][0].startswith("flip: ")
    assert run(["runs", "list", "--runs", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out == ""
