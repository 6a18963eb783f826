"""What a demo leaves behind, the next demo may fill again."""

import pytest

from quantlab.errors import ConfigError
from quantlab.jobs.demo import _refuse_foreign

LEFT = ["model.safetensors", "model.qlab", "model.report.json", "model.eval.json", "summary.json", "tokenizer.model"]
LEFT += ["training.safetensors", "train.log", "metrics.jsonl", "val_000000.bin"]


def test_a_second_demo_may_fill_the_folder_of_the_first(tmp_path):
    for name in LEFT:
        (tmp_path / name).touch()
    _refuse_foreign(tmp_path)
    (tmp_path / "small.qlab").touch()
    with pytest.raises(ConfigError, match="holds small.qlab, which no demo wrote"):
        _refuse_foreign(tmp_path)
