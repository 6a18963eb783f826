"""Every preset at toy size, through the commands that a user types: train, resume, eval, pack, unpack."""

import json

import pytest
from typer.testing import CliRunner

from quantlab.cli.main import app
from quantlab.jobs.train_file import presets, read_train_config
from quantlab.trainer.training_log import LOG_NAME, METRICS_NAME

TOY = {
    "model.vocab_size": 400,
    "model.model_dim": 64,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.mlp_hidden": 128,
    "seq_len": 32,
    "batch_tokens": 256,
    "micro_batch_tokens": 128,
    "steps": 6,
    "max_seconds": 0,
    "log_every": 2,
    "val_every": 3,
}


def options(tmp_path, tokenizer_file):
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 200)
    toy = TOY | {"data.train": f"text:{text}", "data.val": f"text:{text}", "data.tokenizer": tokenizer_file}
    return [part for key, value in toy.items() for part in ("--set", f"{key}={value}")]


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("preset", presets())
def test_a_preset_trains_packs_and_unpacks(tmp_path, tokenizer_file, preset):
    out = tmp_path / "run"
    trained = json.loads(run("train", preset, "--out", out, "--json", *options(tmp_path, tokenizer_file)).stdout)
    assert trained["steps"] == 6 and set(trained["timeline"]["inside"]) == {"training"}
    log = (out / LOG_NAME).read_text()
    assert "step:6/6 train_loss:" in log and log.count("val_bpb:") in (2, 3)
    kinds = [json.loads(line)["kind"] for line in (out / METRICS_NAME).read_text().splitlines()]
    assert kinds.count("train") == 3 and kinds[-1] == "end"

    packed, state = tmp_path / "m.qlab", tmp_path / "state.safetensors"
    calib = ("--calib", "random", "--calib-tokens", 512, "--calib-seq-len", 32, "--no-tune")
    model, text = out / "model.safetensors", tmp_path / "text.txt"
    run("pack", model, "--budget", "120KB", "-o", packed, *calib)
    run("unpack", packed, "-o", state)
    assert packed.stat().st_size <= 120_000
    scores = [
        json.loads(run("eval", target, "--text", text, "--tokenizer", tokenizer_file, "--seq-len", 32, "--json").stdout)
        for target in (model, packed)
    ]
    assert scores[1]["val_loss"] == pytest.approx(scores[0]["val_loss"], abs=0.05)


def test_the_mid_field_preset_uses_every_technique_of_its_line():
    config, _ = read_train_config("h1394")
    on = set(config.model.to_dict()) - set(read_train_config("baseline")[0].model.to_dict())
    blocks = {"rope_dims", "rope_train_len", "mlp_slope", "xsa_last_n", "ln_scale", "skip_gates", "init"}
    assert on == blocks | {"num_loops", "loop_start", "loop_end"}
    assert len(config.model.order()) == 15 and config.model.num_skips == 7
