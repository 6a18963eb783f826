"""From payloads to bytes and back: exact tensors, golden files, hostile manifests."""

import contextlib
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.artifact.container import Section, read_container, write_container
from quantlab.artifact.decode import decode_artifact, digest, parse_artifact, read_artifact
from quantlab.artifact.describe import describe
from quantlab.artifact.encode import CodedPayload, encode_artifact, keep, smallest_section
from quantlab.artifact.manifest import GridTensor, Manifest, ShapedTensor
from quantlab.artifact.verify import digest_in_fresh_process
from quantlab.coding.planes import codes_to_bytes
from quantlab.errors import FormatError, QuantlabError

GOLDEN = Path(__file__).parents[1] / "golden"


def grid_payload(name, q, scale, *, bits=6, exponent=-5):
    entry = GridTensor(name=name, shape=q.shape, bits=bits, exponent=exponent)
    return CodedPayload(entry, scale.astype(np.float16), Section(0, q.size, codes_to_bytes(q)))


def shaped_payload(name, q, *, level):
    a, b = (np.arange(n) % 9 * 3 - 11 for n in q.shape)
    entry = ShapedTensor(name=name, shape=q.shape, bits=8, level=level)
    return CodedPayload(entry, np.concatenate([a, b]).astype(np.int8), Section(0, q.size, codes_to_bytes(q)))


def payloads():
    """Every kind of tensor, small and by formula, so that the golden file never depends on a generator."""
    q = (np.arange(48).reshape(8, 6) * 7 % 63 - 31).astype(np.int8)
    scale = np.linspace(0.25, 1.75, 8)
    return [
        grid_payload("blocks.0.mlp.fc.weight", q, scale),
        grid_payload("tok_emb.weight", q[:3], scale[:3], bits=8, exponent=2),
        keep("gain", torch.linspace(-2, 2, 9)),
        keep("wide", torch.tensor([1e-30, 1e30])),
        keep("scalar", torch.tensor(0.5)),
        keep("half", torch.arange(4).half()),
        keep("brain", torch.tensor([[1.0, -3.25], [1e30, 0.0]], dtype=torch.bfloat16)),
        keep("steps", torch.tensor([2**40, -1])),
        keep("mask", torch.tensor([True, False])),
        keep("empty", torch.zeros(0, 3)),
        shaped_payload("blocks.0.attn.c_q.weight", q, level=-333),
    ]


ABOUT = {
    "model": {"vocab_size": 3},
    "tokenizer": {"sha256": "00", "vocab_size": 3},
    "origin": {"seed": 0},
    "producer": "quantlab golden",
}


def sample() -> bytes:
    return encode_artifact(payloads(), **ABOUT)


def test_tensors_come_back_bit_for_bit():
    arrays_ = decode_artifact(*parse_artifact(sample()))
    q, steps = (np.arange(48).reshape(8, 6) * 7 % 63 - 31).astype(np.float32), np.linspace(0.25, 1.75, 8).astype(np.float16)
    expected = q * (steps.astype(np.float32) * np.float32(2.0**-5))[:, None]
    assert (arrays_["blocks.0.mlp.fc.weight"] == expected).all()
    a, b = (np.arange(n) % 9 * 3 - 11 for n in (8, 6))
    wanted = q * np.exp2(-333 / 64 + (a[:, None] + b) / 4)  # float64; a significand is rounded once, a product once
    np.testing.assert_allclose(arrays_["blocks.0.attn.c_q.weight"], wanted, rtol=2**-23)
    assert arrays_["gain"].dtype == np.float32 and (arrays_["gain"] == np.linspace(-2, 2, 9).astype(np.float16)).all()
    assert (arrays_["wide"] == np.array([1e-30, 1e30], np.float32)).all()
    assert arrays_["scalar"].shape == () and arrays_["scalar"] == 0.5
    assert (arrays_["brain"] == torch.tensor([[1.0, -3.25], [1e30, 0.0]], dtype=torch.bfloat16).float().numpy()).all()
    assert arrays_["steps"].tolist() == [2**40, -1] and arrays_["mask"].tolist() == [True, False]
    assert arrays_["empty"].shape == (0, 3)


@given(
    q=arrays(np.int8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-31, 31)),
    exponent=st.integers(-60, 60),
)
@settings(deadline=None, max_examples=50)
def test_any_codes_round_trip(q, exponent):
    scale = np.linspace(0, 2, len(q))
    data = encode_artifact([grid_payload("w", q, scale, exponent=exponent)])
    steps = np.ldexp(scale.astype(np.float16).astype(np.float64), exponent)
    assert (decode_artifact(*parse_artifact(data))["w"] == (q * steps[:, None]).astype(np.float32)).all()


def test_golden_file_is_written_and_read_the_same(request):
    path = GOLDEN / "v1_all_kinds.qlab"
    if request.config.getoption("--update-golden"):
        path.write_bytes(sample())
    assert sample() == path.read_bytes(), "the format changed: bump VERSION and docs/format.md"
    tensors = decode_artifact(*read_artifact(path))
    assert digest(tensors) == "319e0c0ee447cb7ff14965107f8c954e2b3d24b590004905d77800d3de0f16f5"


def test_every_changed_byte_and_every_cut_of_the_golden_file_is_noticed():
    data = (GOLDEN / "v1_all_kinds.qlab").read_bytes()
    for at in range(len(data)):
        with pytest.raises(FormatError):
            parse_artifact(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        with pytest.raises(FormatError):
            parse_artifact(data[:at])


def hostile(change) -> bytes:
    """The sample with its manifest or sections changed, and every checksum made to fit."""
    manifest, sections = read_container(sample())
    manifest, sections = copy.deepcopy(manifest), list(sections)
    change(manifest, sections)
    return write_container(manifest, sections)


def _set(manifest, index, **values):
    manifest["tensors"][index].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, s: m.pop("tensors"), "key 'tensors' is missing"),
        (lambda m, s: m.update(tensors=3), "must be a list"),
        (lambda m, s: m.update(extra=1), "unknown key 'extra'"),
        (lambda m, s: m.update(model=[1]), "model must be an object"),
        (lambda m, s: m["tensors"].append(7), "kind 7"),
        (lambda m, s: _set(m, 0, kind="pickle"), "kind 'pickle'"),
        (lambda m, s: _set(m, 0, name=3), "name must be a string"),
        (lambda m, s: _set(m, 0, name="__metadata__"), "__metadata__"),
        (lambda m, s: m.update(tokenizer={"sha256": 5}), "tokenizer needs sha256"),
        (lambda m, s: _set(m, 0, shape="88"), "shape a list"),
        (lambda m, s: _set(m, 0, shape=[-8, -6]), "whole numbers"),
        (lambda m, s: _set(m, 0, shape=[8.0, 6]), "whole numbers"),
        (lambda m, s: _set(m, 0, shape=[True, 48]), "whole numbers"),
        (lambda m, s: _set(m, 0, shape=[2**31, 2**31]), "elements or more"),
        (lambda m, s: _set(m, 0, shape=[48]), "2 dimensions"),
        (lambda m, s: _set(m, 0, shape=[48, 2]), "differ at section"),
        (lambda m, s: _set(m, 0, bits=9), "bits must be 2 to 8"),
        (lambda m, s: _set(m, 0, bits=True), "bits must be 2 to 8"),
        (lambda m, s: _set(m, 0, bits=3), "beyond ±3"),
        (lambda m, s: _set(m, 0, exponent=1000), "exponent must be"),
        (lambda m, s: _set(m, 0, exponent=127), "beyond float32"),
        (lambda m, s: _set(m, 10, level=10**6), "level must be"),
        (lambda m, s: _set(m, 10, exponent=1), "unknown key 'exponent'"),
        (lambda m, s: _set(m, 2, dtype="object"), "dtype 'object'"),
        (lambda m, s: _set(m, 2, dtype="float64"), "differ at section 2"),
        (lambda m, s: _set(m, 1, name="gain"), "'gain' is listed twice"),
        (lambda m, s: m["tensors"].pop(0), "sections"),
        (lambda m, s: s.pop(), "sections"),
        (lambda m, s: s.append(s[0]), "sections"),
        (lambda m, s: s.__setitem__(0, smallest_section(b"\xff" * s[0].raw_bytes)), "scale is negative or not finite"),
        (lambda m, s: s.__setitem__(3, Section(0, 48, bytes([128]) * 48)), "beyond ±31"),
        (lambda m, s: s.__setitem__(3, Section(2, 48, b"junk")), "brotli"),
        (lambda m, s: s.__setitem__(3, Section(99, 48, b"junk")), "codec number 99"),
    ],
)
def test_hostile_content_is_refused_by_name(change, message):
    with pytest.raises(FormatError, match=message):
        decode_artifact(*parse_artifact(hostile(change)))


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_no_manifest_crashes_the_reader(data):
    """Any JSON in any place of the manifest gives tensors or FormatError, nothing else."""
    json_value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )

    def change(manifest, sections):
        where = data.draw(st.sampled_from([manifest, *manifest["tensors"]]))
        where[data.draw(st.sampled_from([*where, "new"]))] = data.draw(json_value)

    with contextlib.suppress(FormatError):
        decode_artifact(*parse_artifact(hostile(change)))


def test_a_fresh_process_decodes_the_same(tmp_path):
    path = tmp_path / "m.qlab"
    path.write_bytes(sample())
    assert digest_in_fresh_process(path) == digest(decode_artifact(*parse_artifact(sample())))
    path.write_bytes(sample()[:-1])
    with pytest.raises(QuantlabError, match="header says"):
        digest_in_fresh_process(path)


def test_digest_tells_names_shapes_types_and_bits_apart():
    a = {"w": np.zeros((2, 3), np.float32)}
    others = [{"v": a["w"]}, {"w": a["w"].T}, {"w": a["w"].astype(np.int32)}, {"w": -a["w"]}, {}]
    assert len({digest(x) for x in [a, *others]}) == 6


def test_describe_accounts_for_every_byte(tmp_path):
    path = tmp_path / "m.qlab"
    path.write_bytes(sample())
    about = describe(path)
    assert sum(about["bytes_by_kind"].values()) == about["artifact_bytes"] == len(sample())
    assert [t["name"] for t in about["tensors"]] == [p.entry.name for p in payloads()]


def test_kept_floats_lose_at_most_half_a_float16_unit_of_the_largest():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    entry = keep("w", values)
    assert entry.entry.dtype == "float16"
    back = decode_artifact(*parse_artifact(encode_artifact([entry])))["w"]
    assert np.abs(back - values.numpy()).max() <= 2.0**-11 * values.abs().max()
    assert keep("w", values * 1e-9).entry.dtype == "float32"
    assert keep("w", values, exact=True).entry.dtype == "float32"


def test_manifest_round_trips():
    manifest = Manifest(tensors=tuple(p.entry for p in payloads()), **ABOUT)
    raw, _ = read_container(write_container(manifest.to_dict(), []))
    assert Manifest.from_dict(raw) == manifest


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"cannot read .*absent\.qlab: No such file"):
        read_artifact(tmp_path / "absent.qlab")
