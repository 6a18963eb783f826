"""The training loop: it learns, stops, resumes bit for bit, and keeps the last good checkpoint."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import quantlab.trainer.training_loop as loop
from quantlab.errors import DataError, TrainingError
from quantlab.models.challenge import expected_shapes, gpt_from_state_dict
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig
from quantlab.trainer.optimizers import Optimizers
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training import train
from quantlab.trainer.training_loop import CHECKPOINT_NAME, MODEL_NAME, TrainingLoop
from quantlab.trainer.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = GPTConfig(vocab_size=32, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, mlp_hidden=32)
CONFIG = TrainConfig(
    model=MODEL,
    seq_len=16,
    batch_tokens=128,
    micro_batch_tokens=64,
    steps=8,
    max_seconds=0.0,
    warmdown_frac=0.5,
    muon_momentum_warmup_steps=4,
    log_every=1,
    checkpoint_every_seconds=0.0,
)
TOKENS = np.random.default_rng(0).integers(0, 32, size=1000).astype(np.uint16)


class StoppedError(Exception):
    pass


def stop_after(step):
    def progress(record):
        if record.step == step:
            raise StoppedError

    return progress


def test_resume_equals_an_unbroken_training_bit_for_bit(tmp_path):
    straight = train(CONFIG, TOKENS, out=tmp_path / "a")
    with pytest.raises(StoppedError):
        train(CONFIG, TOKENS, out=tmp_path / "b", progress=stop_after(4))
    resumed = train(CONFIG, TOKENS, out=tmp_path / "b", resume=True)
    assert (straight.steps, resumed.steps) == (8, 8)
    assert straight.losses[4:] == resumed.losses
    expected, got = load_file(straight.model_path), load_file(resumed.model_path)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    with safe_open(tmp_path / "a" / CHECKPOINT_NAME, "pt") as a, safe_open(tmp_path / "b" / CHECKPOINT_NAME, "pt") as b:
        assert set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118


def test_same_seed_same_weights_other_seed_others(tmp_path):
    runs = [train(replace(CONFIG, seed=s), TOKENS, out=tmp_path / str(i)) for i, s in enumerate((1, 1, 2))]
    first, again, other = (load_file(run.model_path) for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tok_emb.weight"], other["tok_emb.weight"])


def test_the_model_file_has_the_names_of_the_challenge_and_its_config(tmp_path):
    result = train(CONFIG, TOKENS, out=tmp_path)
    assert result.model_path == tmp_path / MODEL_NAME
    state = load_file(result.model_path)
    assert {name: tuple(t.shape) for name, t in state.items()} == expected_shapes(MODEL)
    with safe_open(result.model_path, "pt") as file:
        assert GPTConfig.from_dict(json.loads(file.metadata()["gpt_config"])) == MODEL
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(gpt_from_state_dict(state)(ids), result.model(ids))
    assert not result.model.training
    assert not list(tmp_path.glob("*.tmp"))


def test_a_tiny_model_learns_a_short_text_by_heart(tmp_path):
    bound = 0.1  # nats per token; guessing costs ln 32 = 3.47
    config = replace(CONFIG, steps=150, batch_tokens=256, micro_batch_tokens=256, checkpoint_every_seconds=1e9)
    losses = train(config, TOKENS[:40], out=tmp_path).losses
    assert losses[0] == pytest.approx(math.log(32), abs=0.1)
    assert losses[-1] < bound


def test_training_ends_at_the_time_limit_and_a_resume_does_not_extend_it(tmp_path, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))  # every step takes one second
    config = replace(CONFIG, steps=1000, max_seconds=5.0)
    with pytest.raises(StoppedError):
        train(config, TOKENS, out=tmp_path, progress=stop_after(3))
    records = []
    result = train(config, TOKENS, out=tmp_path, resume=True, progress=records.append)
    assert (result.steps, result.elapsed_seconds) == (5, 5.0)
    assert [(r.step, r.elapsed_seconds, r.tokens_per_second) for r in records] == [(4, 4.0, 128.0), (5, 5.0, 128.0)]
    assert [r.lr_multiplier for r in records] == pytest.approx([0.8, 0.4])
    again = train(config, TOKENS, out=tmp_path, resume=True)
    assert (again.steps, again.losses) == (5, [])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(StoppedError):
        train(CONFIG, TOKENS, out=tmp_path, progress=stop_after(3))
    before = (tmp_path / CHECKPOINT_NAME).read_bytes()
    monkeypatch.setattr(loop.F, "cross_entropy", lambda logits, targets: logits.sum() * math.nan)
    with pytest.raises(TrainingError, match=r"loss is nan at step 3; the checkpoint .* is kept"):
        train(CONFIG, TOKENS, out=tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT_NAME).read_bytes() == before


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(TrainingError, match="is not finite after step"):
        train(replace(CONFIG, matrix_lr=1e38, weight_decay=1e38), TOKENS, out=tmp_path)
    assert not (tmp_path / MODEL_NAME).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 9}, "it has steps = 8, the config has 9"),
        ({"model": replace(MODEL, num_layers=3)}, "it has model.num_layers = 2, the config has 3"),
        ({"seed": 4, "beta1": 0.5}, "it has beta1 = 0.9, the config has 0.5"),
    ],
)
def test_resume_with_another_config_names_the_first_difference(tmp_path, change, message):
    train(CONFIG, TOKENS, out=tmp_path)
    with pytest.raises(TrainingError, match=message):
        train(replace(CONFIG, **change), TOKENS, out=tmp_path, resume=True)


def test_resume_with_other_tokens_or_a_damaged_file_is_refused(tmp_path):
    train(CONFIG, TOKENS, out=tmp_path)
    with pytest.raises(TrainingError, match="other tokens"):
        train(CONFIG, TOKENS[::-1], out=tmp_path, resume=True)
    path = tmp_path / CHECKPOINT_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match="is damaged"):
        train(CONFIG, TOKENS, out=tmp_path, resume=True)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(TrainingError, match="not a training checkpoint"):
        train(CONFIG, TOKENS, out=tmp_path, resume=True)


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(tmp_path):
    train(CONFIG, TOKENS, out=tmp_path)
    path, rng = tmp_path / CHECKPOINT_NAME, random.Random(0)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [*range(0, header, header // 40), *(rng.randrange(header, len(whole)) for _ in range(40))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(TrainingError, match=r"is damaged|is not a training checkpoint|cannot resume|other tokens"):
            train(CONFIG, TOKENS, out=tmp_path, resume=True)
    path.write_bytes(whole)
    assert train(CONFIG, TOKENS, out=tmp_path, resume=True).steps == 8


def test_resume_without_a_checkpoint_starts(tmp_path):
    assert train(CONFIG, TOKENS, out=tmp_path / "new", resume=True).steps == 8


def test_micro_batches_change_only_rounding(tmp_path):
    whole, parts = (train(replace(CONFIG, micro_batch_tokens=n), TOKENS, out=tmp_path / str(n)).losses for n in (128, 16))
    assert parts == pytest.approx(whole, abs=1e-4)  # float32 sums in another order, through eight updates


def test_every_parameter_has_one_optimizer_and_its_rate():
    model = GPT(replace(MODEL, tie_embeddings=False))
    muon, adam = Optimizers(model, CONFIG, World()).all
    rates = {id(p): g["base_lr"] for opt in (muon, adam) for g in opt.param_groups for p in g["params"]}
    names = {name: rates.pop(id(p)) for name, p in model.named_parameters()}
    assert not rates
    assert names["tok_emb.weight"] == 0.05 and names["lm_head.weight"] == 0.008
    assert names["skip_weights"] == names["blocks.0.attn.q_gain"] == names["blocks.1.resid_mix"] == 0.04
    assert {p.shape for p in muon.param_groups[0]["params"]} == {(16, 16), (8, 16), (32, 16), (16, 32)}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS.astype(np.int64), "must be uint16"),
        (TOKENS[:16], "more than seq_len = 16 tokens, got 16"),
        (TOKENS + np.uint16(1), "id 32, the model's vocab_size is 32"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path, tokens, message):
    with pytest.raises(DataError, match=message):
        train(CONFIG, tokens, out=tmp_path)


def test_gradients_longer_than_the_limit_are_shortened_together():
    """Against torch's own clipping: both optimizers see the gradients that it leaves."""
    torch.manual_seed(0)
    models = [GPT(MODEL, seed=1) for _ in range(2)]
    for model in models:
        torch.manual_seed(2)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
    clipped = Optimizers(models[0], replace(CONFIG, grad_clip=0.3), World())
    plain = Optimizers(models[1], CONFIG, World())
    torch.nn.utils.clip_grad_norm_(models[1].parameters(), 0.3)
    for optimizers in (clipped, plain):
        optimizers.step(1.0, 0.9)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    buffers = [[o.muon.state[p]["momentum_buffer"] for g in o.muon.param_groups for p in g["params"]] for o in (clipped, plain)]
    for a, b in zip(*buffers, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_the_saved_weights_are_the_average_and_survive_a_resume(tmp_path, average):
    """Computed again from the weights after every step."""
    config = replace(CONFIG, average=average, ema_decay=0.5, swa_from=0.5)
    seen = []

    def validate(model, step, seconds):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})

    config = replace(config, val_every=1)
    start = {n: p.detach().clone() for n, p in GPT(MODEL, seed=config.seed).named_parameters()}
    result = train(config, TOKENS, out=tmp_path / "a", validate=validate)
    assert len(seen) == 9  # each step, and what was saved
    for name, saved in load_file(result.model_path).items():
        if average == "ema":
            wanted = start[name]
            for weights in seen[:8]:
                wanted = 0.5 * wanted + 0.5 * weights[name]
        else:
            wanted = torch.stack([weights[name] for weights in seen[3:8]]).mean(0)
        torch.testing.assert_close(saved, wanted)
        assert torch.equal(saved, seen[8][name])
    with pytest.raises(StoppedError):
        train(config, TOKENS, out=tmp_path / "b", progress=stop_after(6))
    resumed = train(config, TOKENS, out=tmp_path / "b", resume=True)
    expected, got = load_file(result.model_path), load_file(resumed.model_path)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_loops_begin_when_they_should_and_the_saved_model_has_them(tmp_path):
    model = replace(MODEL, num_layers=3, num_loops=1, loop_start=1, loop_end=1)
    looping = []
    config = replace(CONFIG, model=model, loop_from=0.5, val_every=1)
    result = train(config, TOKENS, out=tmp_path, validate=lambda m, step, seconds: looping.append(m.looping))
    assert looping == [False] * 4 + [True] * 4  # the last of them is the saved model
    assert result.model.looping


def test_what_a_device_still_does_is_training_time(tmp_path, monkeypatch):
    """A device that takes 30 ms a step and works while Python goes on: the clock must not stop before it is done."""
    backward, busy_until = TrainingLoop._backward, [0.0]

    def slow(self, step):
        total = backward(self, step)
        busy_until[0] = max(busy_until[0], loop.time.perf_counter()) + 0.03
        until = busy_until[0]

        def read():
            loop.time.sleep(max(0.0, until - loop.time.perf_counter()))
            return total()

        return read

    monkeypatch.setattr(TrainingLoop, "_backward", slow)
    config = replace(CONFIG, checkpoint_every_seconds=1e9, val_every=2)
    result = train(config, TOKENS, out=tmp_path, progress=lambda record: None, validate=lambda m, step, seconds: None)
    assert result.elapsed_seconds > 8 * 0.03


def test_time_is_told_apart(tmp_path):
    result = train(replace(CONFIG, val_every=4), TOKENS, out=tmp_path, validate=lambda m, step, seconds: None)
    timeline = result.timeline.to_dict()
    assert set(timeline["inside"]) == {"training"} and set(timeline["outside"]) == {"checkpoints", "validation"}
    assert timeline["inside"]["training"] == pytest.approx(result.elapsed_seconds, abs=1e-3)


def test_denormal_flushing_is_put_back(tmp_path):
    train(CONFIG, TOKENS, out=tmp_path)
    assert float(torch.tensor(1e-40) * 1.0) > 0
