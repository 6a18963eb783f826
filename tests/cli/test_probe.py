"""`quantlab probe`, and the modes of `quantlab eval`, as a user types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from quantlab.cli.main import run
from quantlab.text.shards import write_shard

ROOT = Path(__file__).resolve().parents[2]
TEXT = b"import os\n\ndef main():\n    return 0\n" * 30
NAMES = ["determinism", "normalization", "flip", "rows", "packed"]

CHEAT = """
import torch
from torch import nn

class Cheat(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.emb = nn.Parameter(state["emb.weight"].float())
    def forward(self, ids):
        x = self.emb[ids]
        return (x + torch.roll(x, -1, 1)) @ self.emb.T

def make(state):
    return Cheat(state)
"""


def fails(capsys, arguments, code, *parts):
    assert run([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [x for x in captured.err.splitlines() if x.startswith("error: ")]
    assert all(part in line for part in parts), line


@pytest.fixture
def text(tmp_path):
    (tmp_path / "t.txt").write_bytes(TEXT)
    return tmp_path / "t.txt"


@pytest.fixture
def shards(tmp_path, tokenizer):
    """Three documents, as the pattern of their one shard."""
    write_shard(tmp_path / "v_0.bin", tokenizer.encode_documents([TEXT, b"x = 1\n" * 20, TEXT[:300]]))
    return f"{tmp_path}/v_*.bin"


def test_an_honest_model_passes_on_random_ids_text_and_shards(toy_checkpoint, tokenizer_file, text, shards, capsys):
    for data in ([], ["--text", text, "--tokenizer", tokenizer_file], ["--tokens", shards]):
        arguments = ["probe", toy_checkpoint, "--seq-len", "32", *data]
        assert run([str(a) for a in [*arguments, "--json"]]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["failed"] == [] and [p["name"] for p in found["probes"]] == NAMES
        assert [p["passed"] for p in found["probes"]] == [True] * 4 + [None]
        assert run([str(a) for a in arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [["pass", name] for name in NAMES[:4]] + [["info", "packed"]]
        assert lines[2].endswith(found["probes"][2]["detail"])


def test_a_cheating_model_fails_with_exit_code_1(tmp_path, capsys):
    (tmp_path / "my.py").write_text(CHEAT)
    torch.save({"emb.weight": torch.randn(50, 8, generator=torch.Generator().manual_seed(0))}, tmp_path / "my.pt")
    arguments = ["probe", str(tmp_path / "my.pt"), "--model", f"{tmp_path}/my.py:make", "--seq-len", "16"]
    assert run(arguments) == 1
    out, err = capsys.readouterr()
    assert "FAIL  flip " in out and "pass  determinism" in out and err == ""
    assert run([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == ["flip"]


def test_bad_input_to_probe_is_one_line(toy_checkpoint, tokenizer_file, text, shards, tmp_path, capsys):
    probe = ["probe", toy_checkpoint]
    fails(capsys, [*probe, "--text", text, "--tokens", shards], 2, "text and tokens are both given")
    fails(capsys, [*probe, "--text", text], 2, "no tokenizer")
    fails(capsys, [*probe, "--seq-len", "1"], 2, "seq_len must be 2 or more, got 1")
    fails(capsys, [*probe, "--seed", "-1"], 2, "seed must be 0 to 2**63 - 1, got -1")
    fails(capsys, [*probe, "--tokens", shards, "--seq-len", "5000"], 1, "too few: 4 sequences of 5,000 need 20,000")
    fails(capsys, [*probe, "--tokens", f"{tmp_path}/none_*"], 1, "none_*")
    write_shard(tmp_path / "big_0.bin", np.full(600, 400))
    fails(capsys, [*probe, "--tokens", f"{tmp_path}/big_*"], 1, "token id 400 in the text, the vocabulary has 0 to 399")
    fails(capsys, ["probe", tmp_path / "absent.pt"], 1, "absent.pt does not exist")


def test_help_has_an_example(capsys):
    assert run(["probe", "--help"]) == 0
    assert "Example: quantlab probe" in " ".join(capsys.readouterr().out.split())


def test_eval_modes(toy_checkpoint, tokenizer_file, shards, tokenizer, capsys):
    scoring = ["eval", str(toy_checkpoint), "--tokens", shards, "--tokenizer", str(tokenizer_file), "--seq-len", "80"]
    scores = {}
    for mode in ("chunked", "sliding", "document"):
        assert run([*scoring, "--mode", mode, "--json"]) == 0
        scores[mode] = json.loads(capsys.readouterr().out)
        assert run([*scoring, "--mode", mode]) == 0
        line = capsys.readouterr().out
        s = scores[mode]
        assert f"tokens {s['tokens']:,}  bytes {s['bytes']:,}  documents 3  (" in line and f", {mode}, sequences of 80" in line
        assert (", stride 64)" in line) == (mode != "chunked")
    count = len(tokenizer.encode_documents([TEXT, b"x = 1\n" * 20, TEXT[:300]]))
    assert scores["chunked"]["tokens"] == (count - 1) // 80 * 80
    assert scores["sliding"]["tokens"] == count - 1 and scores["document"]["tokens"] == count - 3
    assert scores["sliding"]["bytes"] == scores["document"]["bytes"] == len(TEXT) + 120 + 300
    assert (scores["chunked"]["stride"], scores["sliding"]["stride"]) == (80, 64)
    assert run([*scoring, "--mode", "sliding", "--stride", "80", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["val_bpb"] != scores["sliding"]["val_bpb"]


def test_eval_modes_and_strides_that_do_not_fit(toy_checkpoint, tokenizer_file, shards, capsys):
    scoring = ["eval", toy_checkpoint, "--tokens", shards, "--tokenizer", tokenizer_file, "--seq-len", "32"]
    fails(capsys, [*scoring, "--stride", "8"], 2, "stride 8 needs mode sliding or document")
    fails(capsys, [*scoring, "--mode", "sliding"], 2, "stride must be 1 to seq_len 32, got 64")
    fails(capsys, [*scoring, "--mode", "packed"], 2, "mode must be one of chunked, sliding, document, got 'packed'")


def test_eval_says_whether_bytes_are_those_of_a_public_split(toy_checkpoint, tokenizer_file, shards, capsys, monkeypatch):
    from quantlab.evaluation import ledger

    scoring = ["eval", str(toy_checkpoint), "--tokens", shards, "--tokenizer", str(tokenizer_file), "--mode", "sliding"]
    assert run([*scoring, "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert (score["split"], score["bytes_match"]) == ("", None)
    for size, code in ((score["bytes"], "those of the public validation split tiny"), (score["bytes"] + 9, "not valid: ")):
        monkeypatch.setattr(ledger, "KNOWN_SPLITS", (ledger.KnownSplit("tiny", score["tokens"], size, 400, documents=None),))
        assert run(scoring) == 0
        out, err = capsys.readouterr()
        assert code in (err if code == "not valid: " else out) and ("not valid" in err) == (size != score["bytes"])


@pytest.mark.slow
def test_eval_under_torchrun_prints_once(toy_checkpoint, tokenizer_file, shards, capsys):
    scoring = ["eval", str(toy_checkpoint), "--tokens", shards, "--tokenizer", str(tokenizer_file), "--seq-len", "64"]
    scoring += ["--mode", "document", "--stride", "16", "--json"]
    assert run(scoring) == 0
    alone = json.loads(capsys.readouterr().out)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "quantlab"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*torchrun, *scoring], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)
    assert both["val_bpb"] == pytest.approx(alone["val_bpb"], rel=1e-9) and both["tokens"] == alone["tokens"]
