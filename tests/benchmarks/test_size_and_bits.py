"""The family of widths: equal compute, finished rows are kept, and the best width is that of the fewest bits per byte."""

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import size_and_bits

from quantlab.jobs.train_file import read_train_config

ROWS = [
    {"width": w, "weights": 10 * w, "bits_per_weight": 2.0, "bpb": {"float": f, "quantlab": q, "record pipeline": r}}
    for w, f, q, r in ((64, 2.1, 2.11, 2.12), (96, 2.0, 2.05, 2.15), (128, 1.9, 2.06, None))
]


def test_every_width_gets_the_same_compute():
    for width in (64, 96, 128, 256):
        config, _ = read_train_config("demo", changes=size_and_bits.changes_of(width, 300))
        assert (config.model.model_dim, config.model.mlp_hidden, config.max_seconds) == (width, 6 * width, 0)
        compute = config.steps * size_and_bits.weights_of(width)
        assert abs(compute / (300 * size_and_bits.weights_of(128)) - 1) < 0.01


def test_the_best_width_of_each_method_is_found_where_it_has_a_file():
    assert [size_and_bits.optimum(ROWS, m)["width"] for m in ("float", "quantlab", "record pipeline")] == [128, 96, 64]
    assert size_and_bits.table(ROWS).splitlines()[-1] == "| 128 | 1,280 | 2.00 | 1.9000 | 2.0600 | - |"


def test_a_finished_row_is_not_measured_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(size_and_bits, "measure", lambda width, *_: asked.append(width) or ROWS[0] | {"width": width})
    (tmp_path / "64_250000_9.json").write_text(json.dumps(ROWS[0]))
    arguments = argparse.Namespace(budget="250KB", widths="64,96", steps=9, work=tmp_path)
    assert [row["width"] for row in size_and_bits.rows_of(arguments)] == [64, 96] and asked == [96]
    assert (tmp_path / "96_250000_9.json").exists()
