"""Packing measures the KL of the packed weights on calibration text that the statistics did not use."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOY
from torch import nn

import quantlab
from quantlab.calib.sources import CalibrationConfig, calibration_tokens, held_out_tokens
from quantlab.cli.main import run
from quantlab.errors import QuantlabError
from quantlab.jobs.held_out import calibration_of
from quantlab.models.challenge import gpt_from_state_dict
from quantlab.text.shards import write_shard

SAMPLE: dict[str, Any] = {"calib_tokens": 2048, "calib_seq_len": 64, "effort": "fast", "device": "cpu"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "train_000000.bin", np.random.default_rng(0).integers(0, 400, 64 * 100, dtype=np.uint16))
    return f"tokens:{folder}/train_*.bin"


def rows(ids: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in ids.tolist()}


@pytest.mark.parametrize(("source", "kind"), [("self", "self"), ("random", "random"), ("shards", "tokens")])
def test_held_out_sequences_are_others_of_the_same_source(
    source: str, kind: str, shards: str, toy_state: dict[str, torch.Tensor]
) -> None:
    config = CalibrationConfig(source=shards if source == "shards" else source, tokens=2048, seq_len=64)
    model = gpt_from_state_dict(toy_state, TOY)
    used, _ = calibration_tokens(config, model, None, 400)
    held, found = held_out_tokens(config, model, None, 400, tokens=1024)
    again, _ = held_out_tokens(config, model, None, 400, tokens=1024)
    assert (found, held.shape) == (kind, (16, 64)) and torch.equal(held, again)
    assert not rows(used) & rows(held)


def test_the_model_writes_text_where_a_file_has_no_more(shards: str, toy_state: dict[str, torch.Tensor]) -> None:
    config = CalibrationConfig(source=shards, tokens=6400, seq_len=64)
    held, found = held_out_tokens(config, gpt_from_state_dict(toy_state, TOY), None, 400, tokens=1024)
    assert found == "self" and held.shape == (16, 64)


@pytest.mark.parametrize("source", ["self", "random"])
def test_statistics_of_the_next_seed_are_not_measured_on_their_own_text(source: str, toy_checkpoint: Path) -> None:
    """The seed of the packing, which defaults to 0, says nothing about statistics that were measured with another."""
    stats = quantlab.calibrate(toy_checkpoint, calib=source, calib_tokens=2048, calib_seq_len=64, seed=1)
    drawn = calibration_of(stats, CalibrationConfig())
    assert (drawn.source, drawn.seed, drawn.tokens, drawn.seq_len) == (source, 1, 2048, 64)
    held, _ = held_out_tokens(drawn, quantlab.load(toy_checkpoint).model, None, 400, tokens=1024)
    assert not rows(held) & rows(stats.ids_NT)


@pytest.mark.parametrize("seed", [None, "1", -1, 2**63, True])
def test_a_seed_that_statistics_do_not_tell_is_that_of_the_packing(seed: Any, toy_checkpoint: Path) -> None:
    stats = quantlab.calibrate(toy_checkpoint, calib="random", calib_tokens=128, calib_seq_len=64)
    found = replace(stats, source={"kind": "self"} | ({} if seed is None else {"seed": seed}))
    assert calibration_of(found, CalibrationConfig(seed=7)).seed == 7


class Uncached(nn.Module):
    """A model without a cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(ids)
        return logits


def test_a_model_without_a_cache_writes_short_sequences(toy_state: dict[str, torch.Tensor]) -> None:
    config = CalibrationConfig(tokens=2048, seq_len=512)
    held, _ = held_out_tokens(config, Uncached(gpt_from_state_dict(toy_state, TOY)), None, 400, tokens=1024)
    assert held.shape == (4, 64)


@pytest.mark.parametrize("source", ["self", "shards", "stats"])
def test_the_report_has_the_measured_kl(
    source: str, shards: str, toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is that of the file: the artifact's tensors, put into the model, have the same KL on the same text."""
    command = ["pack", str(toy_checkpoint), "--budget", "60kB", "-o", str(tmp_path / "m.qlab"), "--effort", "fast"]
    sample = ["--calib-tokens", "2048", "--calib-seq-len", "64"]
    if source == "stats":
        quantlab.calibrate(toy_checkpoint, calib_tokens=2048, calib_seq_len=64, output=tmp_path / "s.safetensors")
        sample = ["--stats", str(tmp_path / "s.safetensors")]
    elif source == "shards":
        sample += ["--calib", shards]
    assert run([*command, *sample]) == 0
    report = json.loads((tmp_path / "m.report.json").read_text())
    found = report["measured"]
    where = "of the calibration text's file" if source == "shards" else "that the model wrote"
    line = f"measured KL {found['kl']:.5f} nats per token (held-out calibration: {found['tokens']:,} tokens {where})"
    assert line in capsys.readouterr().out
    assert (found["seq_len"], found["source"]) == (64, "tokens" if source == "shards" else "self")
    assert 0.3 < found["kl"] / report["predicted_kl"] < 3
    loaded = quantlab.load(toy_checkpoint)
    config = CalibrationConfig(source=shards if source == "shards" else "self", tokens=2048, seq_len=64)
    ids, _ = held_out_tokens(config, loaded.model, None, 400, tokens=4096)
    with torch.no_grad():
        p, q = (m(ids).double().log_softmax(-1) for m in (loaded.model, quantlab.load(tmp_path / "m.qlab").model))
    assert found["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert report["timings_s"]["measure"] > 0


class Closed(nn.Module):
    """Its forward reads a copy of its weights."""

    def __init__(self, inner: nn.Module, copy: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.__dict__["copy"] = copy

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(ids) if torch.is_grad_enabled() else self.__dict__["copy"](ids)
        return logits


def test_a_model_that_ignores_its_weights_is_an_error(toy_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    closed = Closed(gpt_from_state_dict(toy_state, TOY), gpt_from_state_dict(toy_state, TOY))
    with pytest.raises(QuantlabError, match="the model is compared with itself"):
        quantlab.pack(closed, budget=80_000, output=tmp_path / "m.qlab", **SAMPLE)
    assert not list(tmp_path.iterdir())
