"""Damaged and hostile files of the challenge's kinds are refused in one line, and within memory that their size bounds."""

import io
import lzma
import pickle
import zipfile
import zlib

import brotli
import numpy as np
import pytest
import torch
from challenge_writers import KINDS, fast_shuffle, npy, shuffle, torch_bytes
from conftest import random_state

from quantlab.errors import CheckpointError
from quantlab.models.checkpoint import read_checkpoint
from quantlab.models.ptz import FREE_BYTES, SHUFFLED, decompress, most_bytes, unshuffled


@pytest.mark.parametrize("stride", [2, 3, 7, 255])
@pytest.mark.parametrize("size", [0, 1, 6, 500])
def test_shuffled_bytes_come_back_in_order(tmp_path, stride, size):
    raw = bytes(i % 251 for i in range(size))
    assert unshuffled(tmp_path, shuffle(raw, stride)) == raw
    assert unshuffled(tmp_path, raw) == raw
    assert fast_shuffle(raw) == shuffle(raw, 2)


COMPRESSORS = {"zlib": zlib.compress, "xz": lzma.compress, "brotli": brotli.compress}


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_bomb_is_bounded_by_its_size(tmp_path, compressor):
    stored = COMPRESSORS[compressor](bytes(1 << 26))
    assert most_bytes(len(stored)) < FREE_BYTES + (1 << 23)
    with pytest.raises(CheckpointError, match="decompress(es)? to more than") as caught:
        decompress(tmp_path / "bomb.ptz", stored)
    assert "\n" not in str(caught.value)
    assert decompress(tmp_path, COMPRESSORS[compressor](bytes(FREE_BYTES))) == bytes(FREE_BYTES)


@pytest.mark.parametrize("kind_name", ["int8", "int6", "mlx"])
def test_every_truncation_is_one_clear_line(tmp_path, kind_name):
    name, config, write = KINDS[kind_name]
    write(tmp_path / name, random_state(config))
    whole = (tmp_path / name).read_bytes()
    for size in [*range(8), *range(8, len(whole), len(whole) // 20)]:
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def deflated(content):
    """A torch file whose entries are compressed, as torch.save never writes it."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes(content))) as source,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return out.getvalue()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PGRP\x07\x00\x00\x00", "by lrzip"),
        (b"\x28\xb5\x2f\xfd....", "zstd stream"),
        (zlib.compress(b"x" * 99) + b"more", "bytes follow it"),
        (zlib.compress(b"junk"), "holds no torch file"),
        (zlib.compress(SHUFFLED), "stride 0"),
        (zlib.compress(SHUFFLED + b"\x01abc"), "stride 1"),
        (zlib.compress(pickle.dumps({"a": np.zeros(3)})), "MLX script"),
        (zlib.compress(torch_bytes([1, 2])), "but 'list'"),
        (zlib.compress(torch_bytes({"__quant_format__": "int4_v9"})), "int4_v9"),
        (zlib.compress(torch_bytes({"a": torch.ones(2)})), "neither the format"),
        (zlib.compress(deflated({"w": {}, "m": {}})), "compressed or overlapping"),
        (
            zlib.compress(torch_bytes({"w": {"a": torch.zeros(1).expand(9999, 9999)}, "m": {"a": "passthrough"}})),
            "its tensors have",
        ),
    ],
)
def test_other_streams_are_named(tmp_path, raw, message):
    (tmp_path / "m.ptz").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "m.ptz")
    assert "m.ptz" in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_in_a_submission_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    (tmp_path / "m.ptz").write_bytes(zlib.compress(torch_bytes({"w": {"a": Evil()}, "m": {}})))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_checkpoint(tmp_path / "m.ptz")
    assert not (tmp_path / "pwned").exists()


Q, S = torch.ones(4, 8, dtype=torch.int8), torch.ones(4).half()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantized": None}, "quantized is a NoneType, expected a table"),
        ({"scales": {}}, "a in scales is missing"),
        ({"scales": {"a": torch.full((4,), float("nan"))}}, "a in scales is not finite"),
        ({"scales": {"a": torch.full((4,), float("inf")).half()}}, "a in scales is not finite"),
        ({"scales": {"a": -S}}, "a in scales has a negative scale"),
        ({"scales": {"a": S[:3]}}, r"a in scales has shape \[3\], but the integers have shape \[4, 8\]"),
        ({"scales": {"a": Q}}, "a in scales is torch.int8, expected floating"),
        ({"quantized": {"a": Q.float()}}, "a in quantized is torch.float32, expected int8"),
        ({"quantized": {"a": Q.int()}}, "a in quantized is torch.int32, expected int8"),
        ({"quantized": {"a": 3}}, "a in quantized is no plain tensor"),
        ({"dtypes": {"a": "complex64"}}, "a in dtypes is 'complex64', allowed are float32"),
        ({"passthrough": {"a": S}}, "a in passthrough is also in quantized"),
        ({"passthrough": {"b": 3}}, "b in passthrough is no plain tensor"),
        ({"passthrough": {"b": S * float("nan")}}, "tensor b has 4 values that are not finite"),
        ({"passthrough": {"b": S}, "passthrough_orig_dtypes": {"b": "load"}}, "b in passthrough_orig_dtypes is 'load'"),
    ],
)
def test_a_damaged_int8_file_is_named(tmp_path, change, message):
    whole = {"quantized": {"a": Q}, "scales": {"a": S}, "dtypes": {"a": "float32"}, "passthrough": {}}
    content = {"__quant_format__": "int8_clean_per_row_v1", **whole, **change}
    (tmp_path / "m.int8.ptz").write_bytes(zlib.compress(torch_bytes(content)))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "m.int8.ptz")
    assert "\n" not in str(caught.value)


LQ = {"a.lqA": Q[:, :2], "a.lqAs": S, "a.lqB": Q[:2], "a.lqBs": S[:2]}
LQ_A = {"a.lqA_a": Q[:, :2], "a.lqAs_a": S[0], "a.lqB_a": Q[:2], "a.lqBs_a": S[:2]}


@pytest.mark.parametrize(
    ("w", "how", "message"),
    [
        ({"a.q": None}, "gptq (int6)", "a.q in w is missing"),
        ({"a.scale": S * float("nan")}, "gptq (int6)", "a.scale in w is not finite"),
        ({"a.scale": S[:2]}, "gptq (int6)", r"a.scale in w has shape \[2\]"),
        ({"a.q": Q.float()}, "gptq (int6)", "a.q in w is torch.float32"),
        ({"b": S}, "gptq (int6)", "b in w is not described in m"),
        ({}, "ternary", "a in w is 'ternary' by m, which is not supported"),
        ({}, "gptq (int6)+magic", "not supported"),
        ({}, {"type": "int6"}, "a in m is a dict, expected a text"),
        ({}, "passthrough (float16)", "a in w is missing or no tensor"),
        ({}, "gate_int8_row", "a.gq in w is missing"),
        (LQ | {"a.lqA": Q[:3, :2]}, "gptq (int6)+lqer", r"a.lqA in w is \[3, 2\] and B is \[2, 8\]"),
        (LQ_A | {"a.lqBs_a": S[:3]}, "gptq (int6)+lqer_asym", "a.lqBs_a in w has 3 scales for 16 values"),
        (LQ_A | {"a.lqBs_a": S[:0]}, "gptq (int6)+lqer_asym", "a.lqBs_a in w has 0 scales"),
    ],
)
def test_a_damaged_int6_file_is_named(tmp_path, w, how, message):
    parts = {n: t for n, t in {"a.q": Q, "a.scale": S, **w}.items() if t is not None}
    (tmp_path / "m.int6.ptz").write_bytes(brotli.compress(torch_bytes({"w": parts, "m": {"a": how}}), quality=1))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "m.int6.ptz")
    assert "\n" not in str(caught.value)


FLOATS = np.ones((2, 3), "<f4").tobytes()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x93NUMPX", "damaged header"),
        (b"\x93NUMPY\x03\x00\x01\x00\x00\x00\n", "damaged header"),
        (npy("<f4", (2, 3), FLOATS)[:9], "damaged header"),
        (npy("<f4", (10**12,), FLOATS), "24 bytes, which do not fit its shape"),
        (npy("<f4", (-2, -3), FLOATS), "do not fit its shape"),
        (npy("|O", (3,), FLOATS), r"type \|O, which is not supported"),
        (npy("<c8", (3,), FLOATS), "type <c8, which is not supported"),
        (npy(">f4", (2, 3), FLOATS), "type >f4, which is not supported"),
        (npy("<V4", (2, 3), FLOATS), r"type \|V4, which is not supported"),
        (npy("<f4", (2, 3), np.full((2, 3), np.nan, "<f4").tobytes()), "6 values that are not finite"),
    ],
)
def test_a_damaged_npz_is_named(tmp_path, raw, message):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a.npy", raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "m.npz")
    assert "m.npz" in str(caught.value) and "\n" not in str(caught.value)
