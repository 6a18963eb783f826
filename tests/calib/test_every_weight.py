"""Weights are measured in whatever form a model multiplies by them, each matrix of a stack by itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantlab.calib.collect import collect
from quantlab.calib.statistics import read_statistics, write_statistics
from quantlab.errors import StatisticsError

IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 12, (5, 7)))
E, D, M = 3, 6, 4


def measure(model, shapes, ids=IDS, **options):
    return collect(model, ids, shapes, model_fingerprint="f", source={"kind": "test"}, **options)


class Block(nn.Module):
    """An embedding, a layer that a subclass writes in its own way, and a head."""

    shape = (M, D)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.head = nn.Embedding(12, D), nn.Linear(M, 12, bias=False)
        self.w = nn.Parameter(torch.randn(self.shape) / 2)

    def forward(self, ids):
        return self.head(torch.tanh(self.middle(torch.tanh(self.emb(ids)))))


WAYS = {
    "linear": lambda x, w: F.linear(x, w),
    "matmul": lambda x, w: torch.matmul(x, w.T),
    "operator": lambda x, w: x @ w.t(),
    "left operand": lambda x, w: (w @ x.transpose(1, 2)).transpose(1, 2),
    "addmm": lambda x, w: torch.addmm(x.new_zeros(M), x.reshape(-1, D), w.mT).view(*x.shape[:2], M),
    "bmm": lambda x, w: torch.bmm(x, w.T.expand(len(x), D, M)),
    "batched matmul": lambda x, w: x.unsqueeze(1).matmul(w.transpose(0, 1)[None, None]).squeeze(1),
    "einsum": lambda x, w: torch.einsum("btd,md->btm", x, w),
    "einsum with dots": lambda x, w: torch.einsum("md,...d", w, x),
    "heads": lambda x, w: torch.einsum("btd,hkd->bthk", x, w.view(2, 2, D)).flatten(2),
    "two halves of the rows": lambda x, w: torch.cat([F.linear(x, part) for part in w.chunk(2)], -1),
    "two halves of the columns": lambda x, w: x[..., :2] @ w[:, :2].T + x[..., 2:] @ w[:, 2:].T,
    "double": lambda x, w: F.linear(x.double(), w.double()).float(),
    "a transposed copy": lambda x, w: (x.double() @ w.T.contiguous().double()).float(),
    "row by row": lambda x, w: torch.stack([torch.mv(x.reshape(-1, D), row).view(x.shape[:2]) for row in w], -1),
}


def block(way, shape=(M, D)):
    class Way(Block):
        def middle(self, x):
            return way(x, self.w)

    Way.shape = shape
    return Way()


@pytest.mark.parametrize("way", WAYS)
def test_a_product_is_measured_in_any_form(way):
    wanted = measure(block(WAYS["linear"]), {"w": (M, D)})
    stats = measure(block(WAYS[way]), {"w": (M, D)})
    (found,), (known,) = stats.fisher_uses("w"), wanted.fisher_uses("w")
    tolerance = {"rtol": 1e-3, "atol": 1e-6}  # float32 sums in another order
    torch.testing.assert_close(found.H_II, known.H_II, **tolerance)
    torch.testing.assert_close(found.g_O, known.g_O, **tolerance)
    assert stats.apart == ()
    (found,), (known,) = stats.uses("w"), wanted.uses("w")
    torch.testing.assert_close(found.g_O, known.g_O, **tolerance)
    torch.testing.assert_close(found.H_II, known.H_II, **tolerance)


def test_parts_that_meet_other_gradients_are_counted_each_and_named(tmp_path):
    """Between the halves lies a function: what they have in common has no Kronecker factors."""
    stats = measure(block(lambda x, w: torch.tanh(x[..., :2] @ w[:, :2].T) + x[..., 2:] @ w[:, 2:].T), {"w": (M, D)})
    assert stats.apart == ("w",)
    (use,) = stats.fisher_uses("w")
    assert use.H_II[:2, :2].any() and use.H_II[2:, 2:].any() and not use.H_II[:2, 2:].any()
    write_statistics(tmp_path / "s", stats)
    assert read_statistics(tmp_path / "s").apart == ("w",)


def test_a_part_that_is_never_used_has_no_statistics_beside_those_of_the_others():
    stats = measure(block(lambda x, w: F.pad(x @ w[:2].T, (0, 2))), {"w": (M, D)})
    (use,) = stats.fisher_uses("w")
    assert stats.apart == ("w",) and use.g_O[:2, :2].any() and not use.g_O[2:].any()


def test_the_parts_of_two_uses_do_not_mix():
    """Both halves of the columns, twice: by what they add to, each finds its own."""

    def twice(x, w):
        halves = [x[..., :2] @ w[:, :2].T, torch.tanh(x)[..., :2] @ w[:, :2].T]
        halves += [torch.tanh(x)[..., 2:] @ w[:, 2:].T, x[..., 2:] @ w[:, 2:].T]
        return torch.tanh(halves[0] + halves[3]) - halves[1] - halves[2]

    stats = measure(block(twice), {"w": (M, D)})
    wanted = measure(block(lambda x, w: torch.tanh(F.linear(x, w)) - F.linear(torch.tanh(x), w)), {"w": (M, D)})
    (found,), (known,) = stats.fisher_uses("w"), wanted.fisher_uses("w")
    torch.testing.assert_close(found.H_II, known.H_II, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.g_O, known.g_O, rtol=1e-3, atol=1e-6)
    assert stats.apart == ()


@pytest.mark.parametrize(
    "way", [lambda x, w: x @ w, lambda x, w: torch.einsum("btd,dm->btm", x, w), lambda x, w: F.linear(x, w.T)]
)
def test_of_a_matrix_of_inputs_by_outputs_the_sides_change_places(way):
    model, other = block(way, (D, M)), block(WAYS["linear"])
    other.w = nn.Parameter(model.w.detach().T.contiguous())
    (found,) = measure(model, {"w": (D, M)}).fisher_uses("w")
    (known,) = measure(other, {"w": (M, D)}).fisher_uses("w")
    torch.testing.assert_close(found.H_II, known.g_O, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.g_O, known.H_II, rtol=1e-3, atol=1e-6)


def routed(x, w):
    """Expert number 0 gets even ids' places, expert 1 the others, expert 2 none, each by a slice of the stack."""
    flat, out = x.reshape(-1, D), x.new_zeros(x[..., 0].numel(), M)
    for expert in range(2):
        at = torch.arange(expert, len(flat), 2)
        out = out.index_add(0, at, F.linear(flat[at], w[expert]))
    return out.view(*x.shape[:2], M)


def dense(x, w):
    """The mean of all experts."""
    return torch.einsum("btd,emd->btem", x, w).mean(2)


def grouped(x, w):
    """Each token of a group to one expert, by a batched product."""
    each = x[..., 0].numel() // E
    groups = x.reshape(-1, D)[: each * E].view(E, each, D)
    out = torch.bmm(groups, w.transpose(1, 2)).reshape(-1, M)
    return F.pad(out, (0, 0, 0, x[..., 0].numel() - len(out))).view(*x.shape[:2], M)


def one_by_one(way):
    """The same with a parameter for each expert."""

    class Separate(Block):
        def __init__(self):
            super().__init__()
            self.experts = nn.ParameterList([self.w[e].detach().clone() for e in range(E)])

        def middle(self, x):
            if way is dense:
                return torch.stack([F.linear(x, w) for w in self.experts], 2).mean(2)
            flat, out = x.reshape(-1, D), x.new_zeros(x[..., 0].numel(), M)
            for e in range(E if way is grouped else 2):
                each = len(flat) // E
                at = torch.arange(each * e, each * (e + 1)) if way is grouped else torch.arange(e, len(flat), 2)
                out = out.index_add(0, at, F.linear(flat[at], self.experts[e]))
            return out.view(*x.shape[:2], M)

    Separate.shape = (E, M, D)
    return Separate()


@pytest.mark.parametrize("way", [routed, dense, grouped])
def test_each_expert_of_a_stack_is_measured_on_its_own_tokens(way):
    names = [f"w.{e}" for e in range(2 if way is routed else E)]
    stats = measure(block(way, (E, M, D)), dict.fromkeys(names, (M, D)))
    wanted = measure(one_by_one(way), {name.replace("w", "experts"): (M, D) for name in names})
    for name in names:
        for kind in ("uses", "fisher_uses"):
            (found,), (known,) = getattr(stats, kind)(name), getattr(wanted, kind)(name.replace("w", "experts"))
            torch.testing.assert_close(found.H_II, known.H_II, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(found.g_O, known.g_O, rtol=1e-3, atol=1e-6)
    assert not stats.priors


def test_an_expert_that_no_token_reached_has_the_mean_of_its_siblings(tmp_path):
    stats = measure(block(routed, (E, M, D)), {f"w.{e}": (M, D) for e in range(E)})
    assert stats.priors == ("w.2",)
    uses = [stats.uses(f"w.{e}")[0] for e in range(E)]
    torch.testing.assert_close(uses[2].H_II, (uses[0].H_II + uses[1].H_II) / 2)
    torch.testing.assert_close(uses[2].g_O, (uses[0].g_O + uses[1].g_O) / 2)
    (fisher,) = stats.fisher_uses("w.2")
    assert fisher.g_O.shape == (M, M) and float(fisher.H_II.trace()) > 0
    write_statistics(tmp_path / "s", stats)
    assert read_statistics(tmp_path / "s").priors == ("w.2",)


def test_a_matrix_without_siblings_still_needs_statistics():
    with pytest.raises(StatisticsError, match=r"tensor w\.2 has no calibration statistics") as caught:
        measure(block(routed, (E, M, D)), {"w.2": (M, D)})
    assert caught.value.hint == "--keep w.2 stores it unquantized"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, "same"])
def test_a_kernel_is_a_matrix_of_patches(groups, padding):
    class Convolved(Block):
        shape = (1,)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(D, M, 3, padding=padding, groups=groups, bias=False)

        def middle(self, x):
            x = x if padding else F.pad(x, (0, 0, 1, 1))
            return self.conv(x.transpose(1, 2)).transpose(1, 2)

    class Unfolded(Convolved):
        def middle(self, x):
            patches = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1)  # [B, T, D, 3]
            halves = patches.reshape(*x.shape[:2], groups, -1).unbind(2)
            rows = self.conv.weight.flatten(1).chunk(groups)
            return torch.cat([F.linear(half, part) for half, part in zip(halves, rows, strict=True)], -1)

    shape = (M, 3 * D // groups)
    stats, wanted = measure(Convolved(), {"conv.weight": shape}), measure(Unfolded(), {"conv.weight": shape})
    for kind in ("uses", "fisher_uses"):
        (found,), (known,) = getattr(stats, kind)("conv.weight"), getattr(wanted, kind)("conv.weight")
        torch.testing.assert_close(found.H_II, known.H_II, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.g_O, known.g_O, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [((3, 2), 1, 0, 1), ((2, 2), 2, 1, 1), (3, 1, "same", (2, 1))]
)
def test_a_kernel_in_two_dimensions_is_a_matrix_of_patches(groups, kernel, stride, padding, dilation):
    """Statistics of a convolution are those of a linear layer on patches that F.unfold cuts out."""
    images = torch.randn(len(IDS), 2 * groups, 7, 7, generator=torch.Generator().manual_seed(1))
    options = {"stride": stride, "dilation": dilation}

    class Seeing(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(2 * groups, M, kernel, padding=padding, groups=groups, bias=False, **options)
            self.head = nn.Linear(M, 12, bias=False)

        def seen(self, x):
            return self.conv(x)

        def forward(self, ids):
            x = images[:1].expand(len(ids), -1, -1, -1) * (1 + ids[:, :1, None, None] / 12)
            return self.head(torch.tanh(self.seen(x)).flatten(2).transpose(1, 2)[:, : ids.shape[1]])

    class Unfolded(Seeing):
        def seen(self, x):
            sizes = self.conv.kernel_size
            before = [
                d * (k - 1) // 2 if padding == "same" else padding for k, d in zip(sizes, self.conv.dilation, strict=True)
            ]
            patches = F.unfold(x, sizes, padding=before, **options).transpose(1, 2)
            parts = patches.chunk(groups, -1)
            rows = self.conv.weight.flatten(1).chunk(groups)
            out = torch.cat([F.linear(part, row) for part, row in zip(parts, rows, strict=True)], -1)
            ends = [2 * n - d * (k - 1) - 1 for n, k, d in zip(before, sizes, self.conv.dilation, strict=True)]
            return out.transpose(1, 2).unflatten(2, [(7 + end) // stride + 1 for end in ends])

    shape = (M, 2 * Seeing().conv.kernel_size[0] * Seeing().conv.kernel_size[1])
    ids = IDS[:, :4]
    with torch.no_grad():
        torch.testing.assert_close(Seeing()(ids), Unfolded()(ids))
    stats, wanted = (measure(model, {"conv.weight": shape}, ids) for model in (Seeing(), Unfolded()))
    for kind in ("uses", "fisher_uses"):
        (found,), (known,) = getattr(stats, kind)("conv.weight"), getattr(wanted, kind)("conv.weight")
        torch.testing.assert_close(found.H_II, known.H_II, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.g_O, known.g_O, rtol=1e-3, atol=1e-6)


def test_kernels_that_are_no_matrix_of_patches_are_named():
    class Turned(Block):
        shape = (1,)

        def __init__(self):
            super().__init__()
            self.conv = nn.ConvTranspose1d(D, M, 3, padding=1, bias=False)

        def middle(self, x):
            return self.conv(x.transpose(1, 2)).transpose(1, 2)

    with pytest.raises(StatisticsError, match=r"tensor conv\.weight: its use in conv_transpose1d cannot be measured"):
        measure(Turned(), {f"conv.weight.{k}": (M, 3) for k in range(D)})


def test_rows_are_looked_up_in_any_form():
    def table(look_up):
        class Table(Block):
            shape = (12, D)

            def forward(self, ids):
                return self.head(torch.tanh(look_up(ids, self.w)[..., :M]))

        return measure(Table(), {"w": (12, D)}).uses("w")[0]

    known = table(F.embedding)
    for found in (table(lambda ids, w: w[ids]), table(lambda ids, w: w.index_select(0, ids.flatten()).view(*ids.shape, D))):
        assert torch.equal(found.g_O, known.g_O)
        torch.testing.assert_close(found.H_II, known.H_II)


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (lambda x, w: F.linear(x, w * 2), "mul cannot be measured"),
        (lambda x, w: F.linear(x, w[[0, 1, 2, 3]]), "getitem__ cannot be measured"),
        (lambda x, w: torch.cat([F.linear(x, w[::2]), F.linear(x, w[1::2])], -1), "a part of a matrix with gaps"),
        (lambda x, w: torch.einsum("btd,md,m->btm", x, w, x.new_ones(M)), "it has 3 operands"),
        (lambda x, w: torch.einsum("btd,md->btm", x, w.detach()[:, :].relu()), "relu cannot be measured"),
        (lambda x, w: (w @ w.T) * x[..., :1], "it joins two weights"),
    ],
)
def test_any_other_use_is_named(use, why):
    with pytest.raises(StatisticsError, match=why) as caught:
        measure(block(use), {"w": (M, D)})
    assert "tensor w: its use in" in str(caught.value) and "--keep" in str(caught.value.hint)
