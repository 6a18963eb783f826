"""Progress: one line a stage, with a total that stays, a rate, and the time that is left or was taken."""

import io
import time

import pytest
from rich.console import Console

from quantlab.cli.display import WIDTH, ProgressDisplay, StageMeter


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_every_few_seconds_and_the_last_one_of_every_stage(clock, capsys):
    with ProgressDisplay() as progress:
        for done in range(0, 65537, 2048):
            progress("sample calibration text", done, 65536)
            clock[0] += 1.0
        progress("round, pass 1 of at most 12", 0, 36_000_000)
        clock[0] += 20.0
        progress("round, pass 1 of at most 12", 7_000_000, 36_000_000)
        clock[0] += 1.0
        progress("round, pass 1 of at most 12", 9_000_000, 36_000_000)
        progress("settle the size", 1, 16)
        clock[0] += 3.0
        progress("settle the size", 3, 16)
    assert capsys.readouterr().err.splitlines() == [
        "sample calibration text  30,720/65,536 tokens  2.0k/s  17 s left",
        "sample calibration text  61,440/65,536 tokens  2.0k/s  2.0 s left",
        "sample calibration text  65,536/65,536 tokens  2.0k/s  took 32 s",
        "round, pass 1 of at most 12  7.0M/36.0M weights  350k/s  1 min 23 s left",
        "round, pass 1 of at most 12  9.0M/36.0M weights  430k/s  took 21 s",
        "settle the size  3/16 tries  0.67/s  took 3.0 s",
    ]


def test_a_stage_without_a_unit_shows_its_note(clock, capsys):
    with ProgressDisplay() as progress:
        progress("train", 0, 900)
        clock[0] += 200.0
        progress("train", 300, 900, "step 300, loss 3.221")
        clock[0] += 400.0
        progress("train", 900, 900, "step 900, loss 3.012")
        progress("train", 900, 900, "step 900, loss 3.012")
        progress("train", 0, 5)
    assert capsys.readouterr().err.splitlines() == [
        "train  300/900  6 min 40 s left  step 300, loss 3.221",
        "train  900/900  took 10 min 0 s  step 900, loss 3.012",
        "train  0/5  took 0.0 s",
    ]


def test_work_of_an_earlier_attempt_does_not_count_as_speed():
    meter = StageMeter("round, pass 2 of at most 12", 500, 0.0)
    meter.update(600, 1000, "", 10.0)
    assert meter.line() == "round, pass 2 of at most 12  600/1,000 weights  10/s  40 s left"


def test_no_line_is_wider_than_a_terminal():
    meter = StageMeter("train", 0, 0.0)
    meter.update(10**9, 10**10, "loss " * 50, 1e5)
    assert len(meter.line()) <= WIDTH == 80


def test_a_terminal_shows_the_same_lines(clock, monkeypatch):
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=100)
    monkeypatch.setattr("rich.console.Console", lambda stderr: terminal)
    with ProgressDisplay() as progress:
        progress("tune unquantized tensors", 0, 10)
        clock[0] += 2.0
        progress("tune unquantized tensors", 10, 10)
    assert "tune unquantized tensors  10/10 steps  5.0/s  took 2.0 s" in out.getvalue()
