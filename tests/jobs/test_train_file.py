"""The TOML file of quantlab train: both configs, and every way to get it wrong."""

import re
from pathlib import Path

import pytest

from quantlab.errors import ConfigError
from quantlab.jobs.train import DataConfig
from quantlab.jobs.train_file import ignored_variables, presets, read_train_config, read_train_file
from quantlab.trainer.from_env import RULES
from quantlab.trainer.train_config import TrainConfig

PRESETS = sorted((Path(__file__).parents[2] / "trainer/presets").glob("*.toml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_is_valid(path):
    config, data = read_train_config(str(path))
    assert config.steps > 0 and data.train.startswith(("stdlib", "tokens:"))
    assert read_train_config(path.stem) == (config, data)


def test_config_is_read_from_toml_and_unknown_keys_are_named(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('steps = 30\nmatrix_lr = 1\n[model]\nnum_layers = 2\n[data]\ntrain = "tokens:x"\ntokenizer = "t"\n')
    config, data = read_train_config(str(path))
    assert (config.steps, config.matrix_lr, config.model.num_layers) == (30, 1.0, 2)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert data == DataConfig(train="tokens:x", tokenizer="t")
    path.write_text("[model]\nnum_layer = 2\n")
    with pytest.raises(ConfigError, match=r"unknown key model\.num_layer") as caught:
        read_train_config(str(path))
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
        read_train_config(str(path))


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read config .*absent\.toml: No such file"):
        read_train_config(str(tmp_path / "absent.toml"))


def test_presets_are_found_by_name_and_a_wrong_name_gets_the_nearest():
    assert {"baseline", "h1394", "laptop", "demo"} <= set(presets())
    with pytest.raises(ConfigError, match="no file and no preset is named baselin") as caught:
        read_train_config("baselin")
    assert caught.value.hint == "did you mean baseline?"


def test_the_baseline_preset_is_the_challenges_baseline():
    config, _ = read_train_config("baseline")
    assert config.model == TrainConfig().model
    assert (config.batch_tokens, config.seq_len, config.warmdown_steps) == (524288, 1024, 1200)


def test_changes_come_after_the_file_and_reach_tables():
    changes = ["max_seconds=30", "model.num_layers=2", "data.train=text:a.txt", "data.tokenizer=t.model", "model.ln_scale=true"]
    config, data = read_train_config("laptop", changes=changes)
    assert (config.max_seconds, config.model.num_layers, config.model.ln_scale) == (30.0, 2, True)
    assert data == DataConfig(train="text:a.txt", tokenizer="t.model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps", "--set must look like key=value, got 'steps'"),
        ("=3", "--set must look like key=value"),
        ("stepz=3", "unknown key stepz"),
        ("steps=many", "steps must be int, got 'many'"),
        ("steps.more=3", "steps.more: steps is not a table"),
    ],
)
def test_bad_changes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        read_train_config("laptop", changes=[change])


def test_a_published_command_of_the_challenge_carries_over():
    """The variables of the record of 2026-04-05 give its preset back, on top of the baseline."""
    environment = {
        "VOCAB_SIZE": "8192",
        "NUM_LAYERS": "11",
        "MLP_MULT": "4.0",
        "TRAIN_SEQ_LEN": "2048",
        "TIED_EMBED_LR": "0.03",
        "XSA_LAST_N": "11",
        "ROPE_DIMS": "16",
        "LN_SCALE": "1",
        "SKIP_GATES_ENABLED": "1",
        "NUM_LOOPS": "2",
        "LOOP_START": "4",
        "LOOP_END": "5",
        "ENABLE_LOOPING_AT": "0.5",
        "EMA_DECAY": "0.997",
        "MUON_WD": "0.085",
        "DATA_PATH": "data/sp8192/",
        "RUN_ID": "x",
        "EMBED_LR": "0.6",
        "HOME": "/",
    }
    config, data = read_train_config("baseline", environment=environment)
    wanted, _ = read_train_config("h1394")
    same = ("vocab_size", "num_layers", "mlp_hidden", "xsa_last_n", "rope_dims", "ln_scale", "skip_gates", "num_loops")
    assert all(getattr(config.model, name) == getattr(wanted.model, name) for name in same)
    assert config.model.order() == wanted.model.order()
    assert (config.embed_lr, config.weight_decay, config.loop_from) == (0.03, 0.085, 0.5)
    assert (config.average, config.ema_decay) == ("ema", 0.997)
    assert data.train == "tokens:data/sp8192/fineweb_train_*.bin" and data.val == "tokens:data/sp8192/fineweb_val_*.bin"
    assert ignored_variables(environment, (config, data)) == ["EMBED_LR", "RUN_ID"]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"MODEL_DIM": "768"}, {"model.mlp_hidden": 1536}),  # twice the width, as in the script
        ({"MODEL_DIM": "768", "MLP_MULT": "3"}, {"model.mlp_hidden": 2304}),
        ({"TIE_EMBEDDINGS": "0"}, {"embed_lr": 0.6}),
        ({"TIE_EMBEDDINGS": "0", "EMBED_LR": "0.3", "TIED_EMBED_LR": "9"}, {"embed_lr": 0.3}),
        ({"WARMDOWN_ITERS": "0"}, {"warmdown_steps": 0, "warmdown_frac": 0.0}),
        ({"WARMDOWN_FRAC": "0.667"}, {"warmdown_steps": 0, "warmdown_frac": 0.667}),
        ({"TRAIN_BATCH_TOKENS": "8192"}, {"batch_tokens": 8192, "micro_batch_tokens": 1024}),
        ({"TRAIN_SEQ_LEN": "1536", "TRAIN_BATCH_TOKENS": "36864"}, {"micro_batch_tokens": 4608}),
        ({"GPTQ_RESERVE_SECONDS": "12"}, {"max_seconds": 588.0}),
        ({"TRAIN_LOG_EVERY": "0", "ITERATIONS": "50"}, {"log_every": 50}),
        ({"DATA_DIR": "d", "VOCAB_SIZE": "4096"}, {"data.tokenizer": "d/tokenizers/fineweb_4096_bpe.model"}),
        ({"EMA_DECAY": "0"}, {"average": "none"}),
        ({"PARALLEL_START_LAYER": "-1"}, {"model.parallel_last_n": 0, "model.lanes_from": 0}),
        ({"PARALLEL_START_LAYER": "8"}, {"model.lanes_from": 8, "model.final_lane": "mean"}),
        ({"PARALLEL_START_LAYER": "7", "PARALLEL_FINAL_LANE": "MLP"}, {"model.lanes_from": 7, "model.final_lane": "mlp"}),
        ({"PARALLEL_START_LAYER": "9", "PARALLEL_FINAL_LANE": "mlp"}, {"model.lanes_from": 0, "model.final_lane": "mean"}),
        ({"SPARSE_ATTN_GATE_ENABLED": "1", "SPARSE_ATTN_GATE_SCALE": "0.5"}, {"model.attn_gate": "sparse"}),
        ({"SPARSE_ATTN_GATE_ENABLED": "1", "SPARSE_ATTN_GATE_SCALE": "0.5"}, {"model.attn_gate_scale": 0.5}),
        ({"SPARSE_ATTN_GATE_SCALE": "0.5"}, {"model.attn_gate": "none", "model.attn_gate_scale": 1.0}),
        ({"GATED_ATTN_ENABLED": "1"}, {"model.attn_gate": "full"}),
        ({"ATTN_OUT_GATE_ENABLED": "1"}, {"model.attn_gate": "double"}),
        ({"ROPE_YARN": "1"}, {"model.rope_train_len": 1024}),
        ({"ROPE_YARN": "0", "ROPE_TRAIN_SEQ_LEN": "512"}, {"model.rope_train_len": 0}),
        ({"ROPE_TRAIN_SEQ_LEN": "512"}, {"model.rope_train_len": 512}),
        ({"EMBEDDING_DIM": "256"}, {"model.embedding_dim": 256}),
        ({"EMBEDDING_DIM": "512"}, {"model.embedding_dim": 0}),
        ({"VE_ENABLED": "1", "VE_DIM": "64", "VE_LAYERS": "7,8"}, {"model.value_dim": 64, "model.value_last_n": 2}),
        ({"WD_TAPER_START_FRAC": "0.7", "WD_TAPER_FINAL_MULT": "0.5"}, {"wd_taper_from": 0.7, "wd_taper_to": 0.5}),
        (
            {"CASEOPS_ENABLED": "1", "DATA_DIR": "d", "VOCAB_SIZE": "8192"},
            {
                "data.tokenizer": "d/datasets/fineweb10B_sp8192_caseops/datasets/tokenizers/"
                "fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model"
            },
        ),
    ],
)
def test_variables_that_hang_together(environment, wanted):
    config, data = read_train_config("baseline", environment=environment)
    found = {"data": data, "model": config.model}
    for key, value in wanted.items():
        table, _, name = key.rpartition(".")
        assert getattr(found.get(table, config), name) == value


def test_variables_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match="embedding_dim goes without smear_gate"):
        read_train_config("baseline", environment={"EMBEDDING_DIM": "256", "SMEAR_GATE_ENABLED": "1"})
    with pytest.raises(ConfigError, match="GATED_ATTN_ENABLED and SPARSE_ATTN_GATE_ENABLED exclude each other"):
        read_train_config("baseline", environment={"GATED_ATTN_ENABLED": "1", "SPARSE_ATTN_GATE_ENABLED": "1"})
    with pytest.raises(ConfigError, match=r"VE_LAYERS must be the last layers here, \[7, 8\], got \[9, 10\]"):
        read_train_config("baseline", environment={"VE_ENABLED": "1"})
    with pytest.raises(ConfigError, match="give warmdown_steps or warmdown_frac, not both: 1200 and 0.5"):
        read_train_config("baseline", changes=["warmdown_frac=0.5"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GATE_WINDOW", "8", "must be 12 here, got '8': parts of the model that are built here in one way"),
        ("ATTN_OUT_GATE_SRC", "q", "must be proj here, got 'q'"),
        ("MUON_BACKEND_STEPS", "6", "must be 5 here, got '6': optimizers"),
        ("TTT_EVAL_ONLY", "1", "must be 0 here, got '1': evaluation"),
        ("VALUE_RESIDUAL", "1", "is not read by this trainer, and it may change the model"),
        ("SWA_ENABLED", "1", "is not read by this trainer"),
        ("PARALLEL_RESIDUAL", "0", "is not read by this trainer"),
    ],
)
def test_a_variable_that_would_make_another_model_is_refused(name, value, message):
    with pytest.raises(ConfigError, match=f"^{name} {re.escape(message)}") as caught:
        read_train_config("baseline", environment={name: value})
    assert "\n" not in str(caught.value)


RECORD_DEFAULTS = dict(line.split("=", 1) for line in Path(__file__).with_name("record_1855.env").read_text().splitlines())
"""Every variable that train_gpt.py of the record of 2026-04-27 (pull request 1855) reads, with its default value."""


def test_every_variable_of_the_record_of_april_27_has_a_rule():
    """Those that it sets to its own defaults: understood, named as without effect, or refused."""
    refused, named = set(), set()
    for name, value in RECORD_DEFAULTS.items():
        try:
            config, data = read_train_config("h1394", environment={name: value})
        except ConfigError as error:
            assert name in str(error)
            refused.add(name)
            continue
        named.update(ignored_variables({name: value}, (config, data)))
    understood = RECORD_DEFAULTS.keys() - refused - named
    assert len(RECORD_DEFAULTS) == 120
    assert refused == set()
    assert {"TTT_ENABLED", "LQER_RANK", "WARMUP_STEPS"} <= named and {"MUON_WD", "LOOP_END", "DATA_DIR"} <= understood
    assert understood <= RULES.keys() and all(RULES[name] is not None for name in understood - {"EMBED_LR"})


RECORD_COMMAND = """
VOCAB_SIZE=8192 DATA_PATH=./data/datasets/fineweb10B_sp8192_lossless_caps_caseops_v1_reserved
TOKENIZER_PATH=./data/tokenizers/fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model CASEOPS_ENABLED=1 ITERATIONS=20000
MAX_WALLCLOCK_SECONDS=600 EMBED_BITS=7 MATRIX_LR=0.026 MIN_LR=0.1 GRAD_CLIP_NORM=0.3 TTT_CHUNK_SIZE=48 WARMUP_STEPS=20
MUON_BACKEND_STEPS=5 WARMDOWN_FRAC=0.85 BETA2=0.99 SPARSE_ATTN_GATE_SCALE=0.5 GPTQ_RESERVE_SECONDS=0.5 VAL_LOSS_EVERY=0
SPARSE_ATTN_GATE_ENABLED=1 GATE_WINDOW=12 SMEAR_GATE_ENABLED=1 FUSED_CE_ENABLED=1
"""
"""The published command of pull request 1855, on top of the script's defaults."""


def test_the_published_command_of_the_record_of_april_27_gives_its_preset():
    environment = RECORD_DEFAULTS | dict(part.split("=", 1) for part in RECORD_COMMAND.split())
    config, data = read_train_config("h1394", environment=environment)
    wanted, preset_data = read_train_config("record_1855")
    differ = {name: value for name, value in config.to_dict().items() if value != wanted.to_dict()[name]}
    assert differ.keys() == {"by_document", "muon_polar_express"}  # the script has no variable for them
    assert str(Path(data.train.removeprefix("tokens:"))) == preset_data.train.removeprefix("tokens:")
    assert Path(data.tokenizer) == Path(preset_data.tokenizer)


def test_variables_of_other_programs_are_passed_over():
    config, data = read_train_config("baseline", environment={"HOME": "/", "PATH": "/bin", "TRAINER": "x", "LOOPBACK": "1"})
    assert ignored_variables({"HOME": "/"}, (config, data)) == []


def test_a_variable_of_the_wrong_type_is_named():
    with pytest.raises(ConfigError, match="NUM_LAYERS must be int, got 'nine'"):
        read_train_config("baseline", environment={"NUM_LAYERS": "nine"})


def test_later_options_come_before_earlier_ones():
    """The command line wins over the environment, which wins over the file."""
    config, _ = read_train_config("baseline", environment={"NUM_LAYERS": "3", "SEED": "5"}, changes=["model.num_layers=2"])
    assert (config.model.num_layers, config.seed) == (2, 5)


def test_a_name_that_is_too_long_for_a_file_is_no_preset():
    with pytest.raises(ConfigError, match="no file and no preset is named é"):
        read_train_file("é" * 200)
