"""Statistics in several passes are those of one, to the last bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantlab.calib.collect import collect
from quantlab.calib.passes import SUM_BYTES, collect_in_passes, groups_of, sum_entries
from quantlab.calib.statistics import write_statistics
from quantlab.errors import StatisticsError

V, D, E = 24, 8, 3
IDS = torch.randint(V, (6, 10), generator=torch.Generator().manual_seed(0))


class Experts(nn.Module):
    """A tied embedding, two layers of experts of which the last is never used in the second, and products of a stack."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
        self.head.weight = self.emb.weight
        self.up = nn.Parameter(torch.randn(2, E, D, D) / 2)
        self.mix = nn.ModuleList([nn.Linear(D, D) for _ in range(2)])

    def forward(self, ids):
        x = self.emb(ids)
        for layer, (mix, up) in enumerate(zip(self.mix, self.up, strict=True)):
            routes = ids % (E - layer)
            for expert in range(E - layer):
                at = routes == expert
                x = x.masked_scatter(at[..., None], x[at] + torch.tanh(F.linear(x[at], up[expert])))
            x = x + torch.tanh(mix(x))
        return self.head(x)


SHAPES = {"emb.weight": (V, D), "mix.0.weight": (D, D), "mix.1.weight": (D, D)} | {f"up.{k}": (D, D) for k in range(2 * E)}
ABOUT = {"model_fingerprint": "f", "source": {"kind": "test"}}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("matrices", [1, 3])
def test_several_passes_give_the_file_of_one(plain, matrices, tmp_path):
    model, seen = Experts(), []
    most = matrices * SUM_BYTES * sum_entries((D, D), plain=plain)
    groups = groups_of(model, SHAPES, plain=plain, most_bytes=most)
    in_order = [*(f"up.{k}" for k in range(2 * E)), "emb.weight", "mix.0.weight", "mix.1.weight"]  # as parameters stand
    assert len(groups) > 2 and [name for group in groups for name in group] == in_order
    write_statistics(tmp_path / "one", collect(model, IDS, SHAPES, plain=plain, **ABOUT))
    stats = collect_in_passes(
        model, IDS, SHAPES, groups, plain=plain, scratch=tmp_path, progress=lambda *at: seen.append(at), **ABOUT
    )
    write_statistics(tmp_path / "several", stats)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "several").read_bytes()
    assert stats.priors == ("up.5",)
    total = len(groups) * len(IDS)
    assert seen[-1] == (total, total) and {at[1] for at in seen} == {total} and seen == sorted(seen)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "several"]


def test_groups_keep_within_the_bytes_and_divide_no_matrix():
    model = Experts()
    sizes = {name: SUM_BYTES * sum_entries(shape, plain=False) for name, shape in SHAPES.items()}
    for most in (1, sizes["up.0"], 2 * sizes["up.0"], sum(sizes.values())):
        groups = groups_of(model, SHAPES, plain=False, most_bytes=most)
        assert {name: shape for group in groups for name, shape in group.items()} == SHAPES
        assert all(group and (len(group) == 1 or sum(map(sizes.__getitem__, group)) <= most) for group in groups)
    assert len(groups) == 1


def test_what_cannot_be_measured_is_named_in_passes_too(tmp_path):
    shapes = {"mix.0.weight": (D, D), "up.5": (D, D)}
    groups = [{name: shape} for name, shape in shapes.items()]
    with pytest.raises(StatisticsError, match=r"tensor up\.5 has no calibration statistics"):
        collect_in_passes(Experts(), IDS, shapes, groups, scratch=tmp_path, **ABOUT)
    assert not list(tmp_path.iterdir())
