"""The TOML file of quantlab train: both configs, and every way to get it wrong."""

from pathlib import Path

import pytest

from quantlab.errors import ConfigError
from quantlab.pipeline.data import DataConfig
from quantlab.pipeline.train import read_train_file
from quantlab.trainer.config import TrainConfig

PRESETS = sorted((Path(__file__).parents[2] / "trainer/presets").glob("*.toml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_is_valid(path):
    config, data = read_train_file(path)
    assert config.steps > 0 and data.train == "stdlib"


def test_config_is_read_from_toml_and_unknown_keys_are_named(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('steps = 30\nmatrix_lr = 1\n[model]\nnum_layers = 2\n[data]\ntrain = "tokens:x"\ntokenizer = "t"\n')
    config, data = read_train_file(path)
    assert (config.steps, config.matrix_lr, config.model.num_layers) == (30, 1.0, 2)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert data == DataConfig(train="tokens:x", tokenizer="t")
    path.write_text("[model]\nnum_layer = 2\n")
    with pytest.raises(ConfigError, match=r"unknown key model\.num_layer") as caught:
        read_train_file(path)
    assert caught.value.hint == "did you mean model.num_layers?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = true", "steps must be int, got True"),
        ("steps = 1.5", "steps must be int, got 1.5"),
        ("model = 3", "model must be a table, got 3"),
        ("steps = 0", "steps must be at least 1, got 0"),
        ("matrix_lr = nan", "matrix_lr must be at least 0 and finite, got nan"),
        ("warmdown_frac = 2.0", "warmdown_frac must be 0 to 1, got 2.0"),
        ("beta1 = 1.0", "beta1 must be at least 0 and below 1"),
        ("seq_len = 1000", "micro_batch_tokens must be a multiple of seq_len = 1000, got 65536"),
        ("batch_tokens = 100", "batch_tokens must be a multiple of micro_batch_tokens"),
        ("steps = ", "is not TOML"),
        ("data = 3", "data must be a table, got 3"),
        ("[data]\ntrain = 'web'", "data.train must be stdlib, text:FILE or tokens:GLOB, got 'web'"),
        ("[data]\ntrain = 'text:a'", "needs data.tokenizer"),
        ("[data]\ntrian = 'stdlib'", "unknown key data.trian"),
    ],
)
def test_bad_config_values_are_named(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_train_file(path)


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read config .*absent\.toml: No such file"):
        read_train_file(tmp_path / "absent.toml")
