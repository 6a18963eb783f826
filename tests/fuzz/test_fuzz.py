"""The fuzz harness finds what is planted, saves it, and finds nothing in the readers as they are."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import damages
import pytest
from harness import CASE_SECONDS, Files, Finding, Session, case_of, problem_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Planted:
    """A reader with a fault at one first byte."""

    name, weight = "planted", 1

    def __init__(self, fault):
        self.fault = fault

    def draw(self, rng: random.Random) -> Files:
        return {"x": bytes([rng.randrange(8)]) + rng.randbytes(9)}

    def check(self, files: Files, folder: Path) -> None:
        (folder / "x").write_bytes(files["x"])
        if files["x"][0] == 3:
            self.fault()


def wrong():
    raise Finding("other weights")


def crash():
    {}["key"]


def leave():
    sys.exit(3)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    while True:
        try:
            time.sleep(0)
        except Exception:
            continue


def waste():
    bytearray(os.urandom(1) * (200 << 20))


@pytest.mark.parametrize(
    ("fault", "says"),
    [(wrong, "other weights"), (crash, "KeyError"), (leave, "SystemExit"), (die, "signal 9"), (waste, "MemoryPeak")],
)
def test_a_planted_fault_is_found_and_saved(fault, says, tmp_path, capfd):
    outcome = Session([Planted(fault)], seed=0, seconds=100, most_cases=24, findings=tmp_path).run(workers=2)
    cases = [case_of([Planted(fault)], 0, number)[1]["x"] for number in range(24)]
    expected = sum(case[0] == 3 for case in cases)
    assert outcome.total == 24 and 1 <= outcome.findings <= expected and (fault is waste or outcome.findings == expected)
    folder = Path(outcome.folders[0])
    number = int(folder.name.split("-")[-1])
    assert (folder / "files" / "x").read_bytes() == cases[number] and says in (folder / "problem.txt").read_text()
    assert f"saved as {folder}" in capfd.readouterr().err


def test_a_case_that_takes_too_long_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.CASE_SECONDS", 0.2)
    started = time.process_time()
    assert "TooLong" in problem_of(Planted(hang), {"x": b"\x03"}, tmp_path)
    assert time.process_time() - started < CASE_SECONDS


def test_a_case_follows_from_seed_and_number():
    targets = [Planted(wrong)]
    assert case_of(targets, 7, 3)[1] == case_of(targets, 7, 3)[1]
    assert (
        len({case_of(targets, 7, n)[1]["x"] for n in range(9)}) == len({case_of(targets, s, 0)[1]["x"] for s in range(9)}) == 9
    )


def test_damages_change_bytes_and_trees():
    rng, data, tree = random.Random(0), bytes(range(200)), {"a": [1, {"b": "x"}], "c": None}
    changed = [damages.damaged(rng, data, [data[::-1]]) for _ in range(300)]
    assert len(set(changed)) > 250 and {len(one) < 200 for one in changed} == {True, False}
    trees = {json.dumps(damages.damaged_tree(rng, json.loads(json.dumps(tree)))) for _ in range(300)}
    assert len(trees) > 150


def run_fuzz(**variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **variables}
    command = [sys.executable, str(HERE / "fuzz.py")]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_readers_stand_a_short_attack():
    done = run_fuzz(FUZZ_SEED="1", FUZZ_SECONDS="300", FUZZ_CASES="4000")
    assert done.returncode == 0, done.stderr
    *_, counts, last = done.stdout.strip().splitlines()
    assert last.startswith("fuzz: 4,000 cases, 0 findings, seed 1, ")
    assert sum(json.loads(counts).values()) == 4000 and min(json.loads(counts).values()) > 0
