"""Cross-entropy of softcapped logits: kernels and reference against float64, and the losses of a model that uses them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exact_interpreter import exact_interpreter  # noqa: F401 - a fixture of all tests here
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quantlab.evaluation.scoring as evaluation
import quantlab.kernels.softcap_cross_entropy as module
from quantlab.errors import ConfigError, ShapeError
from quantlab.evaluation.scoring import score_tokens
from quantlab.kernels.softcap_cross_entropy import (
    softcap_cross_entropy,
    softcap_cross_entropy_ref,
    softcap_cross_entropy_triton,
)
from quantlab.text.tokenizer import TokenBytes
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig
from quantlab.trainer.training_loop import TrainingLoop
from quantlab.trainer.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("triton")

SHAPES = [(1, 1), (7, 63), (3, 500), (1, 5000)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GRAD_TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Relative. Of exp(c - lse), whose exponent is off as the loss is; of one unit in the last place, as Triton's interpreter
truncates to bfloat16 (a GPU rounds)."""


def loss_tolerance(softcap, V):
    """Tanh from exp(-2|x|) is off by up to 2 units in the last place of 1, 2.4e-7, near 0 too, and so is a logarithm of up to
    softcap + ln V. With the exp of a GPU, off by 2 units, as with the interpreter's."""
    return 1e-6 * (softcap + math.log(V))


@pytest.fixture
def on_kernel(monkeypatch):
    """The wrapper takes the kernel on a CPU too."""
    monkeypatch.setattr(module, "on_kernel", lambda *tensors: True)


def sample(shape, dtype=torch.float32, scale=20.0, seed=0):
    """Logits, targets among which are the first and the last of the vocabulary, and a gradient of the losses."""
    generator = torch.Generator().manual_seed(seed)
    N, V = shape
    targets = torch.randint(V, (N,), generator=generator)
    targets[0], targets[-1] = 0, V - 1
    return (scale * torch.randn(shape, generator=generator)).to(dtype), targets, torch.randn(N, generator=generator)


def differentiated(function, logits, targets, grad, softcap):
    z = logits.detach().requires_grad_()
    losses = function(z, targets, softcap)
    return losses.detach(), torch.autograd.grad(losses, z, grad.to(losses.dtype))[0]


def in_float64(logits, targets, softcap):
    return F.cross_entropy(softcap * torch.tanh(logits / softcap), targets, reduction="none")


@pytest.mark.parametrize("function", [softcap_cross_entropy_ref, softcap_cross_entropy_triton])
@pytest.mark.parametrize("softcap", [1.0, 30.0, 64.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_are_those_of_float64(shape, dtype, softcap, function):
    logits, targets, grad = sample(shape, dtype)
    losses, grad_logits = differentiated(function, logits, targets, grad, softcap)
    wanted, wanted_grad = differentiated(in_float64, logits.double(), targets, grad, softcap)
    assert losses.dtype == torch.float32 and grad_logits.dtype == dtype
    torch.testing.assert_close(losses.double(), wanted, rtol=0, atol=loss_tolerance(softcap, shape[1]))
    tiny = 1e-6 if function is softcap_cross_entropy_ref else 1e-7  # the reference's 1 - tanh² cancels; float16 ends at 6e-8
    torch.testing.assert_close(grad_logits.double(), wanted_grad, rtol=max(1.0, softcap / 8) * GRAD_TOLERANCE[dtype], atol=tiny)


def test_the_slope_of_logits_near_the_cap_does_not_cancel():
    """At 8 caps the slope is 4.5e-7, where float32's 1 - tanh² has one digit or none."""
    logits, targets = torch.tensor([[240.0, -240.0, 120.0, 0.0]]), torch.tensor([1])
    wanted, wanted_grad = differentiated(in_float64, logits.double(), targets, torch.ones(1), 30.0)
    losses, grad = differentiated(softcap_cross_entropy_triton, logits, targets, torch.ones(1), 30.0)
    torch.testing.assert_close(losses.double(), wanted, rtol=0, atol=loss_tolerance(30.0, 4))
    torch.testing.assert_close(grad.double(), wanted_grad, rtol=3e-5, atol=0)  # exp(-60) of logits apart by 60 ± 3e-5


@pytest.mark.parametrize("softcap", [30.0, 64.0])
@pytest.mark.parametrize("value", [0.0, 1e4, -1e4, math.inf, -math.inf])
def test_logits_far_beyond_the_cap(value, softcap):
    logits, targets = torch.full((2, 70), value), torch.tensor([0, 69])
    losses, grad = differentiated(softcap_cross_entropy_triton, logits, targets, torch.ones(2), softcap)
    torch.testing.assert_close(losses, torch.full((2,), math.log(70)), rtol=0, atol=loss_tolerance(softcap, 70))
    assert grad.isfinite().all()


@given(logits=arrays(np.float32, (1, 7), elements=st.floats(-1e3, 1e3, width=32)), softcap=st.floats(0.5, 64.0))
@settings(deadline=None, max_examples=25)
def test_probabilities_of_all_targets_sum_to_one(logits, softcap):
    logits, targets = torch.from_numpy(logits).expand(7, 7), torch.arange(7)
    for function in (softcap_cross_entropy_ref, softcap_cross_entropy_triton):
        losses = function(logits, targets, softcap)
        assert float(torch.exp(-losses.double()).sum()) == pytest.approx(1.0, abs=2 * loss_tolerance(softcap, 7))
        assert (losses >= -loss_tolerance(softcap, 7)).all()


def test_no_float32_logits_are_kept():
    logits, targets, _ = sample((7, 63), torch.bfloat16)
    losses = softcap_cross_entropy_triton(logits.requires_grad_(), targets, 30.0)
    kept = losses.grad_fn.saved_tensors
    assert [(t.dtype, tuple(t.shape)) for t in kept] == [(torch.bfloat16, (7, 63)), (torch.int64, (7,)), (torch.float32, (7,))]
    assert kept[0].data_ptr() == logits.data_ptr()


def test_a_target_outside_the_vocabulary_is_an_error_or_a_loss_of_nan():
    logits, _, _ = sample((3, 63))
    targets = torch.tensor([1, 63, -1])
    losses = softcap_cross_entropy_triton(logits, targets, 30.0)
    assert losses.isnan().tolist() == [False, True, True]
    with pytest.raises(IndexError, match="out of bounds"):
        softcap_cross_entropy(logits, targets, 30.0)


def test_logits_that_are_not_contiguous_and_a_gradient_that_is_one_number():
    logits, targets, _ = sample((5, 126))
    z = logits[:, ::2].requires_grad_()
    kernel, reference = (
        torch.autograd.grad(f(z, targets % 63, 30.0).mean(), z)[0]
        for f in (softcap_cross_entropy_triton, softcap_cross_entropy_ref)
    )
    torch.testing.assert_close(kernel, reference, rtol=2e-5, atol=1e-7)


def test_a_cap_too_large_for_the_kernel_has_the_reference(on_kernel):
    logits, targets, _ = sample((2, 63))
    names = [type(softcap_cross_entropy(logits.requires_grad_(), targets, cap).grad_fn).__name__ for cap in (64.0, 65.0)]
    assert names == ["SoftcapCrossEntropyBackward", "NllLossBackward0"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"logits": torch.ones(4, 6).double()},
            ShapeError,
            r"logits must be .* \[N, V\], V above 0, got torch.float64 \[4, 6\]",
        ),
        ({"logits": torch.ones(4, 6, 1)}, ShapeError, r"logits must be .*, got torch.float32 \[4, 6, 1\]"),
        ({"logits": torch.ones(4, 0)}, ShapeError, r"logits must be .*, got torch.float32 \[4, 0\]"),
        ({"targets": torch.zeros(5, dtype=torch.int64)}, ShapeError, r"targets must be int64 \[4\], got torch.int64 \[5\]"),
        ({"targets": torch.zeros(4, dtype=torch.int32)}, ShapeError, r"targets must be int64 \[4\], got torch.int32 \[4\]"),
        ({"targets": torch.zeros(4, dtype=torch.int64, device="meta")}, ConfigError, "targets must be on cpu .*, got meta"),
        ({"softcap": 0.0}, ConfigError, "softcap must be above 0 and finite, got 0.0"),
        ({"softcap": math.nan}, ConfigError, "softcap must be above 0 and finite, got nan"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, error, message):
    right = {"logits": torch.ones(4, 6), "targets": torch.zeros(4, dtype=torch.int64), "softcap": 30.0}
    with pytest.raises(error, match=message):
        softcap_cross_entropy(*(right | change).values())


CONFIG = GPTConfig(vocab_size=80, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=2, mlp_hidden=64, logit_softcap=5.0)
IDS = torch.randint(80, (3, 17), generator=torch.Generator().manual_seed(0))


def model_with_spread_logits(config=CONFIG):
    model = GPT(config)
    with torch.no_grad():
        model.tok_emb.weight.mul_(200)
    return model


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, tie_embeddings=False)])
def test_losses_of_a_model_are_the_cross_entropy_of_its_logits(config):
    model, x, y = model_with_spread_logits(config), IDS[:, :-1], IDS[:, 1:].flatten()
    wanted = F.cross_entropy(model(x).flatten(0, 1), y, reduction="none")
    assert torch.equal(model.losses(x, y), wanted)
    rows = torch.tensor([3, 4, 31, 47])
    torch.testing.assert_close(model.losses(x, y[rows], rows), wanted[rows])  # a product of other rows may round otherwise
    with pytest.raises(ShapeError, match=r"targets must be int64 \[4\], got torch.int64 \[48\]"):
        model.losses(x, y, rows)


def test_training_on_a_gpu_takes_the_mean_of_these_losses(on_kernel):
    """The function that TrainingLoop compiles there, here in bfloat16 by the interpreter; gradients as of float32 logits."""
    model, x, y = model_with_spread_logits(), IDS[:, :-1], IDS[:, 1:]
    run = SimpleNamespace(world=World(), is_cuda=True, model=model, config=SimpleNamespace(by_document=False))
    loss = TrainingLoop._mean_loss(run, x, y)
    grad = torch.autograd.grad(loss, model.tok_emb.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    wanted = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    wanted_grad = torch.autograd.grad(wanted, model.tok_emb.weight)[0]
    torch.testing.assert_close(loss, wanted, rtol=0, atol=loss_tolerance(5.0, 80))
    # the interpreter truncates the gradient of logits to bfloat16, which all others are sums of
    assert (grad - wanted_grad).norm() <= GRAD_TOLERANCE[torch.bfloat16] * wanted_grad.norm()


def test_evaluation_on_a_gpu_scores_with_these_losses(on_kernel, monkeypatch):
    model, tokens = model_with_spread_logits(), IDS.flatten().numpy().astype(np.uint16)
    text = TokenBytes(base=np.ones(80, np.int32), has_space=np.zeros(80, bool), is_boundary=np.zeros(80, bool))
    scores = []
    for is_fused in (False, True):
        monkeypatch.setattr(evaluation, "_has_losses", lambda *_, is_fused=is_fused: is_fused)
        scores.append(score_tokens(model, tokens, text, seq_len=8, mode="sliding", stride=2))
    assert scores[1].tokens == scores[0].tokens == 50
    assert scores[1].nats == pytest.approx(scores[0].nats, abs=50 * loss_tolerance(5.0, 80))
