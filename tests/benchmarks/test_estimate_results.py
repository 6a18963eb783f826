"""The saved results of benchmarks/estimate.py keep what the estimate promises: bytes within 10 %, KL within 25 %."""

import json
from pathlib import Path

import pytest

ROWS = json.loads((Path(__file__).parents[2] / "benchmarks/results/estimate.json").read_text())["rows"]
MODELS = sorted({row["model"] for row in ROWS})


@pytest.mark.parametrize("model", MODELS)
def test_estimates_hold_over_a_factor_of_three_in_bytes(model):
    rows = [row for row in ROWS if row["model"] == model]
    sizes = [row["budget_bytes"] for row in rows]
    assert max(sizes) >= 2.9 * min(sizes)
    for row in rows:
        assert 0.9 <= row["file_bytes"] / row["budget_bytes"] <= 1.0
        assert row["kl"] / row["estimated_kl"] == pytest.approx(row["ratio"]) and 0.75 <= row["ratio"] <= 1.25
        assert row["low"] <= row["kl"] <= row["high"]


def test_the_challenge_s_model_and_the_demo_s_are_among_them():
    assert {"web4", "demo"} <= set(MODELS)
