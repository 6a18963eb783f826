"""Quantization-aware training: the model uses rounded weights, gradients pass straight through, a resume changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantlab.errors import ConfigError, TrainingError
from quantlab.methods.trellis.shape import ScaledGrid
from quantlab.methods.trellis.training_grid import measure_grid, steps_of
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig
from quantlab.trainer.qat import (
    Steps,
    fake_quantizer,
    grid_from_tensors,
    grid_tensors,
    quantize_,
    stop_quantizing,
)
from quantlab.trainer.train_config import TrainConfig
from quantlab.trainer.training import train
from quantlab.trainer.training_loop import CHECKPOINT_NAME

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = GPTConfig(vocab_size=80, num_layers=2, model_dim=64, num_heads=4, num_kv_heads=4, mlp_hidden=128, num_loops=1)
CONFIG = TrainConfig(
    model=MODEL,
    seq_len=16,
    batch_tokens=256,
    micro_batch_tokens=256,
    steps=8,
    max_seconds=0.0,
    quant_from=0.5,
    quant_bits=2.0,
    log_every=1,
    checkpoint_every_seconds=0.0,
)
TOKENS = np.random.default_rng(0).integers(0, 80, size=2000).astype(np.uint16)
IDS = torch.from_numpy(TOKENS[:512].astype(np.int64)).view(-1, 16)


def trained_a_little():
    model = GPT(MODEL)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def dense(steps):
    return steps.row_scale_O[:, None] * steps.column_scale_I


def test_gradients_go_straight_through():
    w = torch.tensor([[0.3, -1.2], [2.6, 0.1]], requires_grad=True)
    seen = fake_quantizer(Steps(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.5])))(w)
    torch.testing.assert_close(seen, torch.tensor([[0.0, -1.0], [2.5, 0.0]]))
    (seen * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert w.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_steps_are_those_of_the_file_to_a_unit_in_the_last_place():
    """Checks all fractions of a power of two that log-step index, row and column can have."""
    shapes = np.arange(-2, 6, dtype=np.int8)
    for level in range(-640, -640 + 64):
        grid = ScaledGrid(8, level, shapes, shapes)
        product = dense(steps_of(grid, torch.device("cpu"))).numpy()
        assert np.abs(product.view(np.int32) - grid.steps_OI.view(np.int32)).max() <= 1


def test_a_grid_goes_into_a_checkpoint_and_comes_back():
    grid = {"blocks.0.w": Steps(torch.ones(3), torch.ones(5))}
    tensors = grid_tensors(grid) | {"average_count": torch.tensor(3)}
    back = grid_from_tensors(tensors, torch.device("cpu"))
    assert torch.equal(dense(back["blocks.0.w"]), dense(grid["blocks.0.w"])) and len(back) == 1
    with pytest.raises(TrainingError, match="the checkpoint's grid is of another version of quantlab"):
        grid_from_tensors({"grid.blocks.0.w.weight": torch.ones(3, 5)}, torch.device("cpu"))


@pytest.mark.parametrize("bits", [1.5, 4.0])
def test_the_grid_has_about_the_wanted_entropy(bits):
    """Measured as the entropy of each row's own codes."""
    model = trained_a_little()
    steps = measure_grid(model, IDS, bits)
    matrices = dict(model.named_parameters())
    assert set(steps) == {n for n, p in matrices.items() if p.ndim == 2 and min(p.shape) > 2}
    total, weights = 0.0, 0
    for name, step in steps.items():
        codes = torch.round(matrices[name].detach() / dense(step))
        for row in codes:
            share = torch.unique(row, return_counts=True)[1].double() / len(row)
            total -= float((share * share.log2()).sum()) * len(row)
        weights += codes.numel()
    # rows of 64 hold few codes of many kinds, which hides some of their entropy
    assert total / weights == pytest.approx(bits, abs=0.6)


def test_the_model_sees_rounded_weights_and_then_its_own_again():
    model = trained_a_little()
    steps = measure_grid(model, IDS, 2.0)
    with torch.no_grad():
        before = model(IDS)
        quantize_(model, steps)
        seen = model(IDS)
        stop_quantizing(model)
        assert torch.equal(model(IDS), before)
        for name, step in steps.items():
            p = model.get_parameter(name)
            p.copy_(torch.round(p / dense(step)) * dense(step))
        assert torch.equal(model(IDS), seen)
    assert not torch.allclose(before, seen, atol=1e-2)


def test_it_begins_when_it_should_and_what_is_saved_is_not_rounded(tmp_path):
    seen = []
    config = replace(CONFIG, val_every=1)

    def validate(model, step, seconds):
        seen.append(model.table_transform is not None)

    result = train(config, TOKENS, out=tmp_path, measure_grid=measure_grid, validate=validate)
    assert seen == [False] * 4 + [True] * 3 + [False]  # the last is the saved model
    plain = train(replace(CONFIG, quant_from=1.0), TOKENS, out=tmp_path / "plain")
    assert result.losses[:4] == plain.losses[:4] and result.losses[5] != plain.losses[5]
    name, checkpoint = "blocks.0.mlp.fc.weight", load_file(tmp_path / CHECKPOINT_NAME)
    steps = dense(Steps(checkpoint[f"extra.grid.{name}.row_scale_O"], checkpoint[f"extra.grid.{name}.column_scale_I"]))
    saved = load_file(result.model_path)[name]
    assert not torch.allclose(saved, torch.round(saved / steps) * steps, atol=1e-3)


def test_a_resume_in_the_quantized_part_equals_an_unbroken_training(tmp_path):
    whole = train(CONFIG, TOKENS, out=tmp_path / "a", measure_grid=measure_grid)

    def stop(record):
        if record.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, TOKENS, out=tmp_path / "b", measure_grid=measure_grid, progress=stop)
    resumed = train(CONFIG, TOKENS, out=tmp_path / "b", measure_grid=measure_grid, resume=True)
    assert resumed.losses == whole.losses[6:]
    expected, got = load_file(whole.model_path), load_file(resumed.model_path)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_training_on_a_grid_needs_a_function_that_measures_it(tmp_path):
    with pytest.raises(ConfigError, match=r"quant_from is 0\.5, so a grid is needed, but measure_grid is None") as caught:
        train(CONFIG, TOKENS, out=tmp_path)
    assert "quantlab.methods.trellis.training_grid.measure_grid" in caught.value.hint


def test_options_that_make_no_grid_are_refused():
    with pytest.raises(ConfigError, match="quant_bits must be above 0 and below 16, got 0"):
        replace(CONFIG, quant_bits=0.0)
    with pytest.raises(ConfigError, match="quant_from must be above 0"):
        replace(CONFIG, quant_from=0.0)


def test_a_bigram_table_is_on_the_grid_too():
    model = GPT(replace(MODEL, bigram_buckets=300, bigram_dim=32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        before = model(IDS)
        quantize_(model, {"bigram.embed.weight": Steps(torch.full((300,), 0.5), torch.ones(32))})
        assert not torch.allclose(model(IDS), before)
        stop_quantizing(model)
        assert torch.equal(model(IDS), before)
    with pytest.raises(ConfigError, match="tensor blocks.0.attn_scale cannot be trained"):
        quantize_(model, {"blocks.0.attn_scale": Steps(torch.ones(64), torch.ones(1))})
