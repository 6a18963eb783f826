"""quantlab search with real trials: parallel processes, one shared training, a kill, a second call, a run a trial."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline_samples import write_pipeline

from quantlab.cli.main import run
from quantlab.runs.store import join, read_store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
SPACE = """
[search]
pipeline = "p.toml"
proposer = "command:%s propose.py"
trials = 3
workers = 2
[space]
pack.states = [1, 4, 8]
pack.budget = ["40kB", "1kB"]
"""
PROPOSE = """
import json, sys
number = len(sys.stdin.readlines()) - 1
print(json.dumps({"pack.states": [4, 8, 1][number], "pack.budget": "1kB" if number == 2 else "40kB"}))
"""


@pytest.fixture
def folder(tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_pipeline(tmp_path, tokenizer_file)
    (tmp_path / "s.toml").write_text(SPACE % sys.executable)
    (tmp_path / "propose.py").write_text(PROPOSE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trials(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("s.search/trials/*/trial.json"))]


def test_a_killed_search_goes_on_and_trials_share_their_training(folder: Path, capsys: pytest.CaptureFixture[str]):
    command = [sys.executable, "-m", "quantlab", "search", "run", "s.toml", "--runs", "runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while (
        not list(folder.glob("s.search/trials/*/out/train-*/stage.json"))
        and time.monotonic() < deadline
        and first.poll() is None
    ):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for shared in folder.glob("s.search/stages/train-*"):  # as if it was killed before the training was shared
        shutil.rmtree(shared)
    assert {trial["state"] for trial in trials(folder)} == {"running"}

    assert run(["search", "run", "s.toml", "--runs", "runs", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = trials(folder)
    assert [trial["state"] for trial in found] == ["done", "done", "failed"]
    assert [trial["attempts"] for trial in found][:2] == [2, 2]
    assert "below the smallest reachable size" in found[2]["problem"]
    assert len(list(folder.glob("s.search/stages/train-*"))) == 1
    assert len(list(folder.glob("s.search/stages/pack-*"))) == 2
    inodes = {path.stat().st_ino for path in folder.glob("s.search/trials/*/out/train-*/model.safetensors")}
    assert len(inodes) == 1
    assert report["best"]["bpb"] == min(trial["bpb"] for trial in found if trial["bpb"])

    recorded = {joined.run.name: joined for joined in join(read_store(folder / "runs").runs)}
    assert {trial["run"] for trial in found} <= recorded.keys()
    assert [recorded[trial["run"]].is_valid for trial in found] == [True, True, False]
    assert run(["search", "run", "s.toml", "--runs", "runs"]) == 0
    assert [trial["seconds"] for trial in trials(folder)] == [trial["seconds"] for trial in found]


def test_a_trial_whose_process_dies_is_begun_again_and_then_fails(folder: Path, monkeypatch, capsys):
    text = (folder / "s.toml").read_text().replace("trials = 3", "trials = 1").replace("workers = 2", "workers = 1")
    (folder / "s.toml").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    (folder / "sitecustomize.py").write_text(
        "import sys\nif 'search_trial' in ' '.join(sys.orig_argv):\n    import os\n    os._exit(9)\n"
    )
    assert run(["search", "run", "s.toml", "--runs", "runs"]) == 0
    out, err = capsys.readouterr()
    assert "trial 0 died (exit code 9: no message): once more" in err
    assert "no valid trial" in out
    assert trials(folder)[0]["problem"].startswith("its process died 2 times, exit code 9")
