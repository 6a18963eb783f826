"""The log has the lines that the challenge's scripts search, and the same facts as JSON lines."""

import json
import re

import pytest

from quantlab.errors import ConfigError
from quantlab.trainer.training_log import LOG_NAME, METRICS_NAME, TrainingLog


def fill(log):
    log.train(step=3, steps=10, loss=2.5, seconds=1.5, tokens_per_second=100.0, lr=1.0)
    log.validation(step=4, steps=10, loss=2.25, bpb=1.5, seconds=2.0)
    log.end(step=4, steps=10, seconds=2.0, memory=(3 << 20, 5 << 20), timeline={"inside": {"training": 2.0}})


def test_lines_are_those_of_the_challenge(tmp_path):
    fill(TrainingLog(tmp_path))
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    assert lines[0] == "step:3/10 train_loss:2.5000 train_time:1500ms step_avg:500.00ms"
    assert lines[1] == "step:4/10 val_loss:2.2500 val_bpb:1.5000 train_time:2000ms step_avg:500.00ms"
    assert lines[2] == "stopping_early: wallclock_cap train_time:2000ms step:4/10"
    assert lines[3] == "peak memory allocated: 3 MiB reserved: 5 MiB"
    assert re.search(r"step:(\d+)/\d+ val_loss:([\d.]+) val_bpb:([\d.]+)", lines[1]).groups() == ("4", "2.2500", "1.5000")


def test_metrics_are_json_lines(tmp_path):
    fill(TrainingLog(tmp_path))
    records = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [("train", 3), ("validation", 4), ("end", 4)]
    assert records[0]["tokens_per_second"] == 100.0 and records[1]["bpb"] == 1.5
    assert records[2]["timeline"] == {"inside": {"training": 2.0}}


def test_a_new_training_begins_new_files_and_a_resumed_one_goes_on(tmp_path):
    for options, lines in (({}, 4), ({"resume": True}, 8), ({}, 4)):
        fill(TrainingLog(tmp_path, **options))
        assert len((tmp_path / LOG_NAME).read_text().splitlines()) == lines


def test_metrics_of_steps_that_are_done_again_are_replaced(tmp_path):
    log = TrainingLog(tmp_path)
    for step in (3, 4, 5):
        log.train(step=step, steps=10, loss=9.0, seconds=1.5, tokens_per_second=100.0, lr=1.0)
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('{"kind": "tra')  # a kill
    fill(TrainingLog(tmp_path, resume=True))
    fill(TrainingLog(tmp_path, resume=True))
    TrainingLog(tmp_path, resume=True).validation(step=4, steps=10, loss=2.0, bpb=1.0, seconds=2.0)
    records = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    assert [(r["kind"], r["step"], r.get("loss")) for r in records] == [("train", 3, 2.5), ("validation", 4, 2.0)]


def test_other_processes_write_nothing(tmp_path):
    fill(TrainingLog(tmp_path / "x", is_main=False))
    assert not (tmp_path / "x").exists()


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--tensorboard needs the package tensorboard"):
        TrainingLog(tmp_path, tensorboard=True)


def test_a_validation_done_again_leaves_the_training_record_of_its_step(tmp_path):
    TrainingLog(tmp_path).train(step=4, steps=4, loss=9.0, seconds=1.5, tokens_per_second=100.0, lr=1.0)
    TrainingLog(tmp_path, resume=True).validation(step=4, steps=4, loss=2.0, bpb=1.0, seconds=2.0)
    records = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    assert [r["kind"] for r in records] == ["train", "validation"]
