"""Every weight of a model is packed: matrices of a stack, kernels and equal tensors; --keep and --bits choose otherwise."""

import math
from pathlib import Path

import pytest
import torch
from stacked_model import EXPERTS, WIDTH, random_stacked

import quantlab
from quantlab.artifact.manifest import RawTensor
from quantlab.errors import CheckpointError, ConfigError, StatisticsError
from quantlab.methods.trellis.tuning import held_out
from quantlab.models.weights import split_state, stored_names
from quantlab.report.tables import render_report

pytestmark = pytest.mark.usefixtures("one_thread")
FACTORY = f"{Path(__file__).with_name('stacked_model.py')}:factory"
QUICK = {"calib": "random", "calib_tokens": 1024, "calib_seq_len": 64, "device": "cpu"}
EXPERT_NAMES = [f"experts.{e}" for e in range(EXPERTS)]
TRELLIS = {"effort": "fast", "tune": True, "tune_steps": 2}


@pytest.fixture(scope="module")
def stats():
    return quantlab.calibrate(random_stacked(), **QUICK)


def pack(output, stats, model=None, **options):
    return quantlab.pack(model or random_stacked(), budget=options.pop("budget", 40_000), output=output, stats=stats, **options)


def random_matrix(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["trellis", "gptq"])
def test_stacks_kernels_and_equal_tensors_come_back_under_their_names(method, stats, tmp_path):
    model = random_stacked()
    options = TRELLIS | {"refine_steps": 1} if method == "trellis" else {}
    report = pack(tmp_path / "m.qlab", stats, model, method=method, **options)
    assert bool(report.refined) == (method == "trellis")
    assert {t.name: t.shape for t in report.tensors} == dict.fromkeys(EXPERT_NAMES, (WIDTH, WIDTH)) | {
        "conv.weight": (WIDTH, 3 * WIDTH),
        "emb.weight": (WIDTH, WIDTH),
    }
    assert {t["name"] for t in report.passthrough} == {"A_log", "conv.bias", "norm.weight", "norm.bias"}
    artifact = quantlab.open_artifact(tmp_path / "m.qlab")
    assert artifact.manifest.aliases == {"head": "emb.weight"}
    assert artifact.manifest.shapes == {"experts": (EXPERTS, WIDTH, WIDTH), "conv.weight": (WIDTH, WIDTH, 3)}
    assert report.n_params == artifact.n_params == sum(p.numel() for p in model.parameters()) - model.head.numel()
    state, again = model.state_dict(), artifact.tensors()
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in state.items()}
    assert torch.equal(again["head"], again["emb.weight"])
    for name, tensor in state.items():
        assert (again[name] - tensor).norm() <= 0.3 * tensor.norm() + 0.01, name
    loaded = quantlab.load(tmp_path / "m.qlab", model=FACTORY)
    assert torch.equal(loaded.model.experts, again["experts"]) and torch.equal(loaded.model.head, again["emb.weight"])
    quantlab.unpack(tmp_path / "m.qlab", tmp_path / "m.safetensors")
    assert torch.equal(quantlab.load(tmp_path / "m.safetensors", model=FACTORY).state["head"], again["head"])


def test_tuning_sees_the_stacks_as_they_are_rounded(stats, tmp_path):
    """The KL before tuning is that of the rounded model on the sequences that tuning held out: two steps change it little.

    Errors are small enough here for two roundings to have about the same KL; at 22,000 bytes they differ tenfold.
    """
    model = random_stacked()
    report = pack(tmp_path / "m.qlab", stats, model, budget=30_000, **TRELLIS)
    rounded = quantlab.load(tmp_path / "m.qlab", model=FACTORY).model
    _, ids = held_out(stats.ids_NT.long())
    with torch.no_grad():
        p, q = (m(ids).double().log_softmax(-1) for m in (model, rounded))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert report.tuned["kl_before"] == pytest.approx(kl, rel=0.3) and kl > 1e-5


def test_an_expert_that_was_never_reached_is_named_and_rounded_by_its_siblings(stats, tmp_path):
    assert stats.priors == ("experts.3",)
    report = pack(tmp_path / "m.qlab", stats, effort="fast")
    assert report.priors == ("experts.3",)
    lines = [line for line in render_report(report).renderables if isinstance(line, str)]
    named = [line for line in lines if "experts.3" in line]
    assert named == ["never reached by the calibration, rounded by the mean of their siblings' statistics: experts.3"]
    share = 100 * sum(math.prod(t.shape) for t in report.tensors) / report.n_params
    assert f"quantized {share:.2f} % of the weights; 4 tensors are unquantized" in lines
    sizes = {t.name: t.bytes for t in report.tensors}
    assert 0.5 < sizes["experts.3"] / sizes["experts.0"] < 2


@pytest.mark.parametrize("method", ["trellis", "rtn"])
def test_bits_limit_the_codes_of_the_tensors_that_match(method, stats, tmp_path):
    options = {"method": method} | ({"effort": "fast"} if method == "trellis" else {})
    free, limited = (
        pack(tmp_path / f"{len(bits)}.qlab", stats, budget=34_000, bits=bits, **options)
        for bits in ({}, {"experts": 8, "experts.1": 4, "conv*": 5})
    )
    codes = quantlab.open_artifact(tmp_path / "3.qlab").code_counts()
    for name, limit in {"experts.1": 7, "conv.weight": 15}.items():
        assert not any(codes[name][: 64 - limit]) and not any(codes[name][65 + limit :]), name
    wider = quantlab.open_artifact(tmp_path / "0.qlab").code_counts()
    assert any(wider["experts.1"][:56]) and any(codes["experts.0"][:56])
    widths = {t.name: t.width_bits for t in limited.tensors}
    assert widths["experts.1"] == 4 and widths["conv.weight"] <= 5 < widths["experts.0"]
    assert limited.bits == {"experts": 8, "experts.1": 4, "conv*": 5} and limited.total_bytes <= 34_000 >= free.total_bytes


def test_kept_tensors_are_stored_unquantized(stats, tmp_path):
    model = random_stacked()
    report = pack(tmp_path / "m.qlab", stats, model, budget=60_000, effort="fast", keep=["experts.1", "head"])
    raw = {t.name for t in quantlab.open_artifact(tmp_path / "m.qlab").manifest.tensors if isinstance(t, RawTensor)}
    assert raw == {"A_log", "conv.bias", "norm.weight", "norm.bias", "experts.1", "emb.weight"}
    assert report.keep == ("experts.1", "head")
    again = quantlab.load(tmp_path / "m.qlab", model=FACTORY).state
    for got, wanted in ((again["experts"][1], model.experts[1]), (again["head"], model.head)):
        assert (got - wanted).abs().max() <= 2.0**-11 * wanted.abs().max()
    assert torch.equal(again["head"], again["emb.weight"]) and not torch.equal(again["experts"][0], model.experts[0])


def test_a_whole_stack_is_kept_by_its_own_name(stats, tmp_path):
    report = pack(tmp_path / "m.qlab", stats, budget=70_000, effort="fast", keep="experts")
    assert {t.name for t in report.tensors} == {"conv.weight", "emb.weight"}
    assert torch.equal(
        quantlab.open_artifact(tmp_path / "m.qlab").tensors()["experts"][2].half().float(),
        random_stacked().experts[2].half().float(),
    )


def test_what_is_kept_need_not_be_measurable(tmp_path):
    class Odd(type(random_stacked())):
        def forward(self, ids):
            return super().forward(ids) @ torch.linalg.matrix_exp(0 * self.odd)

    model = Odd()
    model.load_state_dict(random_stacked().state_dict())
    model.odd = torch.nn.Parameter(random_matrix(0, WIDTH, WIDTH))
    with pytest.raises(StatisticsError, match="tensor odd: its use in mul cannot be measured"):
        quantlab.calibrate(model, **QUICK)
    found = quantlab.calibrate(model, keep="o*d", **QUICK)
    assert "odd" not in found.fishers and "emb.weight" in found.lookups
    quantlab.pack(model, budget=50_000, output=tmp_path / "m.qlab", stats=found, keep="odd", effort="fast")
    with pytest.raises(StatisticsError, match="tensor odd has no calibration statistics"):
        quantlab.pack(model, budget=50_000, output=tmp_path / "n.qlab", stats=found, effort="fast")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "blocks.*"}, r"keep blocks\.\* matches none of the tensors"),
        ({"bits": {"norm*": 4}}, r"bits norm\* matches none of the tensors"),  # it is not quantized
        ({"bits": {"experts": 3}}, r"bits experts=3: the widest of widths must be 4 bits or more"),
        ({"bits": {"experts": 9}}, r"bits experts=9: widths of method trellis must be among"),
        ({"bits": {"emb*": 4}, "keep": "emb*"}, r"bits emb\* matches none"),
    ],
)
def test_patterns_that_cannot_be_used_are_named(options, message, stats, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pack(tmp_path / "m.qlab", stats, **options)
    assert not list(tmp_path.iterdir())


def test_equal_tensors_are_found_by_their_memory_or_their_bits():
    big, small = random_matrix(0, 64, 64), torch.ones(64)
    state = {"a": big, "b": big.clone(), "c": big, "d": random_matrix(1, 64, 64), "n": small, "m": small.clone(), "o": small}
    split = split_state(state)
    assert split.aliases == {"b": "a", "c": "a", "o": "n"}
    assert list(split.matrices) == ["a", "d"] and list(split.unquantized) == ["m", "n"]
    assert split.weights == 2 * 64 * 64 + 2 * 64
    whole = split.whole(split.matrices | split.unquantized)
    assert whole.keys() == state.keys() and all(torch.equal(whole[name], tensor) for name, tensor in state.items())
    assert split_state({"a": big, "b": -big, "c": big.half()}).aliases == {}


def test_what_is_a_stack_or_a_kernel():
    state = {
        "bank": random_matrix(0, 2, 3, 64, 64),
        "short": random_matrix(1, 256, 1, 4),
        "thin": random_matrix(2, 4, 512, 16),
        "kernel": random_matrix(3, 64, 32, 5),
        "mixer.A_log": random_matrix(4, 64, 64),
        "ids": torch.zeros(3, 64, 64, dtype=torch.int64),
    }
    split = split_state(state, kernels=frozenset({"short", "kernel"}))
    assert list(split.matrices) == [*(f"bank.{k}" for k in range(6)), "kernel"]
    assert split.shapes == {"bank": (2, 3, 64, 64), "kernel": (64, 32, 5)}
    assert torch.equal(split.whole(split.matrices)["bank"][1, 2], state["bank"][1, 2])
    assert split.matrices["kernel"].shape == (64, 160)
    with pytest.raises(CheckpointError, match=r"tensor bank\.4 of the checkpoint has the name of a matrix in a stack"):
        split_state({"bank": state["bank"], "bank.4": torch.ones(3)})


def test_equal_experts_are_one_matrix():
    one = random_matrix(0, 64, 64)
    split = split_state({"up": torch.stack([one, one, 2 * one])})
    assert list(split.matrices) == ["up.0", "up.2"] and split.aliases == {"up.1": "up.0"}
    assert torch.equal(split.whole(split.matrices)["up"], torch.stack([one, one, 2 * one]))


def test_patterns_match_stored_names_stacks_and_aliases():
    shapes, aliases = {"e": (2, 64, 64)}, {"head": "emb", "e.1": "e.0"}
    names = ("e.0", "emb", "other")
    assert stored_names(["*"], names, shapes, aliases, "keep") == dict.fromkeys(names, "*")
    assert stored_names(["e", "head"], names, shapes, aliases, "keep") == {"e.0": "e", "emb": "head"}
    assert stored_names(["e.1", "e.*"], names, shapes, aliases, "keep") == {"e.0": "e.*"}
    with pytest.raises(ConfigError, match="keep x matches none") as caught:
        stored_names(["x"], names, shapes, aliases, "keep")
    assert "names like e" in str(caught.value)
