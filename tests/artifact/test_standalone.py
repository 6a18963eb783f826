"""The emitted decoder: small, alone, the same every time, and bit for bit what the library decodes."""

import ast
import os
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.artifact import standalone
from quantlab.artifact.container import Section, read_container, write_container
from quantlab.artifact.decode import decode_artifact, parse_artifact
from quantlab.artifact.emit import emit_decoder, minify
from quantlab.artifact.manifest import GridTensor, TrellisTensor
from quantlab.artifact.shaped_grid import _SIGNIFICANDS, context_of
from quantlab.artifact.writer import GridPayload, TrellisPayload, encode_artifact, passthrough_payload
from quantlab.coding import frequency_tables as tables
from quantlab.coding.codecs import CODECS, SELF_CONTAINED
from quantlab.coding.contexts import classes_of
from quantlab.coding.symbols import from_symbols
from quantlab.format_rules import MAX_CLASS, PATHS, shifts_of

STREAM = 5  # the section that no byte codec may touch


def trellis_payload(name, shape, states, rng, *, classes=16, spread=4, tables=0, level=-470, largest=100):
    """Random codes on a path: weights as large as their classes say, and a few that no table holds."""
    rows, columns, a, b = (rng.integers(-spread, spread + 1, n).astype(np.int8) for n in (*shape, *shape))
    key = {"level": level, "states": states, "paths": str(rng.choice(PATHS)), "classes": classes, "tables": tables}
    entry = TrellisTensor(name=name, shape=shape, bits=16, **key)
    class_OI = classes_of(context_of(entry, a, b, rows, columns))
    size = 2.0 ** ((class_OI.astype(float) - 14) / 4) * np.where(rng.random(shape) < 0.01, largest, 1)
    symbols = np.rint(rng.standard_normal(shape) * size).clip(-16000, 16000).astype(np.int16)
    return TrellisPayload(entry, a, b, rows, columns, from_symbols(symbols, class_OI, states, entry.paths))


def raw_payloads():
    """Return payloads of every unquantized dtype, and of none, one and many elements."""
    values = torch.linspace(-3, 3, 21).reshape(3, 7)
    floats = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    integers = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
    return [
        *(passthrough_payload(f"float {dtype}", (values * 1.1).to(dtype), exact=True) for dtype in floats),
        *(passthrough_payload(f"integer {dtype}", (values * 40).abs().to(dtype)) for dtype in integers),
        passthrough_payload("negative", torch.tensor([[-(2**40)], [-1]])),
        passthrough_payload("bool", values > 0.5),
        passthrough_payload("scalar", torch.tensor(0.5)),
        passthrough_payload("empty", torch.zeros(0, 3)),
        passthrough_payload("empty brain", torch.zeros(2, 0, dtype=torch.bfloat16)),
        passthrough_payload("wide", torch.tensor([1e-30, -1e30, 3e38]), exact=True),
    ]


def artifacts():
    """Files that between them meet every branch of the decoder."""
    rng = np.random.default_rng(0)
    unquantized = raw_payloads()
    mixed = [trellis_payload(f"states {s}", (37, 73), s, rng, tables=k % 2) for k, s in enumerate((1, 4, 8, 16, 32))]
    low = [trellis_payload(f"low {s}", (40, 31), s, rng, classes=3) for s in (1, 8)]
    tiny = [trellis_payload(f"tiny {s}", (12, 33), s, rng, spread=60, level=-7100) for s in (1, 8)]  # steps of few digits
    high = [trellis_payload(f"high {s}", (19, 70), s, rng, classes=60, spread=9, largest=1) for s in (1, 32)]
    small = [trellis_payload(f"small {shape}", shape, 8, rng) for shape in ((1, 1), (9, 5), (1, 40), (40, 1), (0, 4), (4, 0))]
    large = [trellis_payload(f"large {s}", (900, 700), s, rng, spread=1) for s in (8, 1)]
    many = [trellis_payload(f"states {s}", (70, 75), s, rng) for s in (64, 256)]
    stack = [trellis_payload(f"stack.{k}", (40, 31), 8, rng) for k in (0, 2)]
    kept = passthrough_payload("stack.1", torch.linspace(-1, 1, 40 * 31).reshape(40, 31))
    kernel = trellis_payload("kernel", (16, 30), 4, rng)
    whole = {"shapes": {"stack": [2, 2, 40, 31], "kernel": [16, 10, 3]}, "aliases": {"stack.3": "stack.0", "tied": "last"}}
    return {
        "whole": encode_artifact([kernel, *stack, kept, passthrough_payload("last", torch.ones(3))], **whole).data,
        "mixed": encode_artifact([*mixed, *unquantized], origin={"seed": 0}).data,
        "interleaved": encode_artifact([unquantized[0], *low, unquantized[1], *high, *small, *unquantized[2:]]).data,
        "large": encode_artifact([*large, passthrough_payload("gain", torch.ones(900))]).data,
        "many": encode_artifact([*many, *tiny]).data,
        "raw": encode_artifact(unquantized).data,
        "with a tokenizer": encode_artifact([*low, *unquantized], files={"tokenizer.json": b"{}" * 99}).data,
    }


@pytest.fixture(scope="module")
def files():
    return artifacts()


@pytest.fixture(scope="module")
def emitted():
    """`load` of the emitted file."""
    names = {}
    exec(emit_decoder(), names)
    return names["load"]


def assert_same_tensors(got, data):
    """Names in order, dtypes, shapes and bits are those of the library's reader."""
    expected = decode_artifact(*parse_artifact(data))
    assert list(got) == list(expected)
    for name, array in expected.items():
        wanted = torch.tensor(array)
        assert (got[name].dtype, got[name].shape) == (wanted.dtype, wanted.shape), name
        assert got[name].is_contiguous() and got[name].numpy().tobytes() == wanted.numpy().tobytes(), name


def test_the_files_hold_what_they_are_for(files):
    """Escapes, raw bits, low and high scale classes, more lanes than columns, and several codecs."""
    manifest, sections = parse_artifact(files["interleaved"])
    assert int.from_bytes(sections[STREAM].stored[:4], "little") > 0 < int.from_bytes(sections[STREAM].stored[4:8], "little")
    assert manifest.lanes > min(t.shape[1] for t in manifest.tensors if t.kind == "trellis_grid" and t.shape[1])
    assert parse_artifact(files["large"])[0].lanes >= 64
    rng = np.random.default_rng(0)
    high = trellis_payload("w", (19, 70), 32, rng, classes=60, spread=9, largest=1)
    class_OI = classes_of(context_of(high.entry, high.a_O, high.b_I, high.rows_O, high.columns_I))
    assert shifts_of(class_OI).max() == 14 and class_OI.max() == MAX_CLASS
    assert {s.codec for data in files.values() for s in parse_artifact(data)[1]} >= {0, 1, 4}


def test_a_lone_process_without_quantlab_gives_the_same_tensors(files, tmp_path):
    decoder = tmp_path / "decoder.py"
    decoder.write_bytes(emit_decoder())
    assert decoder.stat().st_size < 4000
    decoder.read_text("ascii")
    for name, data in files.items():
        (tmp_path / f"{name}.qlab").write_bytes(data)
    program = (
        "import sys\n"
        "folder, *paths = sys.argv[1:]\n"
        "sys.path[:0] = [folder, *paths]\n"
        "sys.modules['quantlab'] = None\n"  # importing it fails
        "import torch, pathlib, decoder\n"
        "files = pathlib.Path(folder).glob('*.qlab')\n"
        "torch.save({file.stem: decoder.load(file) for file in files}, folder + '/all.pt')\n"
        "loaded = {name.partition('.')[0] for name, module in sys.modules.items() if module}\n"
        "assert not loaded & {'quantlab', 'numba', 'brotli', 'zstandard', 'safetensors'}, loaded\n"
    )
    places = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    command = [sys.executable, "-I", "-S", "-c", program, str(tmp_path), *places]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tensors = torch.load(tmp_path / "all.pt", weights_only=True)
    assert tensors.keys() == files.keys()
    for name, data in files.items():
        assert_same_tensors(tensors[name], data)


def test_the_readable_module_does_the_same(files, tmp_path):
    for data in files.values():
        (tmp_path / "m.qlab").write_bytes(data)
        assert_same_tensors(standalone.load(tmp_path / "m.qlab"), data)


@pytest.mark.parametrize("codec", SELF_CONTAINED)
def test_every_codec_of_a_self_contained_file_is_read(codec, files, emitted, tmp_path):
    for data in files.values():
        manifest, sections = read_container(data)
        for at, section in enumerate(sections[:STREAM]):
            raw = section.decode()
            sections[at] = Section(codec, len(raw), CODECS[codec].encode(raw))
        recoded = write_container(manifest, sections)
        (tmp_path / "m.qlab").write_bytes(recoded)
        assert_same_tensors(emitted(str(tmp_path / "m.qlab")), data)


@given(
    values=st.binary(max_size=40) | st.integers(0, 255).map(lambda v: bytes([v]) * 20),
    repeats=st.sampled_from([1, 3, 130, 700]),
    spread=st.sampled_from([0, 0.7, 5]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_any_rans_bytes_are_read(values, repeats, spread, seed):
    rng = np.random.default_rng(seed)
    noise = np.rint(rng.laplace(size=len(values) * repeats) * spread).astype(np.int64)
    raw = ((np.frombuffer(values * repeats, np.uint8) + noise) & 255).astype(np.uint8).tobytes()
    assert standalone._unpacked(5, CODECS[5].encode(raw), len(raw)) == raw


@given(
    shapes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), min_size=1, max_size=4),
    states=st.sampled_from([1, 4, 8, 16, 32, 64, 256]),
    classes=st.integers(-100, 100),
    spread=st.sampled_from([0, 3, 30]),
    level=st.integers(-3000, 3000),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_any_trellis_tensors_are_read(tmp_path_factory, shapes, states, classes, spread, level, seed):
    rng = np.random.default_rng(seed)
    made = [
        trellis_payload(f"w{k}", shape, states, rng, classes=classes, spread=spread, level=level, tables=k % 3)
        for k, shape in enumerate(shapes)
    ]
    data = encode_artifact(made).data
    path = tmp_path_factory.getbasetemp() / "any.qlab"
    path.write_bytes(data)
    assert_same_tensors(standalone.load(path), data)


def test_every_changed_byte_and_every_cut_raises_one_line(emitted, tmp_path):
    rng = np.random.default_rng(0)
    data = encode_artifact([trellis_payload("w", (5, 4), 8, rng), passthrough_payload("gain", torch.ones(5))]).data
    path = tmp_path / "m.qlab"
    for at in range(len(data)):
        for damaged in (data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :], data[:at]):
            path.write_bytes(damaged)
            with pytest.raises(ValueError) as caught:
                emitted(path)
            assert str(caught.value) == f"{path}: damaged, or not a trellis artifact of version 1"


def test_files_with_row_grids_are_refused(emitted, tmp_path):
    entry = GridTensor(name="w", shape=(2, 2), bits=6, exponent=0)
    grid = GridPayload(entry, np.ones(2, np.float16), Section(0, 4, bytes(4)))
    (tmp_path / "m.qlab").write_bytes(encode_artifact([grid]).data)
    with pytest.raises(ValueError, match="not a trellis artifact"):
        emitted(tmp_path / "m.qlab")


def test_rounded_powers_are_the_tables_of_the_library_and_never_near_a_half():
    steps = [2 ** (m / 64 + 23) for m in range(64)]
    assert [round(value) for value in steps] == _SIGNIFICANDS.tolist()
    weights = [2 ** (40 - m / 8) for m in range(8)]
    assert tuple(round(value) for value in weights) == tables._SIGNIFICANDS
    # ten thousand times what the last bit of a float64 power is worth
    assert min(abs(value % 1 - 0.5) for value in steps + weights) > 1e4 * 2**-29 and max(steps) < 2**24
    assert min(abs(value % 1 - 0.5) for value in weights) > 10 * 2**-12


def test_the_emitted_bytes_do_not_depend_on_the_process():
    program = "import sys\nfrom quantlab.artifact.emit import emit_decoder\nsys.stdout.buffer.write(emit_decoder())"
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
        assert done.stdout == emit_decoder()


SOURCE = '''"""About the module."""
import math
from typing import Any
import numpy as np
Unused = Any
_SCALE: int = 3
def load(path: str, names: "list[str]" = ()) -> Any:
    """What it does."""
    total: float = _helper(path, 2)  # why
    return [name * _SCALE for name in names], -total if not total in (1, 2) else np.int64(total), math.pi, 'a  b'
def _helper(math_of: str, names: int) -> float:
    while (left := len(math_of) - names) > 3:
        math_of = math_of[1:]
    return names ** - left if names is not None else 0
def _never():
    return load
'''


def test_minified_source_is_short_and_does_the_same():
    short = minify(SOURCE)
    results = []
    for source in (SOURCE, short):
        names = {}
        exec(source, names)
        results.append([names["load"]("a" * n, names=["x", "yy"]) for n in range(9)])
    assert results[0] == results[1]
    assert len(short) < 0.6 * len(SOURCE)
    for gone in ("About", "What", "why", "_helper", "typing", "Unused", "_never", "total", "left", "float"):
        assert gone not in short
    functions = [statement for statement in ast.parse(short).body if isinstance(statement, ast.FunctionDef)]
    assert [a.arg for f in functions if f.name == "load" for a in f.args.args] == ["path", "names"]


@pytest.mark.parametrize(
    "body",
    [
        "return _two(x=path)",
        "return f'{path}'",
        "return lambda x: path",
        "global path",
        "try:\n  return 1\n finally:\n  pass",
        "class A:\n  x = 1",
        "def inner():\n  return 1",
    ],
)
def test_source_beyond_the_minifier_is_refused(body):
    with pytest.raises(ValueError, match="line "):
        minify(f"def load(path):\n {body}\n return _two(1)\ndef _two(x):\n return x\n")


def test_statements_of_the_module_beyond_the_minifier_are_refused():
    with pytest.raises(ValueError, match="Expr outside functions is not handled"):
        minify("def load(path):\n return 1\nprint(3)\n")
