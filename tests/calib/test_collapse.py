"""Calibration text that has collapsed is told from text that has not."""

import json

import numpy as np
import pytest
import torch
from conftest import TOY, random_state
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.calib.collapse import LEAST_RUN, LONGEST_PERIOD, _in_loops, measure_collapse
from quantlab.cli.main import run

RNG = np.random.default_rng(0)


def english() -> np.ndarray:
    """Bytes of prose-like sentences, int64 [8, 128]."""
    sentence = "the a model weight of byte budget is packed and read again by number line"
    words = [word.encode() for word in sentence.split()]
    text = b" ".join(words[i] for i in RNG.integers(len(words), size=600))
    return np.frombuffer(text, np.uint8)[:1024].reshape(8, 128).astype(np.int64)


def test_text_and_random_tokens_have_not_collapsed():
    for ids_NT, vocab_size in (
        (english(), 260),
        (RNG.integers(1024, size=(8, 128)), 1024),
        (RNG.integers(5, size=(8, 128)), 5),
    ):
        found = measure_collapse(ids_NT, vocab_size)
        assert not found.is_collapsed and found.looped < 0.05
        assert found.distinct_ids == len(np.unique(ids_NT)) and found.effective_ids <= found.distinct_ids


@pytest.mark.parametrize("period", [1, 2, 7, LONGEST_PERIOD])
def test_loops_are_found_at_every_period(period):
    loop = np.tile(RNG.permutation(1000)[:period], 400)
    found = measure_collapse(np.stack([loop[:256], loop[1:257]]), 1000)
    assert found.is_collapsed and found.looped == pytest.approx(1 - period / 256)


def test_few_ids_have_collapsed_without_loops():
    ids_NT = RNG.choice([3, 4], size=(8, 512))
    found = measure_collapse(ids_NT, 1024)
    assert found.is_collapsed and found.looped < 0.1 and found.effective_ids == pytest.approx(2, rel=1e-2)


def in_loops_slowly(ids_NT):
    """The definition, token by token."""
    out = np.zeros(ids_NT.shape, bool)
    for row, found in zip(ids_NT, out, strict=True):
        for period in range(1, LONGEST_PERIOD + 1):
            start = None
            for t in range(period, len(row) + 1):
                if t < len(row) and row[t] == row[t - period]:
                    start = t if start is None else start
                elif start is not None:
                    found[start:t] |= t - start >= max(LEAST_RUN, 2 * period)
                    start = None
    return out


@given(arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 90)), elements=st.integers(0, 1)))
@settings(deadline=None, max_examples=60)
def test_runs_are_those_of_the_definition(ids_NT):
    assert (_in_loops(ids_NT) == in_loops_slowly(ids_NT)).all()


@pytest.fixture
def collapsed(tmp_path):
    """A checkpoint whose samples are one token over and over: the softmax of its logits is nearly one-hot."""
    state = random_state(TOY)
    state["tok_emb.weight"] = 0.01 * state["tok_emb.weight"]
    state["tok_emb.weight"][:3] = 3.0
    torch.save(state, tmp_path / "toy.pt")
    return tmp_path / "toy.pt"


def test_a_collapsed_sample_is_a_warning_and_a_second_figure(collapsed, tmp_path, capsys, caplog):
    options = ["--calib-tokens", "1024", "--calib-seq-len", "64", "--device", "cpu"]
    stats = tmp_path / "s.safetensors"
    assert run(["calibrate", str(collapsed), "-o", str(stats), *options]) == 0
    assert "the calibration text has collapsed" in caplog.text and "--calib text:FILE" in caplog.text
    assert "collapsed" in capsys.readouterr().out
    assert run(["calibrate", str(collapsed), "-o", str(stats), "--force", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)["collapse"]
    assert found["is_collapsed"] and found["distinct_ids"] < 400
    caplog.clear()
    asked = ["--budget", "80000", "-o", str(tmp_path / "m.qlab"), "--stats", str(stats), "--no-tune"]
    assert run(["pack", str(collapsed), *asked]) == 0
    assert "the calibration text has collapsed" in caplog.text
    out = capsys.readouterr().out
    assert "warning: the calibration text has collapsed" in out and "on random tokens" in out
    report = json.loads((tmp_path / "m.report.json").read_text())
    assert report["calibration"]["collapse"] == found
    assert report["measured"]["kl_random"] > 1000 * report["measured"]["kl"] > 0  # what the collapsed text does not show
