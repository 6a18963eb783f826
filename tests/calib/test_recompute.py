"""Activations that are computed again: the same statistics to the last bit, with few activations in memory."""

import weakref

import pytest
import torch
from torch import nn

from quantlab.calib.collect import collect
from quantlab.calib.recompute import blocks_of, recomputed
from quantlab.calib.statistics import write_statistics

V, D, LAYERS = 20, 8, 4
IDS = torch.randint(V, (4, 6), generator=torch.Generator().manual_seed(0))
ABOUT = {"model_fingerprint": "f", "source": {"kind": "test"}}
NAMES = [f"blocks.{n}.{part}.weight" for n in range(LAYERS) for part in ("a", "b")]
SHAPES = dict.fromkeys(NAMES, (D, D)) | {"head.weight": (V, D), "emb.weight": (V, D)}
alive: list[weakref.ref] = []


class Block(nn.Module):
    """Takes and returns what blocks of real models do: tensors by place and by name, a tuple with None."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x, first, *, tables, scale=1.0):
        inner = torch.tanh(self.a(x) + tables[0]) * scale
        alive.append(weakref.ref(inner))
        return x + self.b(inner) + 0.1 * first, None  # `first` has no gradient unless the model lets it


class Model(nn.Module):
    def __init__(self, shares_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.shares_first = shares_first
        self.emb, self.head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.few = nn.ModuleList([nn.Linear(2, 2)])
        self.at_logits = -1

    def forward(self, ids):
        x = self.emb(ids)
        first = x if self.shares_first else x.detach()
        alive.clear()
        for block in self.blocks:
            x, _ = block(x, first, tables=(torch.ones(D), torch.zeros(D)))
        self.at_logits = sum(ref() is not None for ref in alive)
        return self.head(x)


@pytest.mark.parametrize(
    ("names", "kept"), [(list(SHAPES), LAYERS), (NAMES[4:6], 1), (["head.weight"], 0), ([*NAMES[:2], "head.weight"], 1)]
)
def test_statistics_are_those_of_activations_that_are_kept(names, kept, tmp_path):
    shapes, model = {name: SHAPES[name] for name in names}, Model()
    write_statistics(tmp_path / "kept", collect(model, IDS, shapes, **ABOUT))
    assert model.at_logits == kept
    write_statistics(tmp_path / "again", collect(model, IDS, shapes, recompute=True, **ABOUT))
    assert model.at_logits == 0
    assert (tmp_path / "kept").read_bytes() == (tmp_path / "again").read_bytes()


def test_blocks_that_share_an_input_keep_their_activations(tmp_path):
    """Their gradients would be added up in another order: other last digits, other codes."""
    model = Model(shares_first=True)
    write_statistics(tmp_path / "kept", collect(model, IDS, SHAPES, **ABOUT))
    write_statistics(tmp_path / "again", collect(model, IDS, SHAPES, recompute=True, **ABOUT))
    assert model.at_logits == LAYERS
    assert (tmp_path / "kept").read_bytes() == (tmp_path / "again").read_bytes()


def test_the_blocks_are_the_largest_list_and_stay_as_they_were():
    model = Model()
    assert blocks_of(model) == list(model.blocks) and blocks_of(nn.Linear(2, 2)) == []
    before = model(IDS)
    with pytest.raises(KeyError), recomputed(model, set()):
        assert "forward" in model.blocks[0].__dict__
        raise KeyError
    assert all("forward" not in block.__dict__ for block in model.blocks)
    assert torch.equal(model(IDS), before)
