"""The file of statistics: read on demand, and every damage is one line."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantlab.calib.fisher import Use
from quantlab.calib.statistics import Statistics, UsesOnDemand, read_statistics, write_statistics
from quantlab.errors import StatisticsError


def spd(size: int) -> Tensor:
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(size))
    H = x.T @ x
    return H.triu() + H.triu(1).T


def statistics(**changes) -> Statistics:
    parts = {
        "products": {"a": Use(spd(3), torch.ones(2))},
        "lookups": {"b": Use(torch.ones(4), torch.ones(5))},
        "fishers": {"a": Use(spd(3), spd(2)), "b": Use(spd(4), torch.ones(5))},
        "ids_NT": torch.arange(6, dtype=torch.int32).view(2, 3),
        "model_fingerprint": "f",
        "row_agreement": {"a": 0.5},
        "source": {"kind": "test"},
    }
    return Statistics(**{**parts, **changes})


def test_matrices_are_read_when_they_are_asked_for_and_not_kept(tmp_path):
    stats = statistics()
    write_statistics(tmp_path / "s", stats)
    back = read_statistics(tmp_path / "s")
    (tmp_path / "s").unlink()  # it stays open
    for kind in ("products", "lookups", "fishers"):
        read, known = getattr(back, kind), getattr(stats, kind)
        assert list(read) == list(known) and len(read) == len(known)
        for name, use in known.items():
            assert torch.equal(read[name].H_II, use.H_II) and torch.equal(read[name].g_O, use.g_O)
            assert read[name] is not read[name] and name in read and "c" not in read
    with pytest.raises(KeyError):
        back.fishers["c"]
    assert back.row_agreement == {"a": 0.5} and back.source == {"kind": "test"} and back.matrices == 2
    assert back.is_plain is stats.is_plain
    back.check({"a": (2, 3), "b": (5, 4)})


def test_of_large_matrices_the_file_has_upper_triangles(tmp_path):
    write_statistics(tmp_path / "s", statistics())
    tensors = load_file(tmp_path / "s")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert shapes["fisher.H.a"] == [6] and shapes["fisher.g.a"] == [3] and shapes["fisher.g.b"] == [5]
    assert shapes["lookup.H.b"] == [4] and shapes["product.g.a"] == [2] and shapes["ids"] == [2, 3]
    assert tensors["fisher.H.a"].tolist() == [spd(3)[i, j].item() for i in range(3) for j in range(i, 3)]


def test_a_side_of_one_is_a_matrix_where_the_others_are(tmp_path):
    use = Use(spd(1), torch.ones(2))
    write_statistics(tmp_path / "s", statistics(products={"a": use}, fishers={"a": use}, lookups={}))
    back = read_statistics(tmp_path / "s")
    assert back.products["a"].H_II.shape == back.fishers["a"].H_II.shape == (1, 1)


def test_uses_on_demand_are_computed_at_each_request():
    asked = []
    uses = UsesOnDemand(["a"], lambda name: asked.append(name) or Use(torch.ones(1), torch.ones(1)))
    assert "a" in uses and list(uses.keys()) == ["a"] and not asked
    assert uses["a"] is not uses["a"] and asked == ["a", "a"]


def damages() -> Iterator[tuple[str, object, str]]:
    yield "fisher.H.a", torch.zeros(5), r"fisher\.H\.a is F32 \[5\], not F32 \[6\]"
    yield "fisher.g.a", torch.zeros(4), r"fisher\.g\.a is F32 \[4\], not F32 \[2 or 3\]"
    yield "lookup.H.b", torch.zeros(4, 1), r"lookup\.H\.b is F32 \[4, 1\], not F32 \[4\]"
    yield "product.g.a", torch.zeros(2).half(), r"product\.g\.a is F16 \[2\], not F32 \[2\]"
    yield "fisher.H.c", torch.zeros(6), r"hold an unknown tensor fisher\.H\.c"
    yield "other", torch.zeros(6), "hold an unknown tensor other"
    yield "fisher.g.a", None, r"have fisher\.H\.a but no fisher\.g\.a"
    yield "ids", torch.zeros(3).int(), r"ids are I32 \[3\], not I32 \[N, T\]"
    yield "ids", None, "ids are absent"


@pytest.mark.parametrize(("key", "tensor", "message"), [*damages()])
def test_tensors_that_do_not_fit_are_refused(tmp_path, key, tensor, message):
    path = tmp_path / "s"
    write_statistics(path, statistics())
    about, tensors = json.loads(header(path)), load_file(path)
    tensors.pop(key, None)
    if tensor is not None:
        tensors[key] = tensor
    save_file(tensors, path, about["__metadata__"])
    with pytest.raises(StatisticsError, match=message):
        read_statistics(path)


def header(path) -> bytes:
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "is not a statistics file of version 4"),
        ({"shapes": {"a": [2]}}, "are damaged: ValueError"),
        ({"shapes": 1}, "are damaged: AttributeError"),
        ({"source": None}, "are damaged: TypeError"),
    ],
)
def test_headers_that_do_not_fit_are_refused(tmp_path, change, message):
    path = tmp_path / "s"
    write_statistics(path, statistics())
    about = json.loads(json.loads(header(path))["__metadata__"]["quantlab_statistics"])
    save_file(load_file(path), path, {"quantlab_statistics": json.dumps({**about, **change})})
    with pytest.raises(StatisticsError, match=message):
        read_statistics(path)


def test_values_that_are_not_finite_are_named_when_they_are_read(tmp_path):
    H = spd(3)
    H[1, 1] = float("nan")
    write_statistics(tmp_path / "s", statistics(products={"a": Use(H, torch.ones(2))}))
    back = read_statistics(tmp_path / "s")
    assert back.fishers["a"].g_O.shape == (2, 2)
    with pytest.raises(StatisticsError, match="tensor a: its Hessian is not finite"):
        back.products["a"]


def test_a_file_that_is_cut_off_while_it_is_open_is_one_line(tmp_path):
    path = tmp_path / "s"
    write_statistics(path, statistics())
    back = read_statistics(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 30)  # the sequences have 24 bytes, the last diagonal ends before them
    assert back.fishers["a"].H_II.shape == (3, 3)
    with pytest.raises(
        StatisticsError, match=r"cannot read statistics .*: it has become shorter, tensor fisher\.g\.b is cut off"
    ):
        back.fishers["b"]


def test_an_open_file_takes_no_address_space(tmp_path):
    """The limit of `ulimit -v` counts mappings: statistics that exceed it must be readable."""
    path = tmp_path / "s"
    write_statistics(path, statistics())
    back = read_statistics(path)
    assert back.fishers["a"].H_II.shape == (3, 3)
    assert sys.platform != "linux" or str(path) not in Path("/proc/self/maps").read_text()


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "s"
    write_statistics(path, statistics())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StatisticsError, match="cannot read statistics"):
        read_statistics(path)


def test_a_shape_beyond_all_numbers_is_refused(tmp_path):
    path = tmp_path / "s"
    write_statistics(path, statistics())
    text = json.loads(header(path))["__metadata__"]["quantlab_statistics"]
    save_file(
        load_file(path), path, {"quantlab_statistics": text.replace('"shapes": {"a": [2, 3]', '"shapes": {"a": [1e999, 3]')}
    )
    with pytest.raises(StatisticsError, match="are damaged: OverflowError"):
        read_statistics(path)
