"""`quantlab eval --sandbox`: the same score, without network and without any other file."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import random_state

from quantlab.cli.main import run
from quantlab.text.shards import write_shard

ROOT = Path(__file__).resolve().parents[2]
CONFINED = "import sys, pathlib, quantlab.confine as c; c.confine([], [], pathlib.Path(sys.argv[1]))"


def is_permitted() -> bool:
    """Whether this system lets a process confine itself: containers often do not."""
    with tempfile.TemporaryDirectory() as scratch:
        return subprocess.run([sys.executable, "-c", CONFINED, scratch], cwd=ROOT, capture_output=True).returncode == 0


permitted = pytest.mark.skipif(sys.platform != "linux" or not is_permitted(), reason="this system permits no sandbox")

MODEL = """
import socket
from pathlib import Path
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.emb = nn.Parameter(state["emb.weight"].float())
    def forward(self, ids):
        {act}
        return self.emb[ids] @ self.emb.T

def make(state):
    return Model(state)
"""


@pytest.fixture
def place(tmp_path, tokenizer, tokenizer_file, python_sources):
    torch.save(random_state(), tmp_path / "toy.pt")
    torch.save({"emb.weight": torch.randn(400, 16, generator=torch.Generator().manual_seed(0))}, tmp_path / "my.pt")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    (tmp_path / "answers.json").write_text("[1, 2, 3]")
    write_shard(tmp_path / "v_0.bin", tokenizer.encode_documents([python_sources[1][:4000]]))
    return tmp_path


def scoring(place: Path, target: str, *more: str) -> list[str]:
    return ["eval", f"{place}/{target}", "--tokens", f"{place}/v_*.bin", "--seq-len", "32", "--json", *more]


def in_sandbox(place: Path, act: str, capsys) -> tuple[int, str]:
    """Score a model of one's own that does something in every call; return the exit code and the error line."""
    (place / "my.py").write_text(MODEL.format(act=act.replace("PLACE", str(place))))
    code = run(scoring(place, "my.pt", "--sandbox", "--model", f"{place}/my.py:make"))
    return code, capsys.readouterr().err


@permitted
def test_the_score_is_the_same_and_says_that_it_was_confined(place, capsys):
    assert run(scoring(place, "toy.pt")) == 0
    free = json.loads(capsys.readouterr().out)
    assert run(scoring(place, "toy.pt", "--sandbox", "--save")) == 0
    confined = json.loads(capsys.readouterr().out)
    assert confined["val_bpb"] == free["val_bpb"] and confined["problems"] == []
    assert [p["name"] for p in confined["probes"]] == [*(p["name"] for p in free["probes"]), "sandbox"]
    assert confined["probes"][-1]["detail"].startswith("no network; of files outside Python 3 could be read: toy.pt, ")
    assert json.loads((place / "toy.eval.json").read_text())["probes"] == confined["probes"]


@permitted
def test_a_model_that_only_computes_runs(place, capsys):
    assert in_sandbox(place, "pass", capsys)[0] == 0


@permitted
@pytest.mark.parametrize(
    "act",
    [
        'Path("PLACE/answers.json").read_text()',
        'list(Path("/etc").iterdir())',
        'Path("PLACE/cache").write_text("x")',
        'Path("/proc/1/environ").read_bytes()',
        'socket.create_connection(("127.0.0.1", 9), timeout=1)',
        'socket.getaddrinfo("example.org", 80)',
    ],
)
def test_a_model_that_reaches_out_fails(place, act, capsys):
    code, err = in_sandbox(place, act, capsys)
    assert code == 1 and "error: " in err and "answers" not in err.replace("answers.json", "")


def test_what_a_sandbox_cannot_show_is_refused(place, capsys, monkeypatch):
    assert run(scoring(place, "toy.pt", "--sandbox", "--against", f"{place}/toy.pt")) == 2
    assert "a reference is not shown in the sandbox" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(scoring(place, "toy.pt", "--sandbox")) == 2
    assert "the sandbox is one process" in capsys.readouterr().err


def test_where_it_is_not_permitted_there_is_one_line_and_no_score(place):
    """Without namespaces, as in many containers."""
    command = CONFINED.replace("c.confine", "c.CLONE_NEWUSER = 1; c.confine")
    done = subprocess.run([sys.executable, "-c", command, place], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "a sandbox needs user and network namespaces" in done.stderr.splitlines()[-1]
