"""From payloads to bytes and back: exact tensors, golden files, hostile manifests."""

import contextlib
import copy
import functools
import hashlib
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from coder_samples import walks
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.artifact.container import DIGEST_BYTES, HEADER, SECTION, Section, read_container, write_container
from quantlab.artifact.decode import decode_artifact, decode_files, digest, parse_artifact
from quantlab.artifact.manifest import GridTensor, Manifest, TrellisTensor
from quantlab.artifact.reader import open_artifact
from quantlab.artifact.shaped_grid import grid_steps
from quantlab.artifact.verify import digest_in_fresh_process
from quantlab.artifact.writer import GridPayload, TrellisPayload, encode_artifact, passthrough_payload, smallest_section
from quantlab.coding.codecs import codes_to_bytes
from quantlab.errors import FormatError, QuantlabError
from quantlab.format_rules import PATHS, next_states

GOLDEN = Path(__file__).parents[1] / "golden"


def grid_payload(name, q, scale, *, bits=6, exponent=-5):
    entry = GridTensor(name=name, shape=q.shape, bits=bits, exponent=exponent)
    return GridPayload(entry, scale.astype(np.float16), Section(0, q.size, codes_to_bytes(q)))


def on_path_of(classes, rows, columns):
    """Whether each weight of a trellis is on its path: docs/format.md, from the whole shares of rows and columns."""
    return np.clip(classes + rows.astype(int)[:, None] + columns.astype(int), 0, 83) >= 9


def follow(wanted, states, on_path, paths):
    """Codes near `wanted` on a path: even off it; on it parity by the state, that comes from the weight before."""
    codes, moves = wanted.astype(int), next_states(states)
    for walk in walks(wanted.shape, paths):
        state = 0
        for i, j in walk:
            codes[i, j] -= (codes[i, j] - (state & on_path[i, j])) % 2
            state = moves[state, codes[i, j] // 2 % 2] if on_path[i, j] else state
    return codes


def trellis_payload(name, q, *, states, paths="blocks", level=-333, classes=9, bits=8, tables=0):
    """Return codes near q; scale classes differ by row and column, and most of the difference follows from the steps."""
    a, b = ((np.arange(n) % 9 * 3 - 11).astype(np.int8) for n in q.shape)
    rows, columns = ((np.arange(n) % 5 - 2).astype(np.int8) for n in q.shape)
    codes = follow(q, states, on_path_of(classes, rows, columns), paths) if states > 1 else q
    key = {"level": level, "states": states, "paths": paths, "classes": classes, "tables": tables}
    entry = TrellisTensor(name=name, shape=q.shape, bits=bits, **key)
    return TrellisPayload(entry, a, b, rows + a, columns + b, codes.astype(np.int16))


def payloads():
    """Every kind of tensor, small and by formula, so that the golden file never depends on a generator."""
    q = (np.arange(48).reshape(8, 6) * 7 % 63 - 31).astype(np.int8)
    scale = np.linspace(0.25, 1.75, 8)
    return [
        grid_payload("blocks.0.mlp.fc.weight", q, scale),
        grid_payload("tok_emb.weight", q[:3], scale[:3], bits=8, exponent=2),
        passthrough_payload("gain", torch.linspace(-2, 2, 9)),
        passthrough_payload("wide", torch.tensor([1e-30, 1e30])),
        passthrough_payload("scalar", torch.tensor(0.5)),
        passthrough_payload("half", torch.arange(4).half()),
        passthrough_payload("brain", torch.tensor([[1.0, -3.25], [1e30, 0.0]], dtype=torch.bfloat16)),
        passthrough_payload("steps", torch.tensor([2**40, -1])),
        passthrough_payload("mask", torch.tensor([True, False])),
        passthrough_payload("empty", torch.zeros(0, 3)),
        trellis_payload("blocks.0.attn.c_q.weight", q, states=8),
        trellis_payload("head.weight", q, states=8, paths="columns"),
        trellis_payload("blocks.0.attn.proj.weight", 30 * q[:5].astype(int), states=1, bits=16, classes=40),
    ]


ABOUT = {
    "model": {"vocab_size": 3},
    "tokenizer": {"sha256": "00", "vocab_size": 3},
    "origin": {"seed": 0},
    "producer": "quantlab golden",
}


@functools.cache
def sample() -> bytes:
    return encode_artifact(payloads(), **ABOUT).data


def test_tensors_come_back_bit_for_bit():
    arrays_ = decode_artifact(*parse_artifact(sample()))
    q, steps = (np.arange(48).reshape(8, 6) * 7 % 63 - 31).astype(np.float32), np.linspace(0.25, 1.75, 8).astype(np.float16)
    expected = q * (steps.astype(np.float32) * np.float32(2.0**-5))[:, None]
    assert (arrays_["blocks.0.mlp.fc.weight"] == expected).all()
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
    data = encode_artifact([grid_payload("w", q, scale, exponent=exponent)]).data
    steps = np.ldexp(scale.astype(np.float16).astype(np.float64), exponent)
    assert (decode_artifact(*parse_artifact(data))["w"] == (q * steps[:, None]).astype(np.float32)).all()


def test_golden_file_is_written_and_read_the_same(request):
    path = GOLDEN / "v1_all_kinds.qlab"
    if request.config.getoption("--update-golden"):
        path.write_bytes(sample())
    assert sample() == path.read_bytes(), "the format changed: bump VERSION and docs/format.md"
    tensors = open_artifact(path).arrays()
    assert digest(tensors) == "9874f496ed04085fcf75e9a59345ee6d7c86555a7dca598699a0f3f4934f6fcb"


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


def _with_last_byte(section, value):
    raw = section.decode()
    return Section(0, len(raw), raw[:-1] + bytes([value]))


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
        (lambda m, s: _set(m, 0, shape="88"), "shape must be a list"),
        (lambda m, s: _set(m, 0, shape=[-8, -6]), "whole numbers"),
        (lambda m, s: _set(m, 0, shape=[8.0, 6]), r"shape\[0\] must be a whole number, got 8.0"),
        (lambda m, s: _set(m, 0, shape=[True, 48]), r"shape\[0\] must be a whole number, got true"),
        (lambda m, s: _set(m, 0, shape=[2**31, 2**31]), "elements or more"),
        (lambda m, s: _set(m, 0, shape=[48]), "2 dimensions"),
        (lambda m, s: _set(m, 0, shape=[48, 2]), "differ at section"),
        (lambda m, s: _set(m, 0, bits=9), "bits must be one of 2, 3, 4, 5, 6, 7, 8, got 9"),
        (lambda m, s: _set(m, 0, bits=True), "bits must be a whole number, got true"),
        (lambda m, s: _set(m, 0, bits=16), "bits must be one of"),
        (lambda m, s: _set(m, 0, bits=3), "beyond ±3"),
        (lambda m, s: _set(m, 0, exponent=1000), "exponent must lie in"),
        (lambda m, s: _set(m, 0, exponent=127), "beyond the range of float32"),
        (lambda m, s: _set(m, 10, exponent=1), "unknown key 'exponent'"),
        (lambda m, s: _set(m, 2, dtype="object"), "dtype 'object'"),
        (lambda m, s: _set(m, 2, dtype="float64"), "differ at section 2"),
        (lambda m, s: s.__setitem__(2, _with_last_byte(s[2], 2)), "'mask': a bool is stored as 2, 0 or 1 are allowed"),
        (lambda m, s: _set(m, 1, name="gain"), "'gain' is listed twice"),
        (lambda m, s: m["tensors"].pop(0), "sections"),
        (lambda m, s: s.pop(), "sections"),
        (lambda m, s: s.append(s[0]), "sections"),
        (lambda m, s: s.__setitem__(0, smallest_section(b"\xff" * s[0].raw_bytes)), "scale is negative or not finite"),
        (lambda m, s: s.__setitem__(6, Section(0, 48, bytes([128]) * 48)), "beyond ±31"),
        (lambda m, s: s.__setitem__(6, Section(2, 48, b"junk")), "brotli"),
        (lambda m, s: s.__setitem__(6, Section(99, 48, b"junk")), "codec 99 is unknown"),
    ],
)
def test_hostile_content_is_refused_by_name(change, message):
    with pytest.raises(FormatError, match=message):
        decode_artifact(*parse_artifact(hostile(change)))


def stacked(shapes, aliases):
    """The sample, said to hold more tensors than are stored."""
    return hostile(lambda m, s: m.update(shapes=shapes, aliases=aliases))


def test_stacks_other_shapes_and_aliases_come_back():
    q = (np.arange(48).reshape(8, 6) % 31).astype(np.int8)
    parts = [
        grid_payload("up.0", q, np.ones(8)),
        trellis_payload("up.1", q, states=1),
        passthrough_payload("gain", torch.ones(6, 8)),
    ]
    data = encode_artifact(parts, shapes={"up": (1, 2, 8, 6), "gain": (2, 3, 8)}, aliases={"tied": "gain", "also": "up.0"}).data
    arrays_ = decode_artifact(*parse_artifact(data))
    alone = decode_artifact(*parse_artifact(encode_artifact(parts).data))
    assert {name: array.shape for name, array in arrays_.items()} == {
        "up": (1, 2, 8, 6),
        "gain": (2, 3, 8),
        "tied": (6, 8),
        "also": (8, 6),
    }
    assert np.array_equal(arrays_["up"][0], [alone["up.0"], alone["up.1"]])
    assert np.array_equal(arrays_["also"], alone["up.0"])
    assert np.array_equal(arrays_["gain"].ravel(), alone["gain"].ravel())


@pytest.mark.parametrize(
    ("shapes", "aliases", "message"),
    [
        ({}, {"a": "absent"}, "'a' stands for 'absent', which is not stored"),
        ({}, {"gain": "half"}, "'gain' is stored itself"),
        ({}, {"a": "b", "b": "gain"}, "'a' stands for 'b', which is not stored"),
        ({}, {"__metadata__": "gain"}, "__metadata__"),
        ({}, {"a": 3}, "must be a string"),
        ({}, [], "aliases must be an object"),
        ({"gain": [3, 3]}, {}, r"shape \[3, 3\] is not that of a stack"),
        ({"gain": [3, 3, 2]}, {}, "do not make up shape"),
        ({"up": [2, 3, 3]}, {}, "its part 'up.0' is not stored"),
        ({"up": [2, 3, 3]}, {"up.0": "gain"}, "its part 'up.1' is not stored"),
        ({"up": [2, 3, 3]}, {"up.0": "gain", "up.1": "half"}, "do not make up shape"),
        ({"up": [2**31, 1, 1]}, {}, "is not that of a stack"),
        ({"up": [0, 3, 3]}, {}, "do not make up shape"),
        ({"up": [1, 3, 3], "up.0": [1, 3, 3]}, {"up.0": "gain"}, "its part 'up.0' is not stored"),
        ({"up": [1, -3, 3]}, {}, "whole numbers"),
        ({"up": 3}, {}, "must be a list"),
    ],
)
def test_hostile_stacks_and_aliases_are_refused_by_name(shapes, aliases, message):
    with pytest.raises(FormatError, match=message):
        decode_artifact(*parse_artifact(stacked(shapes, aliases)))


def test_a_small_file_cannot_stand_for_many_tensors():
    big = passthrough_payload("big", torch.zeros(2**20))
    with pytest.raises(FormatError, match="may hold"):
        encode_artifact([big], aliases={f"copy {n}": "big" for n in range(9)})
    data = encode_artifact([big], aliases={"copy": "big"}).data
    manifest, sections = read_container(data)
    manifest["aliases"] = {f"copy {n}": "big" for n in range(9)}
    with pytest.raises(FormatError, match="may hold"):
        parse_artifact(write_container(manifest, sections))


@pytest.mark.parametrize("number", [1, 3, 4])
@pytest.mark.parametrize("codec", [1, 4, 2, 3])
def test_nothing_hides_in_a_section_that_no_tensor_reads(number, codec):
    data = encode_artifact(payloads()[:3]).data
    manifest, sections = read_container(data)
    sections[number] = Section(codec, 0, b"smuggled")
    with pytest.raises(FormatError, match="stream"):
        decode_artifact(*parse_artifact(write_container(manifest, sections)))


FILES = {"tokenizer.json": b'{"model": {}}' * 40, "tokenizer_config.json": b"{}"}


@pytest.mark.parametrize("kinds", [payloads(), payloads()[:3], payloads()[10:]])
def test_the_files_of_a_tokenizer_are_carried_and_counted(kinds, tmp_path):
    plain, carrying = encode_artifact(kinds, **ABOUT), encode_artifact(kinds, **ABOUT, files=FILES)
    (tmp_path / "m.qlab").write_bytes(carrying.data)
    opened = open_artifact(tmp_path / "m.qlab")
    assert opened.files() == FILES and list(opened.files()) == sorted(FILES)
    assert digest(opened.arrays()) == digest(decode_artifact(*parse_artifact(plain.data)))
    sizes = carrying.layout.size_breakdown
    assert sizes == opened.layout.size_breakdown and sum(sizes.values()) == len(carrying)
    assert 0 < sizes["tokenizer"] < 542 and "tokenizer" not in plain.layout.size_breakdown
    assert sizes["codes"] == plain.layout.size_breakdown["codes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, s: m.update(files={"../evil.py": 522}), "'../evil.py' is not one of added_tokens.json"),
        (lambda m, s: m["files"].update({"tokenizer.json": -1}), "at least 1, got -1"),
        (lambda m, s: m["files"].update({"tokenizer.json": True}), "at least 1, got True"),
        (lambda m, s: m["files"].update({"tokenizer.json": "9"}), "at least 1, got '9'"),
        (lambda m, s: m["files"].update({"tokenizer.json": 2**26 - 1}), "67108865 bytes in all, at most 67108864"),
        (lambda m, s: m["files"].update({"tokenizer.json": 521}), "differ at section 8"),
        (lambda m, s: m.pop("files"), "need 8 sections, the file has 9"),
        (lambda m, s: s.pop(), "need 9 sections, the file has 8"),
        (lambda m, s: m.update(files=[1]), "files must be an object"),
    ],
)
def test_hostile_files_are_refused_by_name(change, message):
    manifest, sections = read_container(encode_artifact(payloads(), **ABOUT, files=FILES).data)
    change(manifest, sections)
    with pytest.raises(FormatError, match=message):
        decode_files(*parse_artifact(write_container(manifest, sections)))


def test_files_of_other_names_and_empty_ones_are_not_written():
    for files in ({"model.py": b"x"}, {"tokenizer.json": b""}):
        with pytest.raises(FormatError, match="manifest files"):
            encode_artifact(payloads(), files=files)


def _larger_steps(manifest, sections):
    """Make steps of 2**180; shares of scale classes grow by as much as scale units do, so that the stream still fits."""
    _set(manifest, 10, level=7680)
    units, shares = (np.frombuffer(sections[n].decode(), np.int8).astype(int) for n in (1, 3))
    for number, values in ((1, np.full(39, 120)), (3, shares + 120 - units)):
        sections[number] = Section(0, 39, values.astype(np.int8).tobytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, s: _set(m, 10, level=7681), "level must lie in -7680 to 7680, got 7681"),
        (lambda m, s: _larger_steps(m, s), "a weight is beyond the range of float32"),
        (lambda m, s: _set(m, 10, level=1.0), "level must be a whole number, got 1.0"),
        (lambda m, s: _set(m, 10, states=2), "states must be one of 1, 4, 8, 16, 32, 64, 256, got 2"),
        (lambda m, s: _set(m, 10, states=True), "states must be a whole number, got true"),
        (lambda m, s: _set(m, 10, paths="rows"), 'paths must be one of blocks, columns, got "rows"'),
        (lambda m, s: _set(m, 10, classes=501), "classes must lie in -500 to 500"),
        (lambda m, s: _set(m, 10, tables=-1), "tables must lie in 0 to 127"),
        (lambda m, s: _set(m, 10, tables=1), "context 0 names table set 1, there are 1"),
        (lambda m, s: _set(m, 10, bits=4), "beyond ±7, the range of 4 bits"),
        (lambda m, s: _set(m, 10, bits=9), "bits must be one of 2, 3, 4, 5, 6, 7, 8, 16"),
        (lambda m, s: _set(m, 10, shape=[48]), "2 dimensions"),
        (lambda m, s: _set(m, 10, shape=[6, 9]), "differ at section 1"),
        (lambda m, s: _set(m, 10, kind="row_grid"), "unknown key"),
        (lambda m, s: m.update(lanes=0), "not canonical: a key holds what its absence means"),
        (lambda m, s: m.pop("lanes"), "0 lanes: 1 to 32"),
        (lambda m, s: m.update(lanes=2049), "lanes must be 0, or 16 to 2048"),
        (lambda m, s: m.update(lanes=15), "lanes must be 0, or 16 to 2048"),
        (lambda m, s: m.update(lanes=48), "48 lanes: 1 to 32, or a multiple of 32"),
        (lambda m, s: m.update(lanes=-1), "lanes must be 0, or 16 to 2048"),
        (lambda m, s: m.update(lanes=True), "lanes must be a whole number, got true"),
        (lambda m, s: m.update(lanes=2048), "cannot hold"),
        (lambda m, s: s.__setitem__(1, Section(0, 39, bytes(39)[:38])), "38 bytes"),
        (lambda m, s: s.__setitem__(4, Section(0, 0, b"")), "frequency tables end"),
        (lambda m, s: s.__setitem__(4, Section(0, 2**20 + 1, b"")), "differ at section 4"),
        (lambda m, s: s.__setitem__(5, Section(0, 0, b"")), "cannot hold"),
        (lambda m, s: s.__setitem__(5, Section(0, 8, b"\xff" * 8)), "cannot hold 4294967295 escapes"),
        (lambda m, s: s.__setitem__(5, Section(1, s[5].raw_bytes, b"junk")), "differ at section 5"),
        (lambda m, s: s.__setitem__(5, Section(0, len(s[5].stored) + 2, s[5].stored + bytes(2))), "code stream is damaged"),
        (lambda m, s: s.__setitem__(5, Section(0, len(s[5].stored) - 2, s[5].stored[:-2])), "code stream"),
    ],
)
def test_hostile_trellises_are_refused_by_name(change, message):
    with pytest.raises(FormatError, match=message):
        decode_artifact(*parse_artifact(hostile(change)))


@pytest.mark.parametrize("shape", [[2**16, 2**15], [2**31, 1], [1, 2**31], [2**20, 2**11]])
def test_huge_trellises_in_a_small_file_are_refused_at_once(shape):
    """Neither the codes nor the sides of a shape are allocated where the file does not justify them."""

    def change(manifest, sections):
        _set(manifest, 10, shape=shape)
        side_bytes = sum(shape) + 25  # of the other trellis tensors
        if side_bytes < 2**24:
            for number in (1, 3):
                sections[number] = smallest_section(bytes(side_bytes), (1,))

    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"may hold|differ at section"):
            parse_artifact(hostile(change))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_contexts_that_disagree_with_their_stream_are_refused_or_decode_to_other_tensors():
    """Shapes and classes decide which table reads a symbol: changed, the stream hardly ever comes out even."""
    right, refused = decode_artifact(*parse_artifact(sample())), 0
    for number in (1, 3):
        _, sections = read_container(sample())
        raw = sections[number].decode()
        for at in range(len(raw)):
            other = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
            data = hostile(lambda m, s, n=number, r=other: s.__setitem__(n, Section(0, len(r), r)))
            try:
                tensors = decode_artifact(*parse_artifact(data))
            except FormatError:
                refused += 1
            else:
                assert digest(tensors) != digest(right)
    assert refused > 10


@pytest.mark.parametrize("shape", [(8, 6), (300, 200), (700, 900)])
def test_a_draft_is_about_as_long_as_its_file(shape):
    """Lanes waste 3 bytes each on average; how the last words of a stream fall adds a byte or two a lane."""
    q = np.rint(9 * np.random.default_rng(0).standard_normal(shape)).astype(int)
    made = [trellis_payload("w", q, states=8, classes=20, bits=16), passthrough_payload("gain", torch.linspace(-2, 2, 9))]
    file, draft = encode_artifact(made, **ABOUT), encode_artifact(made, draft=True, **ABOUT)
    assert abs(len(file) - len(draft)) < 64 + len(file) / 5000
    assert len(draft.layout.tensors) == len(file.layout.tensors)


KINDS = ((4, 12, "columns"), (8, 8, "blocks"), (32, 45, "blocks"))


def trellis_only():
    """A larger file of trellises alone, by formula, with escapes, raw bits and low scale classes."""
    wave = np.rint(20 * np.sin(np.arange(40)[:, None] * 0.7 + np.arange(30) ** 1.5)).astype(int)
    wave[3, 5] = 900
    many = [trellis_payload(f"w{n}", wave[:, : 30 - n], states=n, paths=p, bits=16, classes=c) for n, c, p in KINDS]
    return encode_artifact([*many, passthrough_payload("gain", torch.linspace(-2, 2, 9))]).data


@pytest.mark.parametrize("sealed", [True, False])
def test_flipped_bytes_of_a_trellis_artifact_give_format_errors_or_valid_tensors(sealed):
    """With checksums that fit, a flip is refused, or gives tensors of the right shapes; nothing else, and no hang."""
    data = trellis_only()
    manifest, _ = read_container(data)
    shapes = {e["name"]: tuple(e["shape"]) for e in manifest["tensors"]}
    rng = np.random.default_rng(0)
    for at in range(len(data)) if not sealed else rng.integers(0, len(data), 250):
        broken = bytearray(data)
        broken[at] ^= int(rng.integers(1, 256))
        if not sealed:
            with pytest.raises(FormatError):
                parse_artifact(bytes(broken))
            continue
        with contextlib.suppress(FormatError):
            tensors = decode_artifact(*parse_artifact(resealed(bytes(broken))))
            if set(tensors) == set(shapes):
                assert all(np.isfinite(tensors[n]).all() for n in shapes)


def resealed(data: bytes) -> bytes:
    """The file with every checksum made to fit, as far as its table can be read."""
    body, at = bytearray(data[:-DIGEST_BYTES]), HEADER.size
    _, _, count, packed, _, _ = HEADER.unpack_from(body)
    start = HEADER.size + count * SECTION.size + packed
    for _ in range(count):
        if at + SECTION.size > len(body):
            break
        codec, stored, raw, _ = SECTION.unpack_from(body, at)
        SECTION.pack_into(body, at, codec, stored, raw, zlib.crc32(body[start : start + stored]))
        at, start = at + SECTION.size, start + stored
    return bytes(body) + hashlib.sha256(body).digest()[:DIGEST_BYTES]


@given(
    shape=st.tuples(st.sampled_from([0, 1, 7, 32, 40, 65]), st.sampled_from([0, 1, 12, 33, 70])),
    states=st.sampled_from([1, 4, 8, 16, 32, 64, 256]),
    paths=st.sampled_from(PATHS),
    level=st.integers(-900, 900),
    classes=st.integers(-20, 90),
    scale=st.sampled_from([0, 1, 30, 3000]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_trellis_tensors_come_back_bit_for_bit(shape, states, paths, level, classes, scale, seed):
    """weight = (t - ½ on the path) · step, the step a float32 next to 2**(level/64 + (a + b)/4): one product, rounded once."""
    q = np.rint(scale * np.random.default_rng(seed).standard_normal(shape)).astype(int)
    payload = trellis_payload("w", q, states=states, paths=paths, level=level, classes=classes, bits=16)
    weights = decode_artifact(*parse_artifact(encode_artifact([payload]).data))["w"]
    a, b = payload.a_O.astype(int), payload.b_I.astype(int)
    on_path = on_path_of(classes, payload.rows_O - payload.a_O, payload.columns_I - payload.b_I) & (states > 1)
    values = payload.codes_OI - 0.5 * on_path
    exact = np.exp2(level / 64 + (a[:, None] + b) / 4)  # float64
    steps = grid_steps(level, payload.a_O, payload.b_I)
    assert weights.dtype == np.float32 and np.array_equal(weights, values.astype(np.float32) * steps)
    np.testing.assert_allclose(steps, exact, rtol=2**-24 * 1.001)


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_no_manifest_crashes_the_reader(data):
    """Any JSON in any place of the manifest gives tensors or FormatError, nothing else."""
    whole = {"shapes": {"up": [1, 3, 3]}, "aliases": {"up.0": "gain", "tied": "half"}}
    json_value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )

    def change(manifest, sections):
        manifest |= copy.deepcopy(whole)
        where = data.draw(st.sampled_from([manifest, manifest["shapes"], manifest["aliases"], *manifest["tensors"]]))
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
    about = open_artifact(path).describe()
    assert sum(about["size_breakdown"].values()) == about["artifact_bytes"] == len(sample())
    assert [t["name"] for t in about["tensors"]] == [p.entry.name for p in payloads()]


def test_unquantized_floats_lose_at_most_half_a_float16_unit_of_the_largest():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    entry = passthrough_payload("w", values)
    assert entry.entry.dtype == "float16"
    back = decode_artifact(*parse_artifact(encode_artifact([entry]).data))["w"]
    assert np.abs(back - values.numpy()).max() <= 2.0**-11 * values.abs().max()
    assert passthrough_payload("w", values * 1e-9).entry.dtype == "float32"
    assert passthrough_payload("w", values, exact=True).entry.dtype == "float32"


def test_manifest_round_trips():
    manifest = Manifest(tensors=tuple(p.entry for p in payloads()), **ABOUT)
    raw, _ = read_container(write_container(manifest.to_dict(), []))
    assert Manifest.from_dict(raw) == manifest


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"cannot read .*absent\.qlab: No such file"):
        open_artifact(tmp_path / "absent.qlab")
