"""GPT against a second implementation, its cache, causality, gradients and initialisation."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quantlab.errors import ConfigError, ShapeError
from quantlab.models.challenge import expected_shapes, gpt_from_state_dict
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = GPTConfig(vocab_size=37, num_layers=5, model_dim=24, num_heads=6, num_kv_heads=2, mlp_hidden=40)

# float32 sums taken in another order: about 1e-6 of logits of size 10, with room for five layers.
SAME_MATHS = 1e-4


def random_state(config: GPTConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights with no zeros and no structure, so that every term of the forward pass shows."""
    g = torch.Generator().manual_seed(seed)
    shapes = expected_shapes(config)
    state = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: t * t.shape[-1] ** -0.5 if name.endswith(".weight") else t for name, t in state.items()}


def random_ids(config: GPTConfig, batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def reference_logits(sd: dict[str, Tensor], ids: Tensor, kv_heads: int) -> Tensor:
    """The baseline's maths once more, one sequence and one head at a time: rotary positions as complex numbers,
    attention from explicit scores. ids [T] -> [T, V]."""
    T, layers = len(ids), len({name.split(".")[1] for name in sd if name.startswith("blocks.")})
    x = x0 = normed(sd["tok_emb.weight"][ids])
    stack: list[Tensor] = []
    for i in range(layers):
        p = {name.split(".", 2)[2]: t for name, t in sd.items() if name.startswith(f"blocks.{i}.")}
        if i >= layers // 2 and stack:
            x = x + sd["skip_weights"][i - layers // 2] * stack.pop()
        x = p["resid_mix"][0] * x + p["resid_mix"][1] * x0
        h = normed(x)
        q, k, v = h @ p["attn.c_q.weight"].T, h @ p["attn.c_k.weight"].T, h @ p["attn.c_v.weight"].T
        heads = len(p["attn.q_gain"])
        E = x.shape[1] // heads
        mixed = []
        for head in range(heads):
            shared = head * kv_heads // heads
            q_h = turned(normed(q[:, head * E : (head + 1) * E])) * p["attn.q_gain"][head]
            k_h = turned(normed(k[:, shared * E : (shared + 1) * E]))
            scores = (q_h @ k_h.T) / E**0.5
            scores[torch.triu(torch.ones(T, T), 1).bool()] = -torch.inf
            mixed.append(scores.softmax(1) @ v[:, shared * E : (shared + 1) * E])
        x = x + p["attn_scale"] * (torch.cat(mixed, 1) @ p["attn.proj.weight"].T)
        hidden = (normed(x) @ p["mlp.fc.weight"].T).clamp_min(0) ** 2
        x = x + p["mlp_scale"] * (hidden @ p["mlp.proj.weight"].T)
        if i < layers // 2:
            stack.append(x)
    z = normed(x) @ sd.get("lm_head.weight", sd["tok_emb.weight"]).T
    return 30 * torch.tanh(z / 30)


def normed(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def turned(x: Tensor) -> Tensor:
    """Channels j and j + E/2 of position t as a complex number, turned by -t · 10000^(-2j/E)."""
    T, E = x.shape
    speed = 10000.0 ** (-2 * torch.arange(E // 2) / E)
    z = torch.complex(x[:, : E // 2], x[:, E // 2 :])
    z = z * torch.exp(-1j * torch.arange(T)[:, None] * speed)
    return torch.cat((z.real, z.imag), 1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [1, 4, 5])
def test_logits_equal_a_second_implementation(tied, layers):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, num_layers=layers)
    sd = random_state(config)
    ids = random_ids(config, 2, 19)
    with torch.no_grad():
        logits = gpt_from_state_dict(sd)(ids)
    assert logits.dtype == torch.float32
    for row, row_ids in zip(logits, ids, strict=True):
        torch.testing.assert_close(row, reference_logits(sd, row_ids, 2), atol=SAME_MATHS, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_state_dict_has_the_names_and_shapes_of_the_baseline(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    shapes = {name: tuple(t.shape) for name, t in GPT(config).state_dict().items()}
    assert shapes == expected_shapes(config)


@pytest.mark.parametrize("chunks", [[1] * 17, [5, 1, 4, 7], [17], [1, 16]])
def test_reading_in_chunks_with_a_cache_equals_one_forward_pass(chunks):
    model = gpt_from_state_dict(random_state(CONFIG))
    ids = random_ids(CONFIG, 3, 17)
    cache = model.new_cache(3, 20)
    with torch.no_grad():
        parts = [model(part, cache) for part in ids.split(chunks, dim=1)]
        # Other matrix shapes take other float32 kernels, so this is not bit for bit.
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=SAME_MATHS, rtol=0)
    assert cache.position == 17


def test_cache_refuses_what_does_not_fit():
    model = GPT(CONFIG)
    cache = model.new_cache(2, 4)
    with torch.no_grad():
        model(random_ids(CONFIG, 2, 3), cache)
        with pytest.raises(ShapeError, match="2 tokens do not fit a cache of 4 that holds 3"):
            model(random_ids(CONFIG, 2, 2), cache)
        with pytest.raises(ShapeError, match="batch of 2"):
            model(random_ids(CONFIG, 1, 1), cache)
        model(random_ids(CONFIG, 2, 1), cache)
    with pytest.raises(ConfigError, match="length must be at least 1"):
        model.new_cache(1, 0)


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 2)])
def test_ids_of_another_form_are_refused(ids):
    with pytest.raises(ShapeError, match="ids must be int64"):
        GPT(CONFIG)(ids)


def test_logits_see_no_later_token():
    model = gpt_from_state_dict(random_state(CONFIG))
    ids = random_ids(CONFIG, 1, 12)
    with torch.no_grad():
        before = model(ids)
        for t in range(12):
            changed = ids.clone()
            changed[:, t:] = (changed[:, t:] + 1 + torch.arange(12 - t)) % CONFIG.vocab_size
            after = model(changed)
            assert torch.equal(after[:, :t], before[:, :t])
            assert not torch.allclose(after[:, t], before[:, t])


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_learns_after_a_few_steps(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    model = GPT(config, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = random_ids(config, 4, 16)
    for _ in range(5):  # the zero projections hide what lies behind them until they have moved
        optimizer.zero_grad()
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (GPT(CONFIG, seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tok_emb.weight"], other["tok_emb.weight"])
    assert not torch.equal(first["blocks.0.mlp.fc.weight"], other["blocks.0.mlp.fc.weight"])


def test_initial_weights_are_those_of_the_baseline():
    config = GPTConfig(num_layers=2, model_dim=128, num_heads=4, num_kv_heads=2, mlp_hidden=256)
    tied, untied = GPT(config), GPT(dataclasses.replace(config, tie_embeddings=False))
    sd = untied.state_dict()
    assert tied.tok_emb.weight.std().item() == pytest.approx(0.005, rel=0.02)  # 131,072 draws: 0.2 % standard error
    assert sd["tok_emb.weight"].std().item() == pytest.approx(1.0, rel=0.02)
    for name, t in sd.items():
        if name.endswith(("proj.weight", "lm_head.weight")):
            assert not t.any()
        elif name.endswith((".c_q.weight", ".c_k.weight", ".c_v.weight", ".fc.weight")):
            assert 0.99 * 128**-0.5 < t.abs().max() <= 128**-0.5
    assert (sd["blocks.1.attn.q_gain"] == 1.5).all()
    assert sd["blocks.1.resid_mix"].tolist() == [[1.0] * 128, [0.0] * 128]
    assert all((sd[name] == 1).all() for name in ("skip_weights", "blocks.0.attn_scale", "blocks.0.mlp_scale"))


def test_softcap_bounds_the_logits():
    sd = {name: 100 * t for name, t in random_state(CONFIG).items()}
    with torch.no_grad():
        logits = gpt_from_state_dict(sd, dataclasses.replace(CONFIG, logit_softcap=5.0))(random_ids(CONFIG, 1, 8))
    assert 4.9 < logits.abs().max() <= 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 1}, "vocab_size must be at least 2, got 1"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"model_dim": 30}, "model_dim must be a multiple of 2 \\* num_heads = 12, got 30"),
        ({"num_kv_heads": 4}, "num_kv_heads must divide num_heads = 6, got 4"),
        ({"logit_softcap": 0.0}, "logit_softcap must be above 0 and finite, got 0.0"),
        ({"rope_base": float("inf")}, "rope_base must be above 1 and finite, got inf"),
        ({"qk_gain_init": float("nan")}, "qk_gain_init must be finite, got nan"),
    ],
)
def test_config_refuses_what_makes_no_model(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_config_survives_a_dict_and_refuses_unknown_keys():
    assert GPTConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(ConfigError, match="unknown key num_layer") as caught:
        GPTConfig.from_dict({"num_layer": 3})
    assert caught.value.hint == "did you mean num_layers?"
