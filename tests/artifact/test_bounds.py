"""Time and memory of decoding follow from the length of the file: docs/format.md, "Bounds", in all readers."""

import hashlib
import json
import shutil
import subprocess
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from quantlab.artifact.container import (
    CODES_FLOOR,
    DIGEST_BYTES,
    EXPANSION,
    HEADER,
    SECTION,
    TABLES_EXPANSION,
    Section,
    check_codes,
    read_container,
    write_container,
)
from quantlab.artifact.decode import decode_artifact, parse_artifact
from quantlab.artifact.emit import emit_decoder
from quantlab.artifact.manifest import TrellisTensor
from quantlab.artifact.writer import TrellisPayload, encode_artifact, passthrough_payload
from quantlab.coding.codecs import CODECS, DEFLATE, RANS
from quantlab.coding.rans import lanes_for
from quantlab.errors import ExpansionError, FormatError
from quantlab.models.challenge import stored_config

READER = Path(__file__).resolve().parents[2] / "docs" / "recipes" / "qlab.mjs"


def trellis(rows: int, columns: int, name: str = "w", level: int = -300) -> TrellisPayload:
    """A matrix of zeros, which take nearly no bits."""
    key = {"level": level, "states": 8, "paths": "blocks", "classes": 0, "tables": 0}
    entry = TrellisTensor(name=name, shape=(rows, columns), bits=8, **key)
    sides = [np.zeros(n, np.int8) for n in (rows, columns)]
    return TrellisPayload(entry, *sides, *sides, np.zeros((rows, columns), np.int16))


def sealed(manifest: dict, sections: list[Section], *, text: bytes = b"") -> bytes:
    """A file with fitting checksums, whatever its sections claim; `text` instead of the manifest's own."""
    text = text or json.dumps(manifest, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    packed = CODECS[DEFLATE].encode(text)
    table = b"".join(SECTION.pack(s.codec, len(s.stored), s.raw_bytes, zlib.crc32(s.stored)) for s in sections)
    body = table + packed + b"".join(s.stored for s in sections)
    size = HEADER.size + len(body) + DIGEST_BYTES
    magic, version, *_ = HEADER.unpack_from(write_container({}, []))
    data = HEADER.pack(magic, version, len(sections), len(packed), len(text), size) + body
    return data + hashlib.sha256(data).digest()[:DIGEST_BYTES]


def many_codes(rows: int, columns: int) -> bytes:
    """A file whose one matrix has these rows and columns and whose stream is that of a few zeros."""
    manifest, sections = read_container(encode_artifact([trellis(32, 32)]).data)
    manifest["tensors"][0]["shape"] = [rows, columns]
    for number in (1, 3):
        sections[number] = Section(DEFLATE, rows + columns, CODECS[DEFLATE].encode(bytes(rows + columns)))
    return sealed(manifest, sections)


def long_rans_section() -> bytes:
    """Side information under rans-0 that claims 4 MB of nothing in 70 bytes."""
    manifest, sections = read_container(encode_artifact([passthrough_payload("gain", torch.ones(4))]).data)
    manifest["tensors"][0] |= {"shape": [2**22], "dtype": "uint8"}
    sections[2] = Section(RANS, 2**22, bytes([0, 0, 0x10]) + bytes(5) + b"\0\0\1\0" * 16)
    return sealed(manifest, sections)


def many_table_sets() -> bytes:
    manifest, sections = read_container(encode_artifact([trellis(4, 4)]).data)
    raw = bytes([255]) + bytes(3 * 28 * 255)
    sections[4] = Section(DEFLATE, len(raw), CODECS[DEFLATE].encode(raw))
    return sealed(manifest, sections)


def repeated_value() -> bytes:
    """A tensor of 2^33 bytes of which the section has one."""
    manifest, sections = read_container(encode_artifact([passthrough_payload("gain", torch.ones(4))]).data)
    manifest["tensors"][0] |= {"shape": [2**33], "dtype": "uint8"}
    sections[2] = Section(0, 1, b"x")
    return sealed(manifest, sections)


def bombs() -> dict[str, bytes]:
    """Small files that ask for far more time or memory than their length justifies."""
    return {
        "codes": many_codes(4096, 4096),
        "rows": many_codes(2**21, 0),
        "columns": many_codes(0, 2**21),
        "rans": long_rans_section(),
        "sets": many_table_sets(),
        "repeated": repeated_value(),
    }


@pytest.fixture(scope="module")
def emitted():
    names: dict = {}
    exec(emit_decoder(), names)
    return names["load"]


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_in_no_time_and_memory(name: str, emitted, tmp_path: Path):
    data = bombs()[name]
    assert len(data) < 8192
    (tmp_path / "m.qlab").write_bytes(data)
    for read in (lambda: decode_artifact(*parse_artifact(data)), lambda: emitted(tmp_path / "m.qlab")):
        tracemalloc.start()
        started = time.process_time()
        with pytest.raises((FormatError, ValueError)) as caught:
            read()
        seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(caught.value, FormatError) or "more than" in str(caught.value)
        assert seconds < 1 and peak < 2**25, (name, seconds, peak)


def test_the_reader_in_javascript_refuses_the_same_bombs(tmp_path: Path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    shutil.copy(READER, tmp_path)
    for name, data in bombs().items():
        (tmp_path / f"{name}.qlab").write_bytes(data)
    zeros = b"\xff\xff\xff" + bytes(3)  # LZMA2: a chunk of 2 MB, whose input ends at once
    manifest, sections = read_container(encode_artifact([passthrough_payload("gain", torch.ones(4))]).data)
    sections[2] = Section(4, 8, zeros * 500)
    (tmp_path / "lzma.qlab").write_bytes(sealed(manifest, sections))
    (tmp_path / "deflate.qlab").write_bytes(sealed({}, sections, text=b" " * 2**22 + b"{}"))
    (tmp_path / "run.mjs").write_text(
        'import { load } from "./qlab.mjs";\nimport { readFileSync, readdirSync } from "node:fs";\n'
        'for (const name of readdirSync(".").filter((name) => name.endsWith(".qlab")))\n'
        "  await load(new Uint8Array(readFileSync(name))).then(\n"
        '    () => console.log(name, "was read"), (error) => console.log(name, error.message));\n'
    )
    started = time.monotonic()
    done = subprocess.run([node, "--max-old-space-size=256", "run.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and len(lines := done.stdout.splitlines()) == len(bombs()) + 2, done.stderr
    assert not any("was read" in line for line in lines), lines
    assert time.monotonic() - started < 60


def test_a_writer_refuses_what_readers_refuse_and_says_the_least_size():
    with pytest.raises(ExpansionError, match="16777216 codes, a file of") as caught:
        encode_artifact([trellis(4096, 4096)])
    assert caught.value.least_bytes == (2**24 - CODES_FLOOR) // EXPANSION


def test_frequency_tables_are_bounded_by_the_file_too(monkeypatch: pytest.MonkeyPatch):
    data = encode_artifact([trellis(4, 4)]).data
    size = read_container(data)[1][4].raw_bytes
    monkeypatch.setattr("quantlab.artifact.container.TABLES_FLOOR", size - TABLES_EXPANSION * len(data))
    assert parse_artifact(data)
    monkeypatch.setattr("quantlab.artifact.container.TABLES_FLOOR", size - TABLES_EXPANSION * len(data) - 1)
    for refuse in (lambda: parse_artifact(data), lambda: encode_artifact([trellis(4, 4)])):
        with pytest.raises(ExpansionError, match=f"frequency tables decode to {size} bytes"):
            refuse()


def test_short_rows_and_small_tensors_count_as_64_codes():
    check_codes([(2**14, 1)], 0)
    with pytest.raises(ExpansionError):
        check_codes([(2**14 + 1, 1)], 0)
    check_codes([(0, 0)] * 2**14, 0)
    with pytest.raises(ExpansionError):
        check_codes([(0, 0)] * (2**14 + 1), 0)
    check_codes([(0, 2**20)], 0)


def test_one_lane_has_at_most_a_million_symbols(monkeypatch: pytest.MonkeyPatch):
    data = encode_artifact([trellis(100, 100)]).data
    monkeypatch.setattr("quantlab.coding.rans.MAX_STEPS", 624)
    with pytest.raises(FormatError, match="16 lanes hold 10000 codes, at most 9984 are allowed"):
        decode_artifact(*parse_artifact(data))
    monkeypatch.setattr("quantlab.coding.rans.MAX_STEPS", 625)
    assert decode_artifact(*parse_artifact(data))["w"].shape == (100, 100)


def test_codes_of_a_short_stream_have_lanes_enough(monkeypatch: pytest.MonkeyPatch):
    """A model of more than 16.8 million weights, all of them zero, needs more than the 16 lanes of its few bytes."""
    assert [lanes_for(0, n * 2**20) for n in (0, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]
    assert lanes_for(0, 16 * 2**20 + 1) == 32
    with pytest.raises(ExpansionError):  # and not that lanes are too few
        encode_artifact([trellis(4100, 4100)])
    monkeypatch.setattr("quantlab.coding.rans.MAX_STEPS", 200)
    data = encode_artifact([trellis(100, 100)]).data
    assert parse_artifact(data)[0].lanes == 64
    assert decode_artifact(*parse_artifact(data))["w"].shape == (100, 100)


def test_the_largest_section_that_is_allowed_is_read(monkeypatch: pytest.MonkeyPatch):
    data = encode_artifact([passthrough_payload("mask", torch.zeros(2**16, dtype=torch.bool))]).data
    monkeypatch.setattr("quantlab.artifact.container.EXPANSION_FLOOR", 2**16 - EXPANSION * len(data))
    assert decode_artifact(*parse_artifact(data))["mask"].shape == (2**16,)
    monkeypatch.setattr("quantlab.artifact.container.EXPANSION_FLOOR", 2**16 - EXPANSION * len(data) - 1)
    with pytest.raises(
        ExpansionError, match=f"sections decode to {2**16} bytes, a file of {len(data)} bytes may hold {2**16 - 1}"
    ):
        parse_artifact(data)


def test_many_tensors_before_a_large_one_take_no_longer_than_before_a_small_one(emitted, tmp_path: Path):
    """Slices of the rest of a section, one a tensor, took minutes for 20,000 tensors."""
    count, seconds = 8000, {}
    manifest, sections = read_container(
        encode_artifact([passthrough_payload(f"t{n}", torch.ones(1)) for n in range(count)]).data
    )
    for tail in (1, 2**21):
        manifest["tensors"][-1] |= {"shape": [tail], "dtype": "uint8"}
        raw = sections[2].decode()[: 2 * count - 2] + bytes(tail)
        data = sealed(manifest, [*sections[:2], Section(DEFLATE, len(raw), CODECS[DEFLATE].encode(raw)), *sections[3:]])
        (tmp_path / "m.qlab").write_bytes(data)
        for read in (lambda data=data: decode_artifact(*parse_artifact(data)), lambda: emitted(tmp_path / "m.qlab")):
            started = time.process_time()
            assert len(read()) == count
            seconds.setdefault(tail, []).append(time.process_time() - started)
    for short, long in zip(*seconds.values(), strict=True):
        assert long < 3 * short + 0.3, seconds


def test_a_loop_of_millions_is_refused_before_it_is_made():
    manifest, _ = parse_artifact(encode_artifact([trellis(4, 4)], model={"num_loops": 50_000_000}).data)
    tracemalloc.start()
    with pytest.raises(FormatError, match="9 layers and 50000000 loops make 50000009 passes through blocks, at most 4096"):
        stored_config(manifest)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        b'{"producer":"a","producer":"b","tensors":[]}',
        b'{"tensors":[],"producer":"a"}',
        b'{"producer":"a", "tensors":[]}',
        b'{"producer":"\\u0061","tensors":[]}',
        b'{"model":{"a":1.50},"tensors":[]}',
        b'{"model":{"a":NaN},"tensors":[]}',
        b'{"model":{"a":1e999},"tensors":[]}',
        b'{"model":{"a":"\\ud800"},"tensors":[]}',
        b'\xef\xbb\xbf{"tensors":[]}',
        '{"tensors":[]}'.encode("utf-16"),
        b'{"model":{"a":' + b"1" * 5000 + b'},"tensors":[]}',
        b'{"model":{"a":' + b"[" * 60000 + b'},"tensors":[]}',
        b'{"tensors":[]}\n',
        b'{"lanes":0,"tensors":[]}',
        b'{"producer":"","tensors":[]}',
    ],
)
def test_only_one_text_may_stand_for_a_manifest(text: bytes):
    empty = read_container(encode_artifact([]).data)[1]
    assert parse_artifact(sealed({}, empty, text=b'{"producer":"a","tensors":[]}'))[0].producer == "a"
    with pytest.raises(FormatError, match=r"manifest .*(canonical|JSON)") as caught:
        parse_artifact(sealed({}, empty, text=text))
    assert "set_int_max_str_digits" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_are_neither_written_nor_read(dtype: torch.dtype, value: float):
    """A checkpoint with one is never packed, so a file that has one was not made by a writer."""
    with pytest.raises(FormatError, match="tensor 'gain': a value is not finite"):
        passthrough_payload("gain", torch.tensor([1, value], dtype=dtype))
    good = passthrough_payload("gain", torch.ones(1, dtype=dtype), exact=True)
    manifest, sections = read_container(encode_artifact([good]).data)
    bits = torch.tensor([value], dtype=dtype).view(torch.uint8).numpy().tobytes()
    sections[2] = Section(0, len(bits), bits)
    with pytest.raises(FormatError, match="tensor 'gain': a value is not finite"):
        decode_artifact(*parse_artifact(write_container(manifest, sections)))
