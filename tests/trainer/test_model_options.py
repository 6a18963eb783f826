"""The techniques after the baseline equal a second implementation, and each of them has an effect."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from quantlab.errors import CheckpointError, ConfigError
from quantlab.models.challenge import expected_shapes, gpt_from_state_dict
from quantlab.trainer.attention import attend, document_mask, without_own_value
from quantlab.trainer.model import GPT
from quantlab.trainer.model_config import GPTConfig

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = GPTConfig(vocab_size=37, num_layers=5, model_dim=24, num_heads=4, num_kv_heads=2, mlp_hidden=40)
OPTIONS = {
    "rope_dims": {"rope_dims": 2},
    "mlp_slope": {"mlp_slope": 0.5},
    "xsa": {"xsa_last_n": 3},
    "ln_scale": {"ln_scale": True},
    "skip_gates": {"skip_gates": True},
    "parallel": {"parallel_last_n": 2},
    "loop": {"num_loops": 2, "loop_start": 1, "loop_end": 2},
    "smear": {"smear_gate": True},
    "bigram": {"bigram_buckets": 50, "bigram_dim": 8},
}
ALL = dataclasses.replace(BASE, **{k: v for option in OPTIONS.values() for k, v in option.items()})
LATER = {
    "sparse gate": {"attn_gate": "sparse", "attn_gate_scale": 0.5},
    "full gate": {"attn_gate": "full"},
    "double gate": {"attn_gate": "double"},
    "lanes": {"lanes_from": 2},
    "attention lane": {"lanes_from": 3, "final_lane": "attn"},
    "mlp lane": {"lanes_from": 3, "final_lane": "mlp"},
    "longer rope": {"rope_train_len": 6},
    "embedding": {"embedding_dim": 10},
    "values": {"value_dim": 16, "value_last_n": 4},
}
OPTIONS |= LATER
RECORD = dataclasses.replace(ALL, parallel_last_n=0, lanes_from=2, value_dim=7, value_last_n=4, **LATER["sparse gate"])
"""The techniques of the record of pull request 1855, and value embeddings."""

SAME_MATHS = 1e-4  # float32 sums in another order, through up to nine blocks, on logits of size 10


def random_state(config, seed=0):
    g = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=g) for name, shape in expected_shapes(config).items()}
    return {name: t * t.shape[-1] ** -0.5 if name.endswith(".weight") else t for name, t in state.items()}


def random_ids(batch, length, seed=1):
    return torch.randint(BASE.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def normed(x):
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


def turned(x, dims, config):
    """The first `dims` channels of x [T, E] as complex numbers, turned by -t · base^(-2j/dims)."""
    T, half, base = x.shape[0], dims // 2, 10000.0
    if config.rope_train_len and config.rope_train_len < T:
        base *= (T / config.rope_train_len) ** (dims / (dims - 2))
    z = torch.complex(x[:, :half], x[:, half:dims])
    angles = -torch.arange(T)[:, None] * base ** (-2 * torch.arange(half) / dims)
    z = z * torch.polar(torch.ones(T, half), angles.float())
    return torch.cat((z.real, z.imag, x[:, dims:]), 1)


def head_gate(p, h, head, config):
    """The factor of one head's output, [T, 1]."""
    if config.attn_gate == "double":
        return 2 / (1 + torch.exp(-(h[:, :12] @ p["attn.attn_gate_proj.weight"][head])))[:, None]
    read = h if config.attn_gate == "full" else h[:, :12]
    return 1 / (1 + torch.exp(-config.attn_gate_scale * (read @ p["attn.attn_gate_w"][head])))[:, None]


def attention(p, h, config, exclusive, more_values):
    T, E = h.shape[0], config.head_dim
    q, k, v = h @ p["attn.c_q.weight"].T, h @ p["attn.c_k.weight"].T, h @ p["attn.c_v.weight"].T + more_values
    dims, mixed = config.rope_dims or E, []
    for head in range(config.num_heads):
        shared = head * config.num_kv_heads // config.num_heads
        q_h = turned(normed(q[:, head * E : (head + 1) * E]), dims, config) * p["attn.q_gain"][head]
        k_h = turned(normed(k[:, shared * E : (shared + 1) * E]), dims, config)
        v_h = v[:, shared * E : (shared + 1) * E]
        scores = (q_h @ k_h.T) / E**0.5
        scores[torch.triu(torch.ones(T, T), 1).bool()] = -torch.inf
        y = scores.softmax(1) @ v_h
        if exclusive:
            y = torch.stack([a - (a @ b) / (b @ b) * b for a, b in zip(y, v_h, strict=True)])
        if config.attn_gate != "none":
            y = head_gate(p, h, head, config) * y
        mixed.append(y)
    return torch.cat(mixed, 1) @ p["attn.proj.weight"].T


def embedded(sd, ids, config):
    rows = [sd["tok_emb.weight"][i] for i in ids]
    for t, now in enumerate(ids.tolist()):
        before = None if t == 0 or now == config.bos_id else int(ids[t - 1])
        if config.bigram_buckets:
            row = config.bigram_buckets - 1
            if before is not None:
                row = ((36313 * now) ^ (27191 * before)) % (config.bigram_buckets - 1)
            rows[t] = rows[t] + sd["bigram.scale"] * (sd["bigram.proj.weight"] @ sd["bigram.embed.weight"][row])
    smeared = list(rows)
    for t, now in enumerate(ids.tolist()):
        if config.smear_gate and t and now != config.bos_id:
            share = sd["smear.scale"] * torch.sigmoid(sd["smear.gate.weight"] @ rows[t][:12])
            smeared[t] = rows[t] + share * rows[t - 1]
    x = normed(torch.stack(smeared))
    return x @ sd["embed_proj.weight"].T if config.embedding_dim else x


def reference_logits(sd, ids, config, looping=True):
    """One sequence [T] and one head at a time -> [T, V]."""
    order = list(range(config.num_layers))
    if looping and config.num_loops:
        a, b = config.loop_start, config.loop_end
        order = list(range(a)) + list(range(a, b + 1)) * (config.num_loops + 1) + list(range(b + 1, config.num_layers))
    x = x0 = embedded(sd, ids, config)
    stack, second = [], None
    for n, i in enumerate(order):
        p = {name.split(".", 2)[2]: t for name, t in sd.items() if name.startswith(f"blocks.{i}.")}
        at = n - len(order) // 2
        more, late = 0.0, i - (config.num_layers - config.value_last_n)
        if config.value_dim and late >= 0:
            rows = sd["ve_shared.embed.weight"][ids] @ sd["ve_shared.proj.weight"].T
            more = sd[f"ve_layer_scales.{late}"] * sd["ve_shared.scale"] * rows
        if at >= 0 and config.lanes_from and i >= config.lanes_from and second is None:
            second = x
        if at >= 0 and stack:
            skip = sd["skip_weights"][at] * stack.pop()
            gate = torch.sigmoid(sd["skip_gates"][at]) if config.skip_gates else None
            x = x + skip if gate is None else gate * x + (1 - gate) * skip
        scale = (i + 1) ** -0.5 if config.ln_scale else 1.0
        exclusive = i >= config.num_layers - config.xsa_last_n
        if second is not None:
            mixed = p["resid_mix"][0] * x + p["resid_mix"][1] * x0
            a = p["attn_scale"] * attention(p, scale * normed(mixed), config, exclusive, more)
            hidden = scale * normed(second) @ p["mlp.fc.weight"].T
            m = p["mlp_scale"] * (torch.where(hidden > 0, hidden, config.mlp_slope * hidden) ** 2 @ p["mlp.proj.weight"].T)
            post, keep = sd["parallel_post_lambdas"][i], sd["parallel_resid_lambdas"][i]
            x, second = keep[0] * x + post[0, 0] * a + post[1, 0] * m, keep[1] * second + post[0, 1] * a + post[1, 1] * m
            continue
        x = p["resid_mix"][0] * x + p["resid_mix"][1] * x0
        start = x
        x = x + p["attn_scale"] * attention(p, scale * normed(x), config, exclusive, more)
        read = start if i >= config.num_layers - config.parallel_last_n else x
        hidden = scale * normed(read) @ p["mlp.fc.weight"].T
        hidden = torch.where(hidden > 0, hidden, config.mlp_slope * hidden) ** 2
        x = x + p["mlp_scale"] * (hidden @ p["mlp.proj.weight"].T)
        if at < 0:
            stack.append(x)
    if second is not None:
        x = {"mean": (x + second) / 2, "attn": x, "mlp": second}[config.final_lane]
    x = normed(x) @ sd["head_proj.weight"].T if config.embedding_dim else normed(x)
    z = x @ sd["tok_emb.weight"].T
    return 30 * torch.tanh(z / 30)


CONFIGS = {name: dataclasses.replace(BASE, **change) for name, change in OPTIONS.items()}
CONFIGS |= {"all": ALL, "record": RECORD}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_a_second_implementation(config):
    sd, ids = random_state(config), random_ids(2, 15)
    ids[0, 6] = config.bos_id
    model = gpt_from_state_dict(sd, config)
    for looping in (True, False):
        model.looping = looping
        with torch.no_grad():
            logits = model(ids)
        for row, row_ids in zip(logits, ids, strict=True):
            torch.testing.assert_close(row, reference_logits(sd, row_ids, config, looping), atol=SAME_MATHS, rtol=0)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_the_loss_of_a_fixed_batch(name):
    """Dead options were a recurring bug of hand-written trainers. Shared tensors are the same in both models."""
    config, ids = CONFIGS[name], random_ids(2, 15)
    plain = random_state(BASE)
    state = random_state(config)
    state |= {n: t for n, t in plain.items() if n in state and t.shape == state[n].shape}
    with torch.no_grad():
        losses = [
            F.cross_entropy(gpt_from_state_dict(sd, c)(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            for sd, c in ((plain, BASE), (state, config))
        ]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_learns_after_a_few_steps(config):
    model = GPT(config, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = random_ids(4, 16)
    for _ in range(5):  # the zero projections hide what lies behind them until they have moved
        optimizer.zero_grad()
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_reading_in_chunks_with_a_cache_equals_one_forward_pass(config):
    model = gpt_from_state_dict(random_state(config), config)
    ids = random_ids(3, 17)
    ids[:, 9] = config.bos_id
    for chunks in ([1] * 17, [5, 1, 4, 7]):
        cache = model.new_cache(3, 17)  # a longer one would scale the rotary embedding
        with torch.no_grad():
            parts = [model(part, cache) for part in ids.split(chunks, dim=1)]
            torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=SAME_MATHS, rtol=0)


@pytest.mark.parametrize("config", [BASE, ALL, RECORD], ids=["baseline", "all", "record"])
def test_by_document_equals_each_document_alone(config):
    """Nothing crosses: attention is masked, smear and bigrams begin anew. Positions differ, but rotary ones are relative."""
    model = gpt_from_state_dict(random_state(config), config)
    ids = random_ids(1, 20)
    ids[ids == config.bos_id] = 5
    ids[0, [0, 7, 8]] = config.bos_id
    with torch.no_grad():
        packed = model(ids, by_document=True)
        alone = torch.cat([model(part) for part in ids.split([7, 1, 12], dim=1)], 1)
        crossing = model(ids)
    torch.testing.assert_close(packed, alone, atol=SAME_MATHS, rtol=0)
    assert not torch.allclose(crossing[:, 9:], alone[:, 9:], atol=1e-2)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_a_dense_mask():
    """Flex attention is used for documents on a GPU; here its plain reference runs."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    ids = random_ids(2, 20)
    ids[:, [5, 11]] = 1
    dense = attend(q, k, v, document_mask(ids, 1, blocks=False))
    flex = attend(q, k, v, document_mask(ids, 1, blocks=True))
    torch.testing.assert_close(flex, dense, atol=1e-5, rtol=0)  # float32 softmax in another order


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_lone_query_attends_to_all_keys(kv_heads):
    """Heads as query positions equal heads with their keys repeated."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 1, 8), torch.randn(2, kv_heads, 20, 8)[:, :, :13], torch.randn(2, kv_heads, 13, 8)
    scores = q @ k.repeat_interleave(4 // kv_heads, 1).transpose(2, 3) / 8**0.5
    expected = scores.softmax(-1) @ v.repeat_interleave(4 // kv_heads, 1)
    torch.testing.assert_close(attend(q, k, v, None), expected, atol=1e-5, rtol=0)  # float32 softmax in another order


def test_a_cache_has_the_dtype_of_autocast():
    """The keys that autocast makes are stored as they are."""
    model = gpt_from_state_dict(random_state(BASE))
    assert model.new_cache(1, 4).keys.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(1, 4)
        model(random_ids(1, 2), cache)
        logits = model(random_ids(1, 1), cache)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16 and logits.isfinite().all()


def test_xsa_leaves_nothing_along_the_own_value():
    torch.manual_seed(0)
    y, v = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6)
    left = without_own_value(y, v)
    own = v.repeat_interleave(2, dim=1)
    assert (left * own).sum(-1).abs().max() < 1e-5  # float32
    torch.testing.assert_close(without_own_value(left, v), left)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_state_dict_and_config_round_trip(config):
    assert {name: tuple(t.shape) for name, t in GPT(config).state_dict().items()} == expected_shapes(config)
    assert GPTConfig.from_dict(config.to_dict()) == config


def test_options_that_are_off_take_no_bytes_in_a_file():
    assert set(BASE.to_dict()) == {f.name for f in dataclasses.fields(GPTConfig)[:11]}
    assert set(CONFIGS["xsa"].to_dict()) - set(BASE.to_dict()) == {"xsa_last_n"}


def test_a_looped_matrix_is_stored_once():
    assert GPT(CONFIGS["loop"]).state_dict().keys() == GPT(BASE).state_dict().keys()
    assert CONFIGS["loop"].order() == [0, 1, 2, 1, 2, 1, 2, 3, 4] and CONFIGS["loop"].num_skips == 4
    with pytest.raises(CheckpointError, match="skip_weights has shape"):
        gpt_from_state_dict(random_state(BASE), CONFIGS["loop"])


@pytest.mark.parametrize("kind", ["orthogonal", "spectral"])
def test_initial_matrices_are_orthogonal(kind):
    config = GPTConfig(num_layers=1, model_dim=128, num_heads=2, num_kv_heads=1, mlp_hidden=256, init=kind)
    model = GPT(config)
    for name, (rows, columns) in {"attn.c_q": (128, 128), "attn.c_k": (64, 128), "mlp.fc": (256, 128)}.items():
        values = torch.linalg.svdvals(model.get_parameter(f"blocks.0.{name}.weight"))
        wanted = (rows / columns) ** 0.5 if kind == "spectral" else 1.0
        torch.testing.assert_close(values, torch.full_like(values, wanted), atol=1e-5, rtol=0)
    assert not model.blocks[0].mlp.proj.weight.any()


def test_initial_spectrum_and_mixes_of_the_record_of_pull_request_60():
    config = dataclasses.replace(BASE, embed_power_law=True, mix_by_depth=True)
    model, plain = GPT(config, seed=4), GPT(BASE, seed=4)
    u, s, vh = torch.linalg.svd(plain.tok_emb.weight.double(), full_matrices=False)
    wanted = u @ torch.diag(s[0] / torch.arange(1, len(s) + 1).double().sqrt()) @ vh
    torch.testing.assert_close(model.tok_emb.weight.double(), wanted, atol=1e-7, rtol=0)  # float32 of values of 0.005
    for i, share in enumerate((0.182426, 0.320821, 0.5, 0.679179, 0.817574)):  # 1 / (1 + exp(1.5 - 3 i / 4))
        mix = model.blocks[i].resid_mix
        torch.testing.assert_close(mix, torch.tensor([[share], [1 - share]]).expand(2, 24), atol=1e-6, rtol=0)
    assert torch.equal(model.blocks[1].attn.c_q.weight, plain.blocks[1].attn.c_q.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_power_law": True, "tie_embeddings": False}, "embed_power_law is of a tied embedding"),
        ({"rope_dims": 3}, "rope_dims must be even and at most the head's 6, got 3"),
        ({"rope_dims": 8}, "rope_dims must be even and at most the head's 6, got 8"),
        ({"xsa_last_n": 6}, "xsa_last_n must be 0 to 5, got 6"),
        ({"num_loops": 1, "loop_start": 3, "loop_end": 2}, "a loop needs 0 <= loop_start <= loop_end < num_layers = 5"),
        ({"bigram_buckets": 1}, "bigram_buckets must be 0, or 2 or more, got 1"),
        ({"bos_id": 37}, "bos_id must be 0 to 36, got 37"),
        ({"init": "zeros"}, "init must be one of uniform, orthogonal, spectral, got 'zeros'"),
        ({"attn_gate": "dense"}, "attn_gate must be one of none, sparse, full, double, got 'dense'"),
        ({"attn_gate": "full", "attn_gate_scale": 2.0}, "attn_gate_scale 2.0 is of attn_gate sparse, got full"),
        ({"model_dim": 8, "attn_gate": "sparse"}, "attn_gate sparse needs a model_dim of 12 or more, got 8"),
        ({"lanes_from": 5}, "lanes_from must be 0 to 4, got 5"),
        ({"lanes_from": 3, "parallel_last_n": 1}, "give lanes_from or parallel_last_n, not both: 3 and 1"),
        ({"final_lane": "mlp"}, "final_lane mlp needs two lanes"),
        ({"rope_dims": 2, "rope_train_len": 9}, "rope_train_len needs 4 channels"),
        ({"value_dim": 8}, "value_dim and value_last_n go together, got 8 and 0"),
        ({"embedding_dim": 8, "smear_gate": True}, "embedding_dim goes without smear_gate"),
        ({"model_dim": 8, "smear_gate": True}, "smear_gate needs a model_dim of 12 or more, got 8"),
    ],
)
def test_config_refuses_what_makes_no_model(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BASE, **change)
