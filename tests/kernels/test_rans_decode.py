"""The range coder's kernels give the integers of the numpy reader, and find the same damage."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "coding"))
from coder_samples import RANGES, equal, random_codes, set_of

from quantlab.coding import rans, rans_device, rans_numba
from quantlab.coding.frequency_tables import ClassTable, fit_tables
from quantlab.coding.lanes import read_symbols
from quantlab.errors import FormatError, ShapeError
from quantlab.format_rules import STATES, lane_groups_of
from quantlab.kernels import launch, rans_decode, trellis_codes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_stale_output(monkeypatch):
    """New memory holds a number that no symbol or code here is: a missed cell shows."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(101))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(101))


@pytest.fixture(params=["kernel", "reference"])
def decoder(request, monkeypatch):
    """rans_device.decode by the kernels in Triton's interpreter, or by their references."""
    if request.param == "kernel":
        for module in (rans_decode, trellis_codes):
            monkeypatch.setattr(module, "on_kernel", lambda *_: True)
    return lambda *arguments: rans_device.decode(*arguments, CPU)


def sample(seed, shapes, lanes, states=None, kinds=None):
    rng = np.random.default_rng(seed)
    states, kinds = states or rng.choice(STATES, len(shapes)), kinds or rng.choice(sorted(RANGES), len(shapes))
    made = [
        random_codes(rng, shape, int(one), str(kind), tables=int(rng.integers(2)))
        for shape, one, kind in zip(shapes, states, kinds, strict=True)
    ]
    codes, contexts = [code for code, _ in made], [context for _, context in made]
    counts = np.zeros((28, 256), np.int64) + sum(rans_numba.histogram(*pair) for pair in made)
    sets = [fit_tables(counts), set_of(ClassTable(0, b"\x03\x00"))]
    return codes, contexts, sets, rans_numba.encode(codes, contexts, sets, lanes)


@pytest.mark.parametrize("lanes", [16, 32, 96])
@pytest.mark.parametrize("seed", range(2))
def test_the_kernels_decode_the_codes_of_the_numpy_reader(decoder, seed, lanes):
    """Matrices of odd sizes, empty ones, all numbers of states, escapes and raw bits."""
    shapes = [(1, 1), (7, 63), (0, 5), (33, 3), (5, 0), (3, 130)]
    codes, contexts, sets, stream = sample(seed, shapes, lanes)
    assert equal(rans.decode(stream, contexts, sets, lanes), codes)
    got = decoder(stream, contexts, sets, lanes)
    assert all(tensor.dtype == torch.int16 for tensor in got)
    assert equal([tensor.numpy() for tensor in got], codes)


@pytest.mark.parametrize("states", STATES)
def test_paths_of_every_trellis(decoder, states):
    codes, contexts, sets, stream = sample(states, [(12, 140), (70, 10)], 32, [states] * 2, ["mixed", "high"])
    assert equal([tensor.numpy() for tensor in decoder(stream, contexts, sets, 32)], codes)


def test_an_empty_stream_has_no_codes(decoder):
    stream = rans.encode([], [], [], 16)
    assert decoder(stream, [], [], 16) == []


def test_damage_is_named(decoder):
    _, contexts, sets, stream = sample(1, [(9, 70)], 32, [8], ["path"])
    with pytest.raises(FormatError, match="lane groups end after"):
        decoder(stream[:-2], contexts, sets, 32)
    with pytest.raises(FormatError, match="lane groups end after"):
        decoder(stream + bytes(2), contexts, sets, 32)
    with pytest.raises(FormatError, match="cannot hold"):
        decoder(b"\xff" * 4 + stream[4:], contexts, sets, 32)


def outcome(decode, *arguments):
    try:
        return [np.asarray(code) for code in decode(*arguments)]
    except FormatError:
        return None


@given(at=st.integers(0, 10**6), change=st.integers(1, 255))
@settings(max_examples=15, deadline=None)
def test_altered_streams_have_the_outcome_of_the_numpy_reader(at, change):
    """Only the reference implementation runs here: the kernel equals it by the tests above."""
    _, contexts, sets, stream = sample(2, [(9, 40), (5, 30)], 32, [8, 1], ["mixed", "high"])
    at %= len(stream)
    altered = stream[:at] + bytes([stream[at] ^ change]) + stream[at + 1 :]
    slow = outcome(rans.decode, altered, contexts, sets, 32)
    fast = outcome(rans_device.decode, altered, contexts, sets, 32, CPU)
    assert (slow is None and fast is None) or equal(slow, fast)


@given(
    count=st.integers(0, 200), lanes=st.sampled_from([1, 5, 32, 64, 96]), n_words=st.integers(0, 60), seed=st.integers(0, 2**32)
)
@example(count=0, lanes=64, n_words=0, seed=0)
@settings(max_examples=12, deadline=None)
def test_any_states_and_words_are_read_alike(count, lanes, n_words, seed):
    """Kernel, reference and numpy on random states and words, also where lane groups run beyond all words."""
    rng = np.random.default_rng(seed)
    tables = set_of(ClassTable(-3, bytes([60, 24, 20, 12, 9, 14, 30, 40])))
    table = rng.integers(0, 28, count).astype(np.uint16)
    states = rng.integers(2**16, 2**32, lanes)
    words = np.append(rng.integers(0, 2**16, n_words), 0).astype(np.uint16)
    used = rng.integers(0, n_words + 1, lane_groups_of(lanes))
    tensors = [
        torch.from_numpy(a.copy())
        for a in (table.view(np.int16), rans_device._short_entries(tables), words.view(np.int16), used, states)
    ]
    symbols = read_symbols(table, tables.entries, words, used, states)
    for read in (rans_decode.rans_decode_ref, rans_decode.rans_decode_triton, rans_decode.rans_decode):
        got = read(*tensors)
        assert [t.tolist() for t in got] == [symbols.tolist(), used.tolist(), states.tolist()]


def test_wrong_arguments_are_named():
    z = torch.zeros
    with pytest.raises(ShapeError, match="must be .*int16"):
        rans_decode.rans_decode(z(3), z(4096), z(1), z(1), z(32))
    good = [z(3, dtype=torch.int16), z(4096, dtype=torch.int32), z(1, dtype=torch.int16), z(2, dtype=torch.int64)]
    with pytest.raises(ShapeError, match="32 lanes, 2 lane groups, 4096 entries"):
        rans_decode.rans_decode(*good, z(32, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"int16 \[O, I\]"):
        trellis_codes.trellis_codes(good[0][:, None], good[0], good[0], 5, 2, "blocks")
    with pytest.raises(ShapeError, match="paths must be blocks or columns, got 'rows'"):
        trellis_codes.trellis_codes(good[0][:, None], good[0], good[0][:1], 5, 2, "rows")


def test_reference_implementations_run_where_no_gpu_is():
    assert not launch.on_kernel(torch.zeros(1))
