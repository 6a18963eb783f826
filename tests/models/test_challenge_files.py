"""The challenge's own files are read as checkpoints, run and packed."""

import dataclasses
import json
import lzma

import numpy as np
import pytest
import torch
from challenge_writers import BASELINE, H1394, KINDS, banked, torch_bytes, write_npz, write_pt
from conftest import random_state

import quantlab
from quantlab.errors import CheckpointError, ConfigError
from quantlab.jobs.inspect import inspect_checkpoint
from quantlab.models.checkpoint import read_checkpoint
from quantlab.models.loading import load
from quantlab.models.weights import split_state
from quantlab.trainer import attention
from quantlab.trainer.model import GPT

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.arange(24).reshape(2, 12) * 7 % 400


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    """Path, config and expected tensors of a checkpoint of each kind."""
    name, config, write = KINDS[request.param]
    path = tmp_path / name
    return path, config, write(path, random_state(config))


def test_each_kind_is_read_as_a_model_that_runs(kind):
    path, config, expected = kind
    loaded = load(path)
    assert loaded.model.config == config and loaded.config == config.to_dict()
    assert loaded.state.keys() == GPT(config).state_dict().keys()
    if path.suffix != ".npz":  # whose rotary rows change signs, see below
        assert all(torch.equal(loaded.state[n], t) and loaded.state[n].dtype == t.dtype for n, t in expected.items())
        reference = GPT(config)
        reference.load_state_dict({n: t.float() for n, t in expected.items()})
        assert torch.equal(loaded.model(IDS), reference.eval()(IDS))


def test_each_kind_is_packed_and_unpacked(kind, tmp_path):
    path, config, _ = kind
    out = tmp_path / "m.qlab"
    options = {"method": "rtn", "calib": "random", "calib_tokens": 512, "calib_seq_len": 64}
    quantlab.pack(path, budget=400_000, output=out, **options)
    again = load(out)
    assert again.model.config == config and out.stat().st_size <= 400_000
    assert again.state.keys() == GPT(config).state_dict().keys()


def test_what_mlx_rotates_the_other_way_gives_the_same_logits(tmp_path, monkeypatch):
    raw = write_npz(tmp_path / "m.npz", random_state(BASELINE))
    assert all(torch.equal(t, raw[n]) for n, t in read_checkpoint(tmp_path / "m.npz").items())
    found = load(tmp_path / "m.npz").model(IDS)
    plain = attention.rotate
    monkeypatch.setattr(attention, "rotate", lambda x, rope: plain(x, (rope[0], -rope[1])))
    reference = GPT(BASELINE)
    reference.load_state_dict({n: t.float() for n, t in raw.items()})
    assert torch.allclose(reference.eval()(IDS), found, atol=1e-5)
    monkeypatch.undo()
    assert not torch.allclose(reference(IDS), found, atol=1e-3)


@pytest.mark.parametrize("layers", [4, 6])
def test_a_record_without_its_loop_is_told_by_its_skips(tmp_path, layers, caplog):
    config = dataclasses.replace(H1394, num_layers=layers, xsa_last_n=layers, num_loops=0, loop_start=0, loop_end=0)
    write_pt(tmp_path / "m.pt", random_state(config))
    assert load(tmp_path / "m.pt").model.config == config
    assert "taken from preset h1394" in caplog.text and "mlp_slope = 0.5" in caplog.text


def test_skips_that_fit_no_known_loop_need_a_file(tmp_path):
    config = dataclasses.replace(H1394, loop_start=3)
    write_pt(tmp_path / "m.pt", random_state(config))
    with pytest.raises(CheckpointError, match=r"skip_weights has shape \[6, 64\], expected \[5, 64\]") as caught:
        load(tmp_path / "m.pt")
    assert "FILE.toml" in caught.value.hint
    options = {n: v for n, v in config.to_dict().items() if n != "vocab_size"}
    lines = [f"{n} = {json.dumps(v)}" for n, v in options.items()]
    (tmp_path / "mine.toml").write_text("\n".join(["[model]", *lines]))
    assert load(tmp_path / "m.pt", model=str(tmp_path / "mine.toml")).model.config == config
    (tmp_path / "mine.toml").write_text("[model]\nnum_lops = 2\n")
    with pytest.raises(ConfigError, match="num_lops"):
        load(tmp_path / "m.pt", model=str(tmp_path / "mine.toml"))


def test_a_preset_may_be_named_and_an_artifact_does_not_need_it(tmp_path):
    write_pt(tmp_path / "m.pt", random_state(BASELINE))
    assert load(tmp_path / "m.pt", model="baseline").model.config == BASELINE
    options = {"method": "rtn", "calib": "random", "calib_tokens": 512, "calib_seq_len": 64}
    quantlab.pack(tmp_path / "m.pt", budget=200_000, output=tmp_path / "m.qlab", model="baseline", **options)
    assert load(tmp_path / "m.qlab", model="h1394").model.config == BASELINE


def test_smear_gates_of_a_banked_checkpoint_have_our_names(tmp_path):
    config = dataclasses.replace(H1394, smear_gate=True)
    state = random_state(config)
    names = {"smear.gate.weight": "smear_gate.weight", "smear.scale": "smear_lambda"}
    write_pt(tmp_path / "m.pt", {names.get(n, n): t for n, t in banked(state, 6).items()})
    loaded = load(tmp_path / "m.pt")
    assert loaded.model.config == config and torch.equal(loaded.state["smear.scale"], state["smear.scale"])


def test_a_checkpoint_of_the_record_with_lanes_and_gates_is_read_by_its_preset(tmp_path, caplog):
    config = dataclasses.replace(
        H1394,
        num_layers=11,
        xsa_last_n=11,
        loop_start=3,
        smear_gate=True,
        attn_gate="sparse",
        attn_gate_scale=0.5,
        lanes_from=8,
        rope_train_len=0,
        qk_gain_init=5.0,
    )
    state = random_state(config)
    names = {"smear.gate.weight": "smear_gate.weight", "smear.scale": "smear_lambda"}
    write_pt(tmp_path / "m.pt", {names.get(n, n): t for n, t in banked(state, 11).items()})
    loaded = load(tmp_path / "m.pt")
    assert loaded.model.config == config
    assert "taken from preset record_1855" in caplog.text and "lanes_from = 8" in caplog.text
    split = split_state(loaded.state)
    kept = {"parallel_post_lambdas", "parallel_resid_lambdas", "blocks.10.attn.attn_gate_w", "skip_gates"}
    assert kept <= split.unquantized.keys()


@pytest.mark.parametrize("kind", ["full", "double"])
def test_other_gates_are_told_by_their_tensors(tmp_path, kind):
    config = dataclasses.replace(H1394, attn_gate=kind)
    write_pt(tmp_path / "m.pt", banked(random_state(config), 6))
    assert load(tmp_path / "m.pt").model.config == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.attn.attn_gate_w": torch.zeros(4, 12)}, "blocks.1.attn.attn_gate_w is missing"),
        ({"kv_bank": None}, "kv_bank is missing beside mlp_down_bank"),
        ({"kv_bank": torch.zeros(11, 32, 64)}, "kv_bank has 11 matrices, expected 2 for each layer"),
        ({"kv_bank": torch.zeros(10, 32, 64)}, "different numbers of layers: qo_bank of 6, kv_bank of 5"),
        ({"mlp_up_bank": torch.zeros(6, 128)}, r"mlp_up_bank is torch.float32 \[6, 128\], expected floating"),
        ({"mlp_up_bank": torch.zeros(0, 128, 64)}, "mlp_up_bank has 0 matrices"),
        ({"blocks.1.mlp.fc.weight": torch.zeros(128, 64)}, "blocks.1.mlp.fc.weight is there beside mlp_up_bank"),
        ({"mlp_up_bank": torch.zeros(6, 128, 60)}, r"fc.weight has shape \[128, 60\], expected \[128, 64\]"),
    ],
)
def test_banks_that_do_not_fit_are_named(tmp_path, change, message):
    state = banked(random_state(H1394), 6) | change
    write_pt(tmp_path / "m.pt", {n: t for n, t in state.items() if t is not None})
    with pytest.raises(CheckpointError, match=f"^no model matches: .*{message}"):
        load(tmp_path / "m.pt")


Q, S = torch.ones(4, 8, dtype=torch.int8), torch.ones(4).half()

LQ = {"a.lqA": Q[:, :2], "a.lqAs": S, "a.lqB": Q[:2], "a.lqBs": S[:2]}
LQ_A = {"a.lqA_a": Q[:, :2], "a.lqAs_a": S[0], "a.lqB_a": Q[:2], "a.lqBs_a": S[:2]}


@pytest.mark.parametrize(
    ("parts", "how", "expected"),
    [
        ({"a.q": Q, "a.scale": S / 2, **LQ}, "gptq (int6)+lqer", torch.full((4, 8), 2.5)),
        ({"a.q": Q, "a.scale": S / 2, **LQ_A}, "gptq (int6)+lqer_asym", torch.full((4, 8), 2.5)),
        ({"a.gq": Q, "a.gs": S / 4}, "gate_int8_row", torch.full((4, 8), 0.25)),
        ({"a.q": Q, "a.scale": S[0] / 4}, "gptq (int8)", torch.full((4, 8), 0.25)),
    ],
)
def test_gates_and_corrections(tmp_path, parts, how, expected):
    (tmp_path / "m.ptz").write_bytes(lzma.compress(torch_bytes({"w": parts, "m": {"a": how}})))
    assert torch.equal(read_checkpoint(tmp_path / "m.ptz")["a"], expected)


def test_compressed_arrays_are_refused_and_fortran_order_is_read(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", a=np.zeros((1000, 1000)))
    with pytest.raises(CheckpointError, match="compressed arrays"):
        read_checkpoint(tmp_path / "m.npz")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "m.npz", a=np.asfortranarray(array), b=np.float32(2), c=np.array([True]))
    found = read_checkpoint(tmp_path / "m.npz")
    assert torch.equal(found["a"], torch.from_numpy(array)) and found["b"].shape == () and found["c"].dtype == torch.bool


def test_each_kind_is_inspected_as_it_is_packed(kind):
    path, _, _ = kind
    found = inspect_checkpoint(path)
    assert (found.adapter, found.problem, found.bytes) == ("challenge", "", path.stat().st_size)
    state = load(path).state
    assert {t.name: t.shape for t in found.tensors} == {name: tuple(t.shape) for name, t in state.items()}
    split = split_state(state)
    stacks = {n for n in split.shapes if all(f"{n}.{k}" in split.matrices for k in range(split.shapes[n][0]))}
    assert {t.name for t in found.tensors if t.packing == "coded"} == stacks | (split.matrices.keys() & state.keys())
