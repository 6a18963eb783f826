"""quantlab eval --ttt: the record names the adaptation, what it changed, and whether it was in time."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from quantlab.cli.main import app
from quantlab.errors import ConfigError
from quantlab.evaluation.evaluation_record import read_evaluation, record_path
from quantlab.jobs import evaluate as job
from quantlab.jobs.evaluate import evaluate
from quantlab.models.challenge import gpt_from_state_dict

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"rank": 2, "chunk": 32, "lr": 0.002}


@pytest.fixture(scope="module")
def text(python_sources: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "val.jsonl"
    lines = [json.dumps({"text": source.decode()[at : at + 900]}) for source in python_sources for at in (0, 3000)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def asked(text, tokenizer):
    return {"text": text, "tokenizer": tokenizer, "seq_len": 64}


@pytest.mark.parametrize("kind", ["lora", "sgd", "phased"])
def test_the_record_has_the_adaptation_its_gain_and_its_probes(toy_state, asked, kind):
    options = {"lora": SMALL, "sgd": {"chunk": 300, "lr": 0.01}, "phased": {"phases": 2, "prefix": 4, "lora": SMALL}}[kind]
    model = gpt_from_state_dict(toy_state)
    record = evaluate(model, ttt=kind, ttt_options=options, **asked)
    plain = evaluate(model, mode=record.data.mode, stride=32 if kind != "sgd" else None, **asked)
    assert record.data.adaptation.startswith(f"{kind} ") and plain.data.adaptation == ""
    assert plain.data.differences(record.data) == ["adaptation"]
    assert record.gain.plain_bpb == plain.val_bpb and record.gain.documents == plain.data.documents == 8
    change, low, high = record.gain.in_bpb(record.data)
    assert plain.val_bpb + change == pytest.approx(record.val_bpb, rel=1e-6)
    assert low < change < high and change < 0  # the toy's weights are random: adaptation helps
    names = [probe.name for probe in record.probes if probe.passed]
    assert {"normalization", "flip", "rows", "score", "adaptation flip", "adaptation step 0", "clock"} <= set(names)
    assert record.problems == ()


def test_options_without_an_adaptation_and_other_modes_are_refused(toy_state, asked):
    model = gpt_from_state_dict(toy_state)
    for wrong, message in [
        ({"ttt_options": {"rank": 2}}, "option rank is one of test-time training"),
        ({"ttt": "lora", "mode": "chunked", "ttt_options": SMALL}, "in mode document, got mode chunked"),
    ]:
        with pytest.raises(ConfigError, match=message):
            evaluate(model, **wrong, **asked)


def test_several_processes_are_refused(toy_state, asked, monkeypatch):
    from quantlab.trainer.world import World

    monkeypatch.setattr(job, "open_world", lambda: World(0, 2))
    monkeypatch.setattr(job, "close_world", lambda world: None)
    with pytest.raises(ConfigError, match="test-time training runs in one process, not in 2"):
        evaluate(gpt_from_state_dict(toy_state), ttt="lora", **asked)


def test_a_score_over_its_clock_is_not_valid(toy_state, asked):
    model = gpt_from_state_dict(toy_state)
    late = evaluate(model, ttt="lora", ttt_options=SMALL, max_seconds=1e-9, **asked)
    (problem,) = late.problems
    assert problem.startswith("clock: ") and problem.endswith(" s until the score, 1e-09 s are allowed")


def test_the_command_prints_both_scores_and_saves_the_same_record_twice(toy_state, text, tokenizer_file, tmp_path):
    target = tmp_path / "toy.pt"
    torch.save(toy_state, target)
    command = ["eval", str(target), "--text", str(text), "--tokenizer", str(tokenizer_file), "--seq-len", "64"]
    command += [
        "--ttt",
        "lora",
        *(word for k, v in SMALL.items() for word in ("--ttt-option", f"{k}={v}")),
        "--save",
        "--force",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    first = record_path(target).read_bytes()
    record = read_evaluation(record_path(target))
    change, low, high = record.gain.in_bpb(record.data)
    interval = f"{change:+.6f} (95 % over 8 documents: {low:+.6f} to {high:+.6f})"
    assert f"without it val_bpb {record.gain.plain_bpb:.6f}, with it {interval}" in result.stdout
    assert "test-time training: lora rank=2 alpha=16 lr=0.002 " in result.stdout
    assert "adaptation flip, adaptation step 0, clock" in result.stdout.partition("checks passed: ")[2].splitlines()[0]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert record_path(target).read_bytes() == first
    wrong = CliRunner().invoke(app, ["eval", str(target), "--text", str(text), "--ttt", "lora", "--ttt-option", "rnak=2"])
    assert isinstance(wrong.exception, ConfigError) and str(wrong.exception) == "unknown key rnak"
